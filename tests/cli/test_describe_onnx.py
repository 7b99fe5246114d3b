"""An ONNX file is described from its bytes as onnx would describe it, and never costs more than its size."""

import tracemalloc
from collections import Counter

import onnx
import pytest
from onnx import TensorProto, helper

from packager.cli import describe_onnx
from packager.cli.describe_onnx import _DTYPES, describe_model


def field(number, content):
    """Return a field of a message with less than 2^28 bytes."""
    size = len(content)
    return bytes([number << 3 | 2, *(size >> shift & 0x7F | 0x80 for shift in (0, 7, 14)), size >> 21]) + content


def describe(content):
    return describe_model(memoryview(content))


def test_a_description_is_what_onnx_reads():
    shapes = {"x": ["batch", 3, None, -1, 1 << 40], "w": [3], "s": []}
    inputs = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.BFLOAT16, None),
        helper.make_value_info("z", helper.make_sequence_type_proto(helper.make_tensor_type_proto(7, [2]))),
        helper.make_tensor_value_info("v", 4711, [2]),
    ]
    nodes = [helper.make_node(kind, ["x"], ["y"], k=1) for kind in ("Relu", "Add", "Relu")]
    weights = [helper.make_tensor(name, 1, [3], [1.0, 2.0, 3.0]) for name in ("w", "other")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=opsets, producer_name="näme")

    dtypes = {number: name.lower() for name, number in TensorProto.DataType.items()}

    def expected(value):
        tensor = value.type.tensor_type
        shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        return {"name": value.name, "dtype": dtypes.get(tensor.elem_type, "unknown (4711)"), "shape": shape}

    assert describe(model.SerializeToString()) == {
        "kind": "onnx",
        "producer": "näme",
        "ir_version": model.ir_version,
        "opset": {"ai.onnx": 20, "com.microsoft": 1},
        "inputs": [expected(value) for value in inputs if value.name != "w"],
        "outputs": [expected(value) for value in outputs],
        "nodes": 3,
        "operators": dict(Counter(["Relu", "Add", "Relu"]).most_common()),
        "initializers": 2,
    }


def test_every_dtype_of_onnx_has_its_name():
    known = [(name, number) for name, number in onnx.TensorProto.DataType.items() if number < len(_DTYPES)]
    assert len(known) > 20  # later versions of onnx have more
    for name, number in known:
        value = helper.make_tensor_value_info("x", number, [1])
        model = helper.make_model(helper.make_graph([], "g", [value], []))
        assert describe(model.SerializeToString())["inputs"][0]["dtype"] == name.lower()


def test_nodes_and_attributes_take_no_memory():
    content = field(7, field(1, field(5, b"") * 5) * 20_000)
    tracemalloc.start()
    try:
        assert describe(content)["nodes"] == 20_000
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_millions_of_nodes_are_refused():
    with pytest.raises(ValueError, match="more than 2500000 fields"):
        describe(field(7, field(1, b"") * 3_000_000))


@pytest.mark.parametrize(
    "item",
    [
        field(1, b""), field(1, field(5, b"")), field(5, b""), field(11, b""), field(12, b""),
        field(11, field(2, field(1, field(2, field(1, b"") * 20_000)))),
    ],
    ids=["nodes", "attributes", "weights", "inputs", "outputs", "dims"],
)  # fmt: skip
def test_more_items_than_the_limit_are_refused(item, monkeypatch):
    monkeypatch.setattr(describe_onnx, "_MAX_FIELDS", 100_000)
    with pytest.raises(ValueError, match="more than"):
        describe(field(7, item * (120_000 if len(item) < 1000 else 1)))


def test_too_many_kinds_of_operators_are_refused():
    with pytest.raises(ValueError, match="more than 10000"):
        describe(field(7, b"".join(field(1, field(4, b"%d" % number)) for number in range(10_001))))


@pytest.mark.parametrize("content", [b"", field(8, b""), field(7, b"")[:-1], b"\xff" * 20, field(7, b"\x0b")])
def test_what_is_no_model_is_refused(content):
    with pytest.raises(ValueError, match=r"no graph|not valid protobuf"):
        describe(content)
