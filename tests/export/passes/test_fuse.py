"""Fused operators compute what the module computes."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from projects import project

import packager
from packager.export.graph import io
from packager.export.graph.messages import ExportedGraph, OptimizeJob
from packager.export.passes import fuse
from packager.parity.numerics.tolerances import NOISE_MULTIPLE

GELU = """
from torch import nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.outer = nn.Linear(16, 8)

    def forward(self, x):
        return self.outer(F.gelu(self.inner(x), approximate={approximate!r}))
"""


@pytest.mark.parametrize(("approximate", "fused"), [("none", "BiasGelu"), ("tanh", "FastGelu")])
def test_a_gelu_and_its_bias_become_the_gelu_that_the_module_has(tmp_path, approximate, fused):
    """The two differ by 4e-4 at most, hundreds of noise floors: the graph that ships is within a few."""
    inputs = {"x": {"dtype": "float32", "shape": ["batch", "length", 8]}}
    path = project(tmp_path / "project", GELU.format(approximate=approximate), inputs=inputs)
    built = packager.build(path, tmp_path / "out")
    operators = [node.op_type for node in onnx.load(built.bundle / "model.onnx").graph.node]
    assert {"Gelu", "BiasGelu", "FastGelu"} & {*operators} == {fused}
    record = json.loads((built.bundle / "evidence/parity.json").read_text())
    stages = {stage["name"]: stage for stage in record["stages"]}
    assert (stages["fuse"]["kept"], stages["fuse"]["verdict"]) == (True, "pass")
    errors = record["backends"]["onnx"]["outputs"]["output_0"]
    floors = NOISE_MULTIPLE * max(errors["of_limit"], errors["of_limit_float64"])
    assert 0 < floors < 4


def test_weights_that_no_fusion_reads_stay_in_their_file(tmp_path, monkeypatch):
    """Otherwise a graph with more than 2 GB of them would not be a protobuf any more."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Transpose", ["weight"], ["transposed"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "transposed"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["y"]),
    ]
    weights = {"weight": np.ones((256, 128), np.float32), "bias": np.ones(256, np.float32)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", floats, ["batch", 3, 128])],
        [helper.make_tensor_value_info("y", floats, ["batch", 3, 256])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    exported = tmp_path / "raw.onnx"
    onnx.save(model, exported)
    job = OptimizeJob(
        ExportedGraph(exported), tmp_path / "model.onnx", simplify=True, level="extended", inputs={}, outputs={},
        providers=["CPUExecutionProvider"], skipped_passes={}, reference_cases=(),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path.parent)
    fused = fuse.fuse_operators(io.load_graph(job.exported), job)
    assert [node.op_type for node in fused.graph.node] == ["MatMul", "BiasGelu"]
    (weight,) = [tensor for tensor in fused.graph.initializer if tensor.name == "weight"]
    assert not weight.raw_data
    assert {entry.key: entry.value for entry in weight.external_data}["location"] == "transposed.weights"
    assert (tmp_path / "fused.weights").stat().st_size == 0
    assert Path.cwd() == tmp_path.parent
