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
