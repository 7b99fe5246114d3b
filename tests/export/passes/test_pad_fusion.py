"""A padding of zeros before max pooling is computed as written in every session, whatever onnxruntime fuses."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.export.passes.pad_fusion import prevent_pad_fusion

NEGATIVE = -1 - np.random.default_rng(0).random((2, 3, 7, 7), dtype=np.float32)


def make_model(opset=20, value=0.0, before=None, between=None, pool="MaxPool"):
    """[batch, 3, height, width] → Pad → pooling with windows of 3 × 3; more nodes before and between on request."""
    nodes = [helper.make_node(before, ["x"], ["before"])] if before else []
    nodes.append(helper.make_node("Pad", ["before" if before else "x", "pads", "value"], ["padded"]))
    if between:
        nodes.append(helper.make_node("Cast", ["padded"], ["cast"], to=between))
    pooled = "cast" if between else "padded"
    nodes.append(helper.make_node(pool, [pooled], ["pooled"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 0, 0]))
    nodes.append(helper.make_node("Cast", ["pooled"], ["y"], to=TensorProto.FLOAT))
    weights = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.array(value, np.float32)}
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, "rows", "columns"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(model, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": NEGATIVE})[0]


LEVELS = onnxruntime.GraphOptimizationLevel


@pytest.mark.parametrize("opset", [13, 18, 20, 22])
@pytest.mark.parametrize("between", [None, TensorProto.DOUBLE])
def test_a_padding_of_zeros_before_max_pooling_is_kept(opset, between):
    model = make_model(opset, between=between)
    written = run(model, LEVELS.ORT_DISABLE_ALL)
    assert written.max() == 0  # the corners of a window at the border are zeros
    prevent_pad_fusion(model.graph)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run(model, LEVELS.ORT_DISABLE_ALL), written)
    np.testing.assert_array_equal(run(model, LEVELS.ORT_ENABLE_ALL), written)


def test_a_padding_in_a_branch_is_kept():
    model = make_model()
    branch = onnx.GraphProto(name="branch", node=model.graph.node, output=model.graph.output)
    branch.initializer.extend(model.graph.initializer)
    condition = helper.make_node("Constant", [], ["true"], value=numpy_helper.from_array(np.array(True)))
    node = helper.make_node("If", ["true"], ["y"], then_branch=branch, else_branch=branch)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([condition, node])
    written = run(model, LEVELS.ORT_DISABLE_ALL)
    prevent_pad_fusion(model.graph)
    np.testing.assert_array_equal(run(model, LEVELS.ORT_ENABLE_ALL), written)


@pytest.mark.parametrize(
    "options", [{"value": -np.inf}, {"value": 1.0}, {"before": "Relu"}, {"pool": "AveragePool"}], ids=str
)
def test_other_graphs_are_left_as_they_are(options):
    model = make_model(**options)
    before = model.SerializeToString(deterministic=True)
    prevent_pad_fusion(model.graph)
    assert model.SerializeToString(deterministic=True) == before


def test_a_second_call_changes_nothing():
    model = make_model()
    prevent_pad_fusion(model.graph)
    before = model.SerializeToString(deterministic=True)
    prevent_pad_fusion(model.graph)
    assert model.SerializeToString(deterministic=True) == before
