"""External weights are found wherever a model may have them, and accepted inside the bundle's own data file alone."""

import contextlib
import time
import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from packager.bundle.onnx_wire import ExternalTensor, WeightsUnsafe, find_external_tensors, move_tensors

DATA, SIZE = "model.onnx_data", 4096


def external(name="w", dims=(4, 3), data_type=TensorProto.FLOAT, **entries):
    """Return a tensor with external data; None leaves an entry out."""
    entries = {"location": DATA, "offset": "64", "length": "48", **entries}
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return tensor


def model(*initializers, nodes=(), functions=(), sparse=()):
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers), sparse_initializer=list(sparse))
    return helper.make_model(graph, functions=list(functions))


def find(proto, data=DATA, size=SIZE):
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return find_external_tensors(content, data, size)


def refused(proto, cause, **options):
    with pytest.raises(WeightsUnsafe) as caught:
        find(proto, **options)
    assert cause in str(caught.value)


def test_external_weights_are_found_with_shape_dtype_and_place():
    inline = onnx.numpy_helper.from_array(np.ones(3, np.float32), "location")
    proto = model(external(), inline, external("b", (), TensorProto.BFLOAT16, offset=None, length=None))
    assert find(proto) == [
        ExternalTensor("w", TensorProto.FLOAT, (4, 3), 64, 48),
        ExternalTensor("b", TensorProto.BFLOAT16, (), 0, 2),
    ] or find(proto)[::-1] == [
        ExternalTensor("w", TensorProto.FLOAT, (4, 3), 64, 48),
        ExternalTensor("b", TensorProto.BFLOAT16, (), 0, 2),
    ]


def test_a_model_without_external_weights_is_not_parsed():
    assert find(b"\xff\xff not protobuf", data=None) == []


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"location": "/etc/passwd"}, "'/etc/passwd'"),
        ({"location": "../model.onnx_data"}, "'../model.onnx_data'"),
        ({"location": "./model.onnx_data"}, "'./model.onnx_data'"),
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "_ORT_MEM_ADDR_"),
        ({"location": None, "name": "location"}, "''"),
        ({"offset": "4064"}, "ends at byte 4112"),
        ({"offset": "-64"}, "'-64'"),
        ({"offset": "0x40"}, "'0x40'"),
        ({"offset": "9" * 30}, "'999"),
        ({"offset": "٦٤"}, "'٦٤'"),
        ({"offset": "66"}, "aligned"),
        ({"length": "47"}, "need 48"),
        ({"length": "52"}, "need 48"),
        ({"length": ""}, "''"),
        ({"dims": (4, -3)}, "impossible shape"),
        ({"dims": (1 << 62, 4)}, "impossible shape"),
        ({"dims": (1 << 40, 1 << 40), "length": None}, "ends at byte"),
        ({"dims": (1,) * 65, "length": None}, "impossible shape"),
        ({"data_type": TensorProto.STRING}, "unsupported dtype"),
        ({"data_type": TensorProto.INT4}, "unsupported dtype"),
    ],
)
def test_a_weight_outside_of_the_data_file_or_of_an_impossible_size_is_refused(changes, cause):
    refused(model(external(**changes)), cause)


def test_a_weight_is_refused_if_the_bundle_has_no_data_file():
    refused(model(external()), "not a file of this bundle", data=None, size=0)


def test_two_weights_of_one_name_and_an_entry_twice_are_refused():
    refused(model(external(), external()), "two weights 'w'")
    twice = external()
    twice.external_data.add(key="location", value="/etc/passwd")
    refused(model(twice), "twice")


def nested(tensor, depth):
    """Return a node with a tensor, `depth` graphs deep."""
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    for _ in range(depth):
        graph = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph)
    return node


def places():
    sparse = onnx.SparseTensorProto(values=external(), indices=onnx.TensorProto(), dims=[4])
    subgraph = helper.make_graph([], "g", [], [], [external()])
    function = helper.make_function("d", "f", [], [], [nested(external(), 1)], [helper.make_opsetid("", 20)])
    several = helper.make_node("N", [], [])
    several.attribute.add(name="t", type=onnx.AttributeProto.TENSORS).tensors.append(external())
    training = model()
    training.training_info.add().initialization.initializer.append(external())
    return {
        "attribute": model(nodes=[nested(external(), 0)]),
        "attribute of tensors": model(nodes=[several]),
        "attribute in subgraphs": model(nodes=[nested(external(), 5)]),
        "initializer of a subgraph": model(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=subgraph)]),
        "sparse": model(sparse=[sparse]),
        "function": model(functions=[function]),
        "training": training,
    }


@pytest.mark.parametrize("place", places())
def test_external_data_anywhere_but_in_the_main_graph_is_refused(place):
    refused(places()[place], "not a weight of the main graph")


def test_a_location_without_the_flag_and_a_flag_without_a_location_are_refused():
    tensor = external(location="/etc/passwd")
    tensor.ClearField("data_location")
    refused(model(tensor), "'/etc/passwd'")
    refused(model(external(), TensorProto(name="location", data_location=TensorProto.EXTERNAL)), "''")


def field(number, content):
    """Return a length-delimited field of a message."""
    size, encoded = len(content), bytearray()
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes(encoded) + bytes([size]) + content


def test_deep_nesting_is_refused_without_recursion():
    content = b"location"
    for _ in range(2000):
        content = field(1, field(5, field(6, content)))  # a node, its attribute, its subgraph
    refused(field(7, content), "levels deep")


def test_a_model_of_millions_of_fields_is_refused_in_time():
    began = time.process_time()
    refused(field(7, b"\x08\x01" * 3_000_000 + b"location"), "fields")
    assert time.process_time() - began < 10


@given(st.data())
def test_changed_bytes_give_weights_inside_the_file_or_are_refused(data):
    content = bytearray(model(external(), external("b", (2,), length="8"), nodes=[]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        tensors = find(bytes(content))
    except WeightsUnsafe:
        return
    assert all(0 <= tensor.offset <= tensor.offset + tensor.length <= SIZE for tensor in tensors)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_have_no_weights(content):
    with contextlib.suppress(WeightsUnsafe):
        assert find(content + b"location") == []


# -- moving ---------------------------------------------------------------------------------


def test_moved_weights_are_the_same_tensors_elsewhere():
    inline = onnx.numpy_helper.from_array(np.ones(3, np.float32), "inline")
    node = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.ones(2, np.float32)))
    unusual = external("b", (), TensorProto.BFLOAT16, offset=None, length=None, checksum="x")
    proto = model(external(), inline, unusual, nodes=[node])
    moved = onnx.load_from_string(move_tensors(proto.SerializeToString(), "proc/self/fd/300", 8192))
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    for tensor, offset in ((expected.graph.initializer[0], "8256"), (expected.graph.initializer[2], "8192")):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        del tensor.external_data[:]
        for key, value in {**entries, "location": "proc/self/fd/300", "offset": offset}.items():
            tensor.external_data.add(key=key, value=value)
    assert moved == expected


@given(st.binary(max_size=200), st.integers(0, 1 << 40))
def test_a_model_without_external_weights_moves_nothing(content, shift):
    inline = onnx.numpy_helper.from_array(np.frombuffer(content, np.uint8), "inline")
    plain = model(inline).SerializeToString()
    assert move_tensors(plain, "elsewhere", shift) == plain


def test_empty_nodes_take_no_memory_and_are_not_mistaken_for_weights():
    content = field(2, b"location") + field(7, field(1, b"") * 100_000)
    tracemalloc.start()
    try:
        assert find(content) == []
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_tensor_of_millions_of_dims_is_refused_without_reading_them():
    tensor = field(1, b"\x01" * 3_000_000) + b"\x70\x01"
    refused(field(2, b"location") + field(7, field(5, tensor)), "impossible shape")
    refused(field(2, b"location") + field(7, field(5, b"\x08\x01" * 65 + b"\x70\x01")), "impossible shape")


def test_a_tensor_of_millions_of_fields_is_refused():
    refused(field(2, b"location") + field(7, field(5, b"\x10\x01" * 3_000_000)), "fields")


def test_too_many_weights_are_refused(monkeypatch):
    monkeypatch.setattr("packager.bundle.onnx_wire._MAX_WEIGHTS", 2)
    weights = [external(f"w{number}") for number in range(3)]
    assert len(find(model(*weights[:2]))) == 2
    refused(model(*weights), "more than 2 weights")
