"""Models on disk: what was written is what onnx reads, wherever the weights lie."""

import numpy as np
import onnx
import pytest

from packager.export.graph import io
from packager.export.graph.messages import ExportedGraph


def test_a_file_written_by_hand_is_what_onnx_reads(tmp_path):
    values = np.arange(40_000, dtype=np.float32)
    weights = [onnx.numpy_helper.from_array(values, "large"), onnx.numpy_helper.from_array(values[:3], "small")]
    node = onnx.helper.make_node("Add", ["large", "x"], ["y"])
    tensor = lambda name, size: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size])  # noqa: E731
    graph = onnx.helper.make_graph([node], "g", [tensor("x", 1)], [tensor("y", 40_000)], weights)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "raw.onnx")
    model = io.load_graph(ExportedGraph(tmp_path / "raw.onnx"))
    assert [bool(weight.external_data) for weight in model.graph.initializer] == [True, False]
    assert not io.write_graph(model, tmp_path, tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(written)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    assert np.array_equal(arrays["large"], values)
    assert np.array_equal(arrays["small"], values[:3])
    assert abs(io.count_model_bytes(model) - (tmp_path / "model.onnx").stat().st_size) < 300


def test_a_file_of_weights_that_ends_early_is_an_error(tmp_path):
    values = onnx.numpy_helper.from_array(np.zeros(40_000, np.float32), "large")
    graph = onnx.helper.make_graph([], "g", [], [], [values])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "raw.onnx")
    model = io.load_graph(ExportedGraph(tmp_path / "raw.onnx"))
    with (tmp_path / "raw.onnx.weights").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(EOFError):
        io.write_graph(model, tmp_path, tmp_path / "model.onnx")


def product_with_transposed(tmp_path, *readers, perm=(1, 0)):
    """Return a model that multiplies by a large transposed weight; `readers` are more nodes. Also the values."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = np.arange(200 * 150, dtype=np.float32).reshape(200, 150)
    nodes = [
        helper.make_node("Transpose", ["weight"], ["transposed"], perm=perm),
        helper.make_node("MatMul", ["x", "transposed"], ["y"]),
    ]
    graph = helper.make_graph(
        [*nodes, *readers],
        "g",
        [helper.make_tensor_value_info("x", floats, ["batch", 150 if perm == (1, 0) else 200])],
        [helper.make_tensor_value_info("y", floats, ["batch", None])],
        [onnx.numpy_helper.from_array(values, "weight")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "raw.onnx")
    return io.load_graph(ExportedGraph(tmp_path / "raw.onnx")), values


def test_a_weight_that_is_transposed_before_a_product_is_written_transposed(tmp_path):
    model, values = product_with_transposed(tmp_path)
    io.transpose_weights(model, tmp_path, tmp_path / "transposed.weights")
    assert [(node.op_type, list(node.input)) for node in model.graph.node] == [("MatMul", ["x", "weight"])]
    (weight,) = model.graph.initializer
    assert not weight.raw_data and list(weight.dims) == [150, 200]
    onnx.load_external_data_for_model(model, str(tmp_path))
    assert np.array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), values.T)


@pytest.mark.parametrize(
    ("readers", "perm"),
    [
        ([onnx.helper.make_node("Abs", ["weight"], ["a"])], (1, 0)),
        ([onnx.helper.make_node("Abs", ["transposed"], ["a"])], (1, 0)),
        ([], (0, 1)),
    ],
    ids=["the weight is read as it is", "something else reads it transposed", "the axes stay"],
)
def test_other_weights_stay_as_they_are(tmp_path, readers, perm):
    model, _ = product_with_transposed(tmp_path, *readers, perm=perm)
    before = model.SerializeToString()
    io.transpose_weights(model, tmp_path, tmp_path / "transposed.weights")
    assert model.SerializeToString() == before
