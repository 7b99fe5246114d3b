"""Both exporters keep what the manifest and forward() say: names, order, dtypes and dynamic dims."""

import itertools
import runpy
from functools import partial

import architectures
import numpy as np
import onnxruntime
import pytest
import torch
from exporting import export
from projects import LINEAR, project, python

from packager.export import exported_program, torchscript, weights
from packager.export import onnx as exporters
from packager.export.exporters import ExporterFailed, disable_attention_fast_path, silence_exporters
from packager.model import loader
from packager.model.inputs import bind_inputs
from packager.parity.cases import sample_grid
from packager.project import manifest

BODIES = {
    "tensor": ("return y", ["output_0"]),
    "tuple": ("return y, x.sum(1)", ["output_0", "output_1"]),
    "list": ("return [y, x.sum(1)]", ["output_0", "output_1"]),
    "dict": ("return {'zebra': y, 'ant': x.sum(1)}", ["zebra", "ant"]),
    "dataclass": ("return Result(y, x.sum(1))", ["logits", "total"]),
    "named tuple": ("return Pair(y, x.sum(1))", ["first", "second"]),
    "nested": ("return {'a': (y, x.sum(1)), 'b': [x.amax(1)]}", ["a.0", "a.1", "b.0"]),
    "named like operators": ("return {'linear': y.sum(1), 'add': y * 2}", ["linear", "add"]),
    "none": ("return {'y': y, 'nothing': None}", ["y"]),
    "int64": ("return y.argmax(1)", ["output_0"]),
    "bool": ("return y > 0", ["output_0"]),
    "float64": ("return y.double()", ["output_0"]),
    "float16": ("return y.half()", ["output_0"]),
    "int32 and uint8": ("return y.argmax(1).int(), (x > 0).to(torch.uint8)", ["output_0", "output_1"]),
    "scalar": ("return y.sum(), x.argmax(), y", ["output_0", "output_1", "output_2"]),
}

SOURCE = """
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


@dataclass
class Result:
    logits: torch.Tensor
    total: torch.Tensor


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, shift):
        y = self.layer(x) + shift
        BODY
"""

INPUTS = {
    "x": {"dtype": "float32", "shape": ["batch", 4]},
    "shift": {"dtype": "float32", "shape": ["batch", 1]},
}


# torch.export takes a second for each: kinds that differ little from others are left out there.
KINDS = [("torchscript", kind) for kind in BODIES]
KINDS += [("torch-export", kind) for kind in BODIES if kind not in ("list", "named tuple", "nested", "none")]


@pytest.mark.parametrize(("exporter", "kind"), KINDS)
def test_an_exported_graph_keeps_names_order_dtypes_and_dims(tmp_path, exporter, kind):
    body, names = BODIES[kind]
    path = project(tmp_path, SOURCE.replace("BODY", body), inputs=INPUTS)
    graph, grid, cases, signed = export(exporter, path, tmp_path)
    session = onnxruntime.InferenceSession(graph)
    assert [value.name for value in session.get_inputs()] == ["x", "shift"]
    assert [value.shape for value in session.get_inputs()] == [["batch", 4], ["batch", 1]]
    assert [value.name for value in session.get_outputs()] == names == [spec.name for spec in signed]
    for case in grid.cases:
        arrays = dict(zip(names, session.run(None, dict(case.inputs)), strict=True))
        for name, expected in cases[case.name].items():
            assert arrays[name].dtype == expected.dtype
            assert arrays[name].shape == expected.shape
            np.testing.assert_allclose(
                arrays[name].astype(np.float64), expected.astype(np.float64), rtol=2e-3, atol=1e-5
            )


@pytest.mark.parametrize("exporter", ["torchscript", "torch-export"])
def test_outputs_are_picked_and_renamed_by_the_manifest(tmp_path, exporter):
    text = SOURCE.replace("BODY", "return {'zebra': y, 'ant': x.sum(1), 'bee': x}")
    picked, *_ = export(
        exporter, project(tmp_path / "a", text, inputs=INPUTS, outputs=["bee", "zebra"]), tmp_path / "a"
    )
    assert [value.name for value in onnxruntime.InferenceSession(picked).get_outputs()] == ["bee", "zebra"]


def test_exporting_a_script_changes_neither_it_nor_later_scripts(tmp_path):
    loaded = manifest.load_manifest(architectures.write(architectures.RESNET, tmp_path))
    with loader.open_model_loader(loaded) as load:
        module = load().module
        first = torchscript.script(module, loaded.folder)
        kept = _saved(first, tmp_path)
        example = bind_inputs(loaded, list(sample_grid.build_grid(loaded).example_case.inputs.values()))
        names = exporters.TensorNames(["image"], ["logits", "features"])
        exporters.export_from_torchscript(loaded, first, names, example, tmp_path / "raw.onnx")
        assert _saved(first, tmp_path) == kept
        assert _saved(torchscript.script(module, loaded.folder), tmp_path) == kept


def _saved(program, folder):
    torchscript.save(program, folder / "saved.ts", fold=True, folder=folder)
    return (folder / "saved.ts").read_bytes()


NODES = """
import pathlib, sys, onnx, torch
from packager.export import onnx as exporters
from packager.export import torchscript
from packager.model import loader
from packager.model.inputs import bind_inputs
from packager.parity.cases import sample_grid
from packager.project import manifest

project, path = manifest.load_manifest(sys.argv[1]), pathlib.Path(sys.argv[2])
example = bind_inputs(project, list(sample_grid.build_grid(project).example_case.inputs.values()))
names = exporters.TensorNames(["idx"], ["logits"])
with loader.open_model_loader(project) as load:
    module = load().module
    for _ in range(2):
        program = torchscript.trace(module, None, example, project.folder)
        exporters.export_from_torchscript(project, program, names, example, path)
        print(*(node.name for node in onnx.load(path).graph.node))
"""


@pytest.mark.slow
def test_nodes_have_the_same_names_in_the_first_graph_of_a_process_and_in_those_after_it(tmp_path):
    done = python(NODES, architectures.write(architectures.GPT, tmp_path), tmp_path / "raw.onnx")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert "/model/0/attn/c_attn/MatMul" in first.split()


def test_weights_that_share_memory_share_their_bytes(tmp_path):
    values = torch.arange(5000.0)
    written = weights.write_weights({"a": values, "b": values, "c": values.clone(), "d": values[::2]}, tmp_path / "w")
    by_name = {weight.name: weight for weight in written}
    assert by_name["a"].offset == by_name["b"].offset != by_name["c"].offset
    assert all(weight.offset % 4096 == 0 for weight in written)
    content = (tmp_path / "w").read_bytes()
    for name, expected in (("c", values), ("d", values[::2])):
        weight = by_name[name]
        assert content[weight.offset : weight.offset + weight.length] == expected.numpy().tobytes()


def test_an_exporter_that_fails_prints_nothing(tmp_path, capfd):
    text = LINEAR.replace("self.layer(x)", "torch.linalg.qr(self.layer(x)).R")
    loaded = manifest.load_manifest(project(tmp_path, text))
    with loader.open_model_loader(loaded) as load, silence_exporters():
        module = load().module
        example = bind_inputs(loaded, list(sample_grid.build_grid(loaded).example_case.inputs.values()))
        program = torchscript.trace(module, None, example, tmp_path)
        names = exporters.TensorNames(["x"], ["output_0"])
        make_program = partial(exported_program.export, loaded, module, example)
        for write in (
            partial(exporters.export_from_torchscript, loaded, program),
            partial(exporters.export_from_module, loaded, module),
            partial(exporters.export_with_torch_export, loaded, module, make_program),
        ):
            with pytest.raises(ExporterFailed, match="linalg_qr"):
                write(names, example, tmp_path / "raw.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_transformer_encoder_is_exported_from_its_trace_at_every_size(tmp_path):
    text = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x):
        return self.encoder(x)
"""
    path = project(tmp_path, text, inputs={"x": {"dtype": "float32", "shape": ["batch", "length", 8]}})
    graph, grid, cases, _ = export("torchscript", path, tmp_path)
    session = onnxruntime.InferenceSession(graph)
    for case in grid.cases:
        (actual,) = session.run(None, dict(case.inputs))
        np.testing.assert_allclose(actual, cases[case.name]["output_0"], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "exporter"),
    [
        *itertools.product(["", ", norm=nn.LayerNorm(8)"], ["torchscript", "module"]),
        ("", "torch-export"),
        pytest.param(", norm=nn.LayerNorm(8)", "torch-export", marks=pytest.mark.slow),  # seconds, for one more layer
    ],
)
def test_a_transformer_encoder_zeroes_padding_as_its_fast_path_does(tmp_path, exporter, norm):
    text = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2NORM)

    def forward(self, x, valid):
        return self.encoder(x, src_key_padding_mask=valid == 0)
"""
    x = {"dtype": "float32", "shape": ["batch", "length", 8]}
    valid = {"dtype": "int64", "shape": ["batch", "length"], "range": [1, 2]}  # else a mask is all zeros, which raises
    path = project(tmp_path, text.replace("NORM", norm), inputs={"x": x, "valid": valid}, dims={"length": {"max": 16}})
    graph, _, _, _ = export(exporter, path, tmp_path)
    session = onnxruntime.InferenceSession(graph)
    torch.manual_seed(0)
    module = runpy.run_path(str(tmp_path / "model.py"))["Net"]().eval()
    rows = {
        "packed": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
        "one row on the left": [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]],
        "whole": [[1, 1]],
        "single": [[1]],
    }
    outputs = {}
    for name, mask in rows.items():
        mask = torch.tensor(mask)
        inputs = torch.randn(*mask.shape, 8), mask
        with torch.inference_mode():
            outputs[name] = module(*inputs)
        (actual,) = session.run(None, {"x": inputs[0].numpy(), "valid": inputs[1].numpy()})
        np.testing.assert_allclose(actual, outputs[name], rtol=1e-4, atol=1e-5)
    assert (outputs["packed"][0, 3:] == 0).all()
    assert (outputs["one row on the left"][1, 2:] != 0).all()


def test_the_fast_path_of_attention_is_on_again_after_an_export_that_fails():
    def fail():
        assert not torch.backends.mha.get_fastpath_enabled()
        raise ZeroDivisionError

    forward = torch.nn.TransformerEncoder.forward
    with pytest.raises(ZeroDivisionError), disable_attention_fast_path():
        fail()
    assert torch.nn.TransformerEncoder.forward is forward
    assert torch.backends.mha.get_fastpath_enabled()
