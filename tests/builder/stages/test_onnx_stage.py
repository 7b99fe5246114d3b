"""Candidates for the ONNX model: one whose last pass is wrong, and one that onnxruntime does not load."""

import json
from concurrent.futures import Future

import numpy as np
import onnx
import pytest
from messages import mentions
from projects import FLOATS, LINEAR, project

import packager
from packager.errors import ExportFailed
from packager.export.passes import runner, worker


class WorkerInThisProcess:
    """An ONNX worker without a process of its own, whose last pass is wrong."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def start(self):
        pass

    def cancel(self):
        pass

    def submit(self, job):
        result = Future()
        passes = {**runner.PASSES, "optimize": optimize_and_scale}
        result.set_result(runner.run_passes(job, lambda name: None, passes))
        return result


def optimize_and_scale(model, job):
    """Optimize a graph, and make every weight one percent larger."""
    scaled = runner.PASSES["optimize"](model, job)
    onnx.load_external_data_for_model(scaled, str(job.exported.path.parent))
    for tensor in scaled.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), tensor.name))
    return scaled


def test_a_last_pass_that_breaks_parity_is_dropped_when_the_graph_that_ships_is_checked(tmp_path, monkeypatch):
    text = LINEAR.replace("return self.layer(x)", "return torch.relu(self.layer(x))")
    manifest = project(tmp_path, text, inputs=FLOATS)
    monkeypatch.setattr(worker, "OnnxWorker", WorkerInThisProcess)
    built = packager.build(manifest, tmp_path / "out", cache="off")
    assert packager.verify(built.bundle).ok
    record = json.loads((built.bundle / "evidence/parity.json").read_text())
    stages = {stage["name"]: stage for stage in record["stages"]}
    assert (stages["optimize"]["kept"], stages["optimize"]["verdict"]) == (False, "fail")
    mentions(stages["optimize"]["reason"], "PyTorch")


# onnxruntime lacks a convolution of float64: a graph that it does not load is neither right nor wrong.
FLOAT64 = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 3, 2).double()

    def forward(self, x):
        return self.layer(x[:, None].bfloat16().double()).float()
"""
LOOSE = {"tolerance": {"atol": 0.1, "rtol": 0.1}}


def test_a_graph_that_onnxruntime_does_not_load_is_not_called_wrong(tmp_path, golden):
    with pytest.raises(ExportFailed) as caught:
        packager.build(project(tmp_path, FLOAT64, parity=LOOSE), tmp_path / "out")
    *loaded, script = caught.value.problems
    golden("\n".join(problem.message.partition(": onnxruntime: ")[0] for problem in loaded), "torch-export")
    mentions(script.message, "RuntimeError", "Tensor")
    assert script.where == "model.py:12"


def test_a_bundle_of_torchscript_alone_says_that_the_graph_was_not_checked(tmp_path):
    manifest = project(tmp_path, FLOAT64, parity=LOOSE, export={"exporter": "torchscript", "required": False})
    built = packager.build(manifest, tmp_path / "out")
    assert built.parity == {"onnx": "not-checked", "torchscript": "pass"}
    stages = json.loads((built.bundle / "evidence/parity.json").read_text())["stages"]
    assert [stage["verdict"] for stage in stages if stage["name"].startswith("export")] == ["not-checked"] * 2
