"""Candidates for the ONNX model: one whose last pass is wrong, and one that onnxruntime does not load."""

import json
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import onnx
import pytest
from messages import mentions
from projects import FLOATS, LINEAR, project

import packager
from packager.builder.stages import onnx_export
from packager.errors import ExportFailed, ParityFailed
from packager.export import torchscript
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import ExporterFailed
from packager.export.passes import runner, worker
from packager.project.manifest import load_manifest


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
    assert packager.verify(built.bundle, trust_program=True).ok
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
    assert [stage["verdict"] for stage in stages if stage["name"].startswith("export")] == ["not-checked"] * 3


LACKING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.diff(self.layer(x), dim=1)  # an operator that the exporter of a trace lacks
"""


def test_a_module_is_exported_itself_if_its_trace_cannot_be(tmp_path):
    built = packager.build(project(tmp_path, LACKING), tmp_path / "out")
    record = json.loads((built.bundle / "evidence/parity.json").read_text())
    stages = {stage["name"]: stage["verdict"] for stage in record["stages"] if stage["name"].startswith("export")}
    assert stages == {
        "export: torchscript, from the trace": "not-checked",
        "export: torchscript, from the module": "pass",
    }


def test_the_module_comes_after_its_trace_and_takes_its_place_if_it_cannot_be_traced(tmp_path):
    def order(program, **sections):
        return onnx_export.list_exporters(load_manifest(project(tmp_path, LINEAR, **sections)), program)

    traced = torchscript.TorchScriptProgram("trace", None, SpecializedControlFlow(), has_discrete_decisions=False)
    scripted = replace(traced, method="script")
    assert order(traced) == ("program", "module", "torch-export", "script")
    assert order(scripted) == ("program", "module", "torch-export")
    assert order(None) == ("module", "torch-export")
    assert order(None, export={"exporter": "torchscript"}) == ("module",)
    assert order(None, export={"exporter": "torch-export"}) == ("torch-export",)
    assert order(scripted, torchscript={"method": "script"}) == ("program", "torch-export")


BRANCH = LINEAR.replace("return self.layer(x)", "return self.layer(x) if x.sum() > 0 else -self.layer(x)")


def test_a_module_is_not_exported_itself_if_its_trace_gave_a_wrong_graph(tmp_path):
    manifest = project(tmp_path, BRANCH, export={"exporter": "torchscript"}, torchscript={"method": "none"})
    with pytest.raises(ParityFailed) as caught:
        packager.build(manifest, tmp_path / "out")
    (problem,) = caught.value.problems
    mentions(problem.message, "from the trace")


LOOP = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        states = [x[:, 0]]
        for step in range(x.shape[1]):
            states.append(torch.tanh(self.layer(x[:, step]) + states[-1]))
        return torch.stack(states, 1)
"""


def test_a_loop_over_a_size_is_told_with_the_ways_out_and_no_node_is_blamed(tmp_path, golden):
    inputs = {"x": {"dtype": "float32", "shape": ["batch", "length", 4]}}
    manifest = project(tmp_path, LOOP, inputs=inputs, torchscript={"method": "none"})
    with pytest.raises(ParityFailed) as caught:
        packager.build(manifest, tmp_path / "out")
    golden(caught.value.hint, "length", "model.py:13", "torchscript.method: script")
    assert not any("first wrong" in problem.message for problem in caught.value.problems)
    inputs["x"]["shape"] = ["batch", 3, 4]
    built = packager.build(project(tmp_path, LOOP, inputs=inputs, torchscript={"method": "none"}), tmp_path / "out")
    assert built.parity["onnx"] == "pass"


def test_a_module_that_torch_jit_does_not_trace_is_exported_itself_and_its_branches_are_reported(tmp_path, monkeypatch):
    def fail(*_):
        raise ExporterFailed("RuntimeError: no trace", None)

    monkeypatch.setattr(torchscript, "trace", fail)
    text = LINEAR.replace("return self.layer(x)", "return self.layer(x) if x.sum() > -1e30 else x[:, :3]")
    built = packager.build(project(tmp_path, text, torchscript={"method": "none"}), tmp_path / "out")
    record = json.loads((built.bundle / "evidence/parity.json").read_text())
    assert record["stages"][0]["name"] == "export: torchscript, from the module"
    mentions(" ".join(record["not_checked"]), "model.py:12")


def test_a_size_that_forward_turns_into_a_float_stays_dynamic_with_torch_export(tmp_path):
    text = LINEAR.replace("self.layer(x)", "self.layer(x) * float(x.shape[0])")
    settings = {"export": {"exporter": "torch-export"}, "torchscript": {"method": "none"}}
    bundle = packager.build(project(tmp_path, text, **settings), tmp_path / "out").bundle
    assert packager.verify(bundle, trust_program=True).ok
