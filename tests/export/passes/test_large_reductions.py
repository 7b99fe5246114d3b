"""A reduction of many elements along several axes is computed one axis after the other, where its error stays small."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.export.passes.large_reductions import split_large_reductions

VALUES = np.random.default_rng(0).random((2, 128, 512, 6), dtype=np.float32)


def make_model(
    operator="ReduceMean",
    axes=(1, 2, 3),
    keepdims=1,
    opset=20,
    form="initializer",
    sizes=(128, 512, 6),
    dtype=TensorProto.FLOAT,
):
    """[batch, *sizes] → Identity → a reduction whose axes are an initializer, a Constant, or an attribute."""
    rank = 4 if keepdims else 4 - len(axes)
    nodes, weights, inputs, attributes = [helper.make_node("Identity", ["x"], ["same"])], [], ["same", "axes"], {}
    if form == "initializer":
        weights.append(numpy_helper.from_array(np.array(axes), "axes"))
    elif form == "attribute":
        inputs, attributes = ["same"], {"axes": axes}
    else:
        value = {"value": numpy_helper.from_array(np.array(axes))} if form == "tensor" else {"value_ints": axes}
        nodes.append(helper.make_node("Constant", [], ["axes"], **value))
    nodes.append(helper.make_node(operator, inputs, ["y"], name="reduce", keepdims=keepdims, **attributes))
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", dtype, ["batch", *sizes])],
        [helper.make_tensor_value_info("y", dtype, [f"y{k}" for k in range(rank)])],
        weights,
        value_info=[helper.make_tensor_value_info("same", dtype, ["batch", *sizes])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(model, values=VALUES):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0]


FORMS = [("initializer", 20), ("tensor", 20), ("ints", 20), ("attribute", 17)]


@pytest.mark.parametrize(("form", "opset"), FORMS)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [(1, 2, 3), (-1, -3, -2), (1, 2), (0, 1, 2)])
def test_a_mean_keeps_its_shape_and_has_the_error_of_short_sums(form, opset, keepdims, axes):
    model = make_model(axes=axes, keepdims=keepdims, opset=opset, form=form)
    exact = VALUES.mean(axes, dtype=np.float64, keepdims=bool(keepdims))
    split_large_reductions(model.graph)
    onnx.checker.check_model(model)
    assert run(model).shape == exact.shape
    assert np.abs(run(model) - exact).max() < 2e-7
    assert [node.op_type for node in model.graph.node].count("ReduceMean") == len(axes)


def test_a_sum_is_split_like_a_mean():
    model = make_model("ReduceSum")
    split_large_reductions(model.graph)
    assert len(model.graph.node) == 4
    np.testing.assert_allclose(run(model), VALUES.sum((1, 2, 3), dtype=np.float64, keepdims=True), rtol=2e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": (128, 8, 6)},
        {"sizes": ("channels", "height", 6)},
        {"axes": (3,)},
        {"operator": "ReduceMax"},
        {"dtype": TensorProto.INT64},
        {"dtype": TensorProto.FLOAT16},
    ],
    ids=["few elements", "unknown sizes", "one axis", "no sum", "integers", "half precision"],
)
def test_any_other_reduction_stays_as_it_is(options):
    model = make_model(**options)
    before = model.SerializeToString()
    split_large_reductions(model.graph)
    assert model.SerializeToString() == before


def test_a_reduction_of_unknown_rank_stays_as_it_is():
    model = make_model()
    del model.graph.value_info[:]
    before = model.SerializeToString()
    split_large_reductions(model.graph)
    assert model.SerializeToString() == before


def test_partial_sums_take_no_name_that_an_output_has():
    model = make_model()
    for name in ("y/3", "y/2", "y/axis_1"):
        model.graph.node.append(helper.make_node("Identity", ["x"], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 128, 512, 6]))
    split_large_reductions(model.graph)
    onnx.checker.check_model(model)
    assert run(model).shape == (2, 1, 1, 1)
