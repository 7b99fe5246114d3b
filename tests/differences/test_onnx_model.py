"""Comparing two ONNX models: every part that can differ is compared."""

import itertools
import json

import numpy as np
import onnx
import pytest
from messages import mentions
from onnx import TensorProto, helper, numpy_helper

from packager.differences import onnx_model
from packager.errors import ModelUnreadable, render_error

FLOAT = TensorProto.FLOAT


def value(name, shape=("batch", 2), dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(array, name):
    return helper.make_node(
        "Constant", [], [name], f"{name}/Constant", value=numpy_helper.from_array(np.float32(array))
    )


def model():
    """Make a model with a constant, a branch with a weight in it, and a node with attributes."""
    inner = numpy_helper.from_array(np.float32([1, 2]), "inner")
    then = helper.make_graph(
        [helper.make_node("Add", ["scaled", "inner"], ["more"], "/then/Add")], "then", [], [value("more")], [inner]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["scaled"], ["less"], "/else/Identity")], "else", [], [value("less")]
    )
    nodes = [
        constant([1, 1], "one"),
        helper.make_node("Add", ["x", "one"], ["moved"], "/Add"),
        helper.make_node("Mul", ["moved", "scale"], ["scaled"], "/Mul"),
        helper.make_node("If", ["flag"], ["y"], "/If", then_branch=then, else_branch=other),
        helper.make_node("Gelu", ["y"], ["z"], "/Gelu", domain="com.microsoft", pads=[0, 0, 1, 1]),
    ]
    inputs = [value("x"), value("flag", [], TensorProto.BOOL)]
    weights = [numpy_helper.from_array(np.float32([3, 4]), "scale")]
    graph = helper.make_graph(nodes, "model", inputs, [value("z")], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=opsets, producer_name="packager")


def opset(proto):
    proto.opset_import[0].version = 17


def ir_version(proto):
    proto.ir_version = 8


def pads(proto):
    proto.graph.node[4].attribute[0].ints[0] = 1


def no_pads(proto):
    del proto.graph.node[4].attribute[:]


def edge(proto):
    proto.graph.node[2].input[0] = "x"


def node_name(proto):
    proto.graph.node[1].name = "/Plus"


def another_operator(proto):
    proto.graph.node[1].op_type = "Sub"


def one_node_more(proto):
    proto.graph.node.append(helper.make_node("Relu", ["z"], ["a"], "/Relu"))


def in_a_subgraph(proto):
    proto.graph.node[3].attribute[1].g.node[0].op_type = "Sub"


def graph_input(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def output_dtype(proto):
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16


def producer(proto):
    proto.producer_name = "somebody"


def metadata(proto):
    proto.graph.metadata_props.add(key="a", value="b")


def sequence(proto):
    proto.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("z", FLOAT, None))


def function(proto):
    proto.functions.append(
        helper.make_function("local", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [])
    )


def empty_text(proto):
    proto.graph.node[4].attribute[0].doc_string = ""


def weight(proto):
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([3, 5]), "scale"))


def weight_shape(proto):
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float64([[3]]), "scale"))


def weight_name(proto):
    proto.graph.initializer[0].name = "factor"


def inner_weight(proto):
    proto.graph.node[3].attribute[1].g.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([0, 2]), "inner"))


def constant_value(proto):
    proto.graph.node[0].CopyFrom(constant([1, 4], "one"))


GRAPH = {
    opset: [("opset.ai.onnx", 20, 17)],
    ir_version: [("ir_version", 9, 8)],
    pads: [("first at node 4 /Gelu: attribute pads", [0, 0, 1, 1], [1, 0, 1, 1])],
    no_pads: [("first at node 4 /Gelu: attribute pads", [0, 0, 1, 1], None)],
    edge: [("first at node 2 /Mul: input", ["moved", "scale"], ["x", "scale"])],
    node_name: [("first at node 1", "Add /Add", "Add /Plus")],
    another_operator: [("operator Add", 2, 1), ("operator Sub", 0, 1), ("first at node 1", "Add /Add", "Sub /Add")],
    one_node_more: [("nodes", 6, 7), ("operator Relu", 0, 1), ("first at node 5", None, "Relu /Relu")],
    in_a_subgraph: [
        ("operator Add", 2, 1), ("operator Sub", 0, 1),
        ("first at node 3 /If: attribute then_branch.node./then/Add.operator", "Add", "Sub"),
    ],
    graph_input: [("inputs.x.shape", ["batch", 2], ["batch", 3])],
    output_dtype: [("outputs.z.dtype", "float32", "bfloat16")],
    producer: [("producer_name", "packager", "somebody")],
    metadata: [("graph.metadata_props", None, [{"key": "a", "value": "b"}])],
    sequence: [
        ("outputs.z.dtype", "float32", None),
        ("outputs.z.shape", ["batch", 2], None),
        ("outputs.z.type", None, {"sequence_type": {"elem_type": {"tensor_type": {"elem_type": 1}}}}),
    ],
}  # fmt: skip
WEIGHTS = {
    weight: [("scale", "float32[2]", "float32[2]", ("1", "2"))],
    weight_shape: [("scale", "float32[2]", "float64[1, 1]", None)],
    weight_name: [("scale", "float32[2]", None, None), ("factor", None, "float32[2]", None)],
    inner_weight: [("/If/then_branch/inner", "float32[2]", "float32[2]", ("1", "2"))],
    constant_value: [("one", "float32[2]", "float32[2]", ("1", "2", "3"))],
}


@pytest.fixture
def pair(tmp_path):
    """Return a function that reads the model before and after changes."""

    def pair(*changes):
        for name, applied in (("before", ()), ("after", changes)):
            proto = model()
            for change in applied:
                change(proto)
            (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
        return [onnx_model.load_onnx_model(tmp_path / f"{name}.onnx") for name in ("before", "after")]

    return pair


def graph(before, after):
    return [(field.where, field.before, field.after) for field in onnx_model.compare_graphs(before, after)]


def weights(before, after):
    differences = onnx_model.compare_weights(before, after)
    return [
        (weight.where, weight.before, weight.after, weight.change and weight.change.text()) for weight in differences
    ]


def name_of(change):
    return change.__name__


def test_a_model_is_the_same_as_itself(pair):
    assert graph(*pair()) == weights(*pair()) == []


def test_an_empty_text_equals_an_absent_one(pair):
    assert graph(*pair(empty_text)) == []


@pytest.mark.parametrize("change", GRAPH, ids=name_of)
def test_a_change_of_the_graph_is_found_in_the_graph_alone(pair, change):
    assert graph(*pair(change)) == GRAPH[change]
    assert weights(*pair(change)) == []


@pytest.mark.parametrize("change", WEIGHTS, ids=name_of)
def test_a_change_of_a_weight_is_found_in_the_weights_alone(pair, change):
    differences = weights(*pair(change))
    assert [difference[:3] for difference in differences] == [expected[:3] for expected in WEIGHTS[change]]
    for (*_, text), (*_, facts) in zip(differences, WEIGHTS[change], strict=True):
        assert (text is None) == (facts is None)
        mentions(text, *facts or ())
    assert graph(*pair(change)) == []


def test_a_function_is_compared_like_the_graph(pair):
    differences = graph(*pair(function))
    assert differences[:2] == [("nodes", 6, 7), ("operator Relu", 0, 1)]
    assert [where for where, _, _ in differences[2:]] == ["functions"]


@pytest.mark.parametrize(
    "changes", list(itertools.combinations([*GRAPH, *WEIGHTS], 2)), ids=lambda changes: "+".join(map(name_of, changes))
)
def test_swapping_the_models_swaps_before_and_after(pair, changes):
    before, after = pair(*changes)
    there = [(where, right, left) for where, left, right, *_ in (*graph(before, after), *weights(before, after))]
    back = [(where, left, right) for where, left, right, *_ in (*graph(after, before), *weights(after, before))]
    assert sorted(there, key=str) == sorted(back, key=str)


def test_nodes_are_not_compared_if_a_bundle_has_no_model(pair):
    before, _ = pair()
    assert graph(before, onnx_model.NO_MODEL) == [
        ("ir_version", 9, None),
        ("opset", {"ai.onnx": 20, "com.microsoft": 1}, None),
        ("inputs", [
            {"name": "x", "dtype": "float32", "shape": ["batch", 2]}, {"name": "flag", "dtype": "bool", "shape": []}
        ], None),
        ("outputs", [{"name": "z", "dtype": "float32", "shape": ["batch", 2]}], None),
        ("nodes", 6, 0),
        *((f"operator {name}", count, 0) for name, count in
          (("Add", 2), ("Mul", 1), ("If", 1), ("com.microsoft.Gelu", 1), ("Identity", 1))),
    ]  # fmt: skip
    assert weights(onnx_model.NO_MODEL, before) == [
        (name, None, "float32[2]", None) for name in ("scale", "one", "/If/then_branch/inner")
    ]


def test_external_weights_are_read_from_their_file(tmp_path, golden):
    for name, last in (("before", 4), ("after", 4.5)):
        (tmp_path / name).mkdir()
        proto = model()
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([3, last]), "scale"))
        path = tmp_path / name / "model.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    models = [onnx_model.load_onnx_model(tmp_path / name / "model.onnx") for name in ("before", "after")]
    assert models[0].weights["scale"].external_data
    ((*difference, text),) = weights(*models)
    assert difference == ["scale", "float32[2]", "float32[2]"]
    golden(text, "1", "2", "0.5")
    assert not models[0].weights["scale"].raw_data
    (tmp_path / "after" / "model.onnx_data").write_bytes(b"")
    with pytest.raises(ModelUnreadable):
        weights(*models)


def test_external_weights_may_not_be_outside_the_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"12345678")
    proto = model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "../secret"), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=text)
    (tmp_path / "bundle").mkdir()
    path = tmp_path / "bundle" / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelUnreadable):
        weights(onnx_model.load_onnx_model(path), onnx_model.load_onnx_model(path))


@pytest.mark.parametrize(("content", "why"), [(b"", "ValueError: "), (b"garbage", "DecodeError: ")])
def test_a_file_that_is_not_a_model_is_refused(tmp_path, content, why, golden):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelUnreadable) as caught:
        onnx_model.load_onnx_model(tmp_path / "model.onnx")
    lines = render_error(caught.value).splitlines()
    golden(lines[0], "error[model-unreadable]", f"{tmp_path}/model.onnx")
    assert lines[1].startswith(f"  {why}")
    golden(lines[-1])


def test_names_that_are_not_text_are_compared(tmp_path):
    content = model().SerializeToString()
    (tmp_path / "before.onnx").write_bytes(content)
    for name in (b"batch", b"com.microsoft", b"/Gelu", b"scale", b"then", b"pads"):
        assert name in content
        content = content.replace(name, name[:-1] + b"\xff")
    (tmp_path / "after.onnx").write_bytes(content)
    models = [onnx_model.load_onnx_model(tmp_path / f"{name}.onnx") for name in ("before", "after")]
    differences = graph(*models)
    assert ("inputs.x.shape", ["batch", 2], [b"batc\xff".hex(), 2]) in differences
    assert json.dumps([differences, weights(*models)])
