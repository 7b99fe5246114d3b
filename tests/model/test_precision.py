"""Modules in bfloat16 and float16, and the dtype that the manifest asks for."""

import json

import numpy as np
import pytest
import torch
from loading import load, refused
from messages import mentions
from projects import manifest, project

import packager
from packager.builder.vet import vet
from packager.common.progress import Note
from packager.errors import ForwardFailed, OutputsUnsupported, WeightsNotFinite
from packager.model import precision
from packager.parity import forward
from packager.parity.cases.sample_grid import build_grid
from packager.project.manifest import load_manifest
from packager.runtime.torchscript_backend import TorchScriptBackend

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, dtype="bfloat16"):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.to(getattr(torch, dtype))

    def forward(self, x):
        x = BEFORE
        y = self.last(torch.relu(self.norm(self.first(x))))
        return AFTER
"""
X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def net(before="x", after="y"):
    return NET.replace("BEFORE", before).replace("AFTER", after)


def floats(dtype):
    return {"x": {"dtype": dtype, "shape": ["batch", 4]}}


def in_float32(folder, x=X):
    """What the project's module returns with its weights in float32, computed by torch alone."""
    state = {name: tensor.float() for name, tensor in torch.load(folder / "best.pt").items()}
    first, weight = torch.nn.functional.linear, {name: state[f"{name}.weight"] for name in ("first", "norm", "last")}
    hidden = first(torch.from_numpy(x), weight["first"], state["first.bias"])
    hidden = torch.nn.functional.layer_norm(hidden, (8,), weight["norm"], state["norm.bias"])
    return first(hidden.relu(), weight["last"], state["last.bias"]).numpy()


def build(path, **options):
    """Build a project; returns the result, the loaded bundle and the notes."""
    notes = []
    result = packager.build(
        path,
        path.parent / "dist",
        listener=lambda event: notes.append(event.message) if isinstance(event, Note) else None,
        **options,
    )
    return result, packager.load(result.bundle), notes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("before", "after"),
    [("x", "y"), ("x.to(torch.bfloat16)", "y"), ("x.bfloat16()", "y.float()"), ("x", "y.type(torch.bfloat16)")],
)
def test_a_module_in_bfloat16_is_packaged_in_float32_with_the_same_weights(tmp_path, dtype, before, after):
    path = project(tmp_path, net(before, after), inputs=floats(dtype))
    x = torch.from_numpy(X).bfloat16().float().numpy()
    result, bundle, notes = build(path)
    assert result.parity == {"onnx": "pass", "torchscript": "pass"}
    assert [tensor["dtype"] for tensor in (*bundle.inputs, *bundle.outputs)] == [dtype, "float32"]
    outputs = bundle.run({"x": x})["output_0"]
    assert np.allclose(outputs, in_float32(tmp_path, x), atol=1e-6)
    assert mentions(notes[0], "bfloat16", "float32", "exactly")
    assert bundle.config["source"]["dtype"] == "float32"
    reference = json.loads((result.bundle / "evidence/parity.json").read_text())["reference"]
    assert mentions(reference, "in float32", "its own bfloat16", "rounding")
    assert reference in (result.bundle / "README.md").read_text()
    assert packager.verify(result.bundle, trust_program=True).ok


def test_the_fallback_of_a_module_in_bfloat16_takes_the_same_arrays(tmp_path):
    path = project(tmp_path, net("x.bfloat16()"), inputs=floats("bfloat16"))
    result, _, _ = build(path)
    backend = TorchScriptBackend(
        result.bundle / "model.ts", inputs=[("x", "bfloat16")], output_names=["output_0"], optimize=False
    )
    x = torch.from_numpy(X).bfloat16().float().numpy()
    assert np.allclose(backend.run({"x": x})["output_0"], in_float32(tmp_path, x), atol=1e-6)


def test_the_other_exporter_sees_the_module_in_float32_too(tmp_path):
    path = project(tmp_path, net("x.to(torch.bfloat16)"), export={"exporter": "torch-export"})
    _, bundle, _ = build(path)
    assert bundle.backend == "onnx"
    assert np.allclose(bundle.run({"x": X})["output_0"], in_float32(tmp_path), atol=1e-6)


AUTOCAST = net().replace("        y = ", '        with torch.autocast("cpu", dtype=torch.bfloat16):\n            y = ')


@pytest.mark.parametrize("source", [net("x", "y.to(torch.bfloat16)"), AUTOCAST], ids=["cast", "autocast"])
def test_a_module_in_float32_that_returns_bfloat16_computes_in_float32_throughout(tmp_path, source):
    path = project(tmp_path, source, kwargs={"dtype": "float32"})
    _, bundle, notes = build(path)
    assert bundle.outputs[0]["dtype"] == "float32"
    assert np.allclose(bundle.run({"x": X})["output_0"], in_float32(tmp_path), atol=1e-6)
    assert mentions(notes[0], "bfloat16", "float32")
    assert mentions(vet(path).notes[0], "bfloat16", "float32")
    path.write_text(path.read_text() + "torchscript: {method: trace}\noptimize: {level: none}\n")
    result, bundle, again = build(path)  # the reference is in the cache, and forward() does not run
    assert result.recalled >= {"reference"}
    assert again[0] == notes[0]
    assert bundle.config["source"]["dtype"] == "float32"
    assert np.allclose(bundle.run({"x": X})["output_0"], in_float32(tmp_path), atol=1e-6)


def test_a_module_that_is_scripted_is_in_float32_too(tmp_path):
    branches = net("x if x.sum() > 0 else -x")
    _, bundle, _ = build(project(tmp_path, branches, torchscript={"method": "script"}))
    for x in (np.abs(X), -np.abs(X)):
        assert np.allclose(bundle.run({"x": x})["output_0"], in_float32(tmp_path, np.abs(x)), atol=1e-6)


def test_recurrent_weights_in_bfloat16_are_widened_in_every_list_that_the_layer_keeps(tmp_path):
    source = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 3, batch_first=True).to(torch.bfloat16)

    def forward(self, x):
        return self.rnn(x[:, None].to(torch.bfloat16))[0]
"""
    path = project(tmp_path, source)
    _, bundle, _ = build(path)
    rnn = torch.nn.LSTM(4, 3, batch_first=True)
    rnn.load_state_dict({name.removeprefix("rnn."): t.float() for name, t in torch.load(tmp_path / "best.pt").items()})
    with torch.no_grad():
        expected = rnn(torch.from_numpy(X)[:, None])[0].numpy()
    assert np.allclose(bundle.run({"x": X})["output_0"], expected, atol=1e-6)


# -- model.dtype ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("before", ["x", "x.half()"])
def test_a_module_in_float16_is_packaged_in_float32_if_the_manifest_says_so(tmp_path, dtype, before):
    model = {"entry": "model.py:Net", "kwargs": {"dtype": "float16"}, "dtype": "float32"}
    path = project(tmp_path, net(before), inputs=floats(dtype), kwargs={"dtype": "float16"})
    path = manifest(tmp_path, inputs=floats(dtype), model=model)
    _, bundle, notes = build(path)
    x = X.astype(dtype)
    outputs = bundle.run({"x": x})["output_0"]
    assert outputs.dtype == np.float32
    assert np.allclose(outputs, in_float32(tmp_path, x.astype(np.float32)), atol=1e-6)
    assert mentions(notes[0], "float16", "float32", "model.dtype")


def test_a_module_in_float16_stays_so_by_itself(tmp_path):
    path = project(tmp_path, net(), inputs=floats("float16"), kwargs={"dtype": "float16"})
    _, bundle, notes = build(path)
    outputs = bundle.run({"x": X.astype(np.float16)})["output_0"]
    assert outputs.dtype == np.float16
    assert np.allclose(outputs, in_float32(tmp_path, X.astype(np.float16).astype(np.float32)), atol=5e-3)
    assert not notes
    assert bundle.config["source"]["dtype"] is None


@pytest.mark.parametrize("own", ["float32", "bfloat16"])
def test_a_module_is_converted_to_float16(tmp_path, own):
    project(tmp_path, net(), kwargs={"dtype": own})
    model = {"entry": "model.py:Net", "kwargs": {"dtype": own}, "dtype": "float16"}
    result, bundle, notes = build(manifest(tmp_path, inputs=floats("float16"), model=model))
    outputs = bundle.run({"x": X.astype(np.float16)})["output_0"]
    assert outputs.dtype == np.float16
    assert np.allclose(outputs, in_float32(tmp_path), atol=2e-2)
    assert bundle.config["source"]["dtype"] == "float16"
    assert mentions(notes[0], own, "float16", "model.dtype")
    reference = json.loads((result.bundle / "evidence/parity.json").read_text())["reference"]
    assert mentions(reference, f"converted from {own} to float16", "model.dtype")


def test_a_float32_input_of_a_module_in_float16_is_not_rounded_silently(tmp_path):
    project(tmp_path, net(), kwargs={"dtype": "float32"})
    model = {"entry": "model.py:Net", "kwargs": {"dtype": "float32"}, "dtype": "float16"}
    with pytest.raises(ForwardFailed, match="Half"):
        vet(manifest(tmp_path, model=model))


def test_weights_beyond_float16_are_refused_at_the_field(tmp_path):
    project(tmp_path, net(), state={"first.weight": torch.full((8, 4), 7e4)}, kwargs={"dtype": "float32"})
    model = {"entry": "model.py:Net", "kwargs": {"dtype": "float32"}, "dtype": "float16"}
    path = manifest(tmp_path, model=model, checkpoint={"path": "best.pt", "strict": False})
    error = refused(path, WeightsNotFinite)
    assert error.where.endswith(": model.dtype")
    assert "first.weight" in str(error)


def test_inputs_are_widened_to_the_dtype_of_the_module(tmp_path):
    project(tmp_path, net().replace("self.norm(self.first(x))", "self.first(x)"), kwargs={"dtype": "float32"})
    model = {"entry": "model.py:Net", "kwargs": {"dtype": "float32"}, "dtype": "float64"}
    _, bundle, _ = build(manifest(tmp_path, model=model))
    assert bundle.outputs[0]["dtype"] == "float64"
    state = {name: tensor.double() for name, tensor in torch.load(tmp_path / "best.pt").items()}
    hidden = torch.nn.functional.linear(torch.from_numpy(X).double(), state["first.weight"], state["first.bias"])
    expected = torch.nn.functional.linear(hidden.relu(), state["last.weight"], state["last.bias"]).numpy()
    assert np.allclose(bundle.run({"x": X})["output_0"], expected, rtol=1e-12, atol=1e-13)


def test_another_dtype_is_another_build(tmp_path):
    project(tmp_path, net())
    model = {"entry": "model.py:Net"}
    first, _, _ = build(manifest(tmp_path, inputs=floats("float16"), model={**model, "dtype": "float16"}))
    second, bundle, _ = build(manifest(tmp_path, inputs=floats("float16"), model={**model, "dtype": "float32"}))
    assert not second.cached
    assert first.fingerprint != second.fingerprint
    assert bundle.outputs[0]["dtype"] == "float32"


# -- the hooks --------------------------------------------------------------------------------


def test_nothing_else_is_converted(tmp_path):
    module = torch.nn.Module()
    for name, dtype in {"a": torch.bfloat16, "b": torch.float16, "c": torch.int64, "d": torch.complex64}.items():
        module.register_buffer(name, torch.ones(2, dtype=dtype))
    conversion = precision.convert_module(module, None)
    assert conversion == precision.Conversion(("bfloat16",), "float32", False)
    dtypes = [buffer.dtype for buffer in module.buffers()]
    assert dtypes == [torch.float32, torch.float16, torch.int64, torch.complex64]


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_module_in_float32_gets_no_hooks(dtype):
    module = torch.nn.Linear(2, 2)
    assert precision.convert_module(module, dtype) is None
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_bfloat16_is_as_it_was_after_forward_has_raised(tmp_path):
    path = project(tmp_path, net('x if len(x) > 1 else torch.ones(1, dtype=torch.bfloat16) @ "x"'))
    model = load(path)
    with pytest.raises(TypeError):
        model.module(torch.ones(1, 4))
    assert torch.ones(1, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert model.module(torch.ones(2, 4)).dtype == torch.float32
    assert torch.ones(1).bfloat16().dtype == torch.bfloat16


def test_the_noise_of_a_module_that_names_bfloat16_is_measured_in_float64(tmp_path):
    path = project(tmp_path, net("x.to(torch.bfloat16)"))
    model, opened = load(path), load_manifest(path)
    case = build_grid(opened).example_case
    state = {name: tensor.double() for name, tensor in forward.get_state(model.module).items()}
    outputs = forward.run_with_state(opened, model.module, state, case, widen=True)
    assert outputs["output_0"].dtype == np.float64


def test_bfloat16_that_no_hook_sees_is_still_refused(tmp_path):
    source = net("x", "Cast()(y)").replace(
        "class Net", "@torch.jit.script\ndef cast(y):\n    return y.to(torch.bfloat16)\n\n\nclass Net"
    )
    path = project(tmp_path, source.replace("Cast()(y)", "cast(y)"), kwargs={"dtype": "float32"})
    with pytest.raises(OutputsUnsupported, match="bfloat16"):
        vet(path)


# -- transformers -----------------------------------------------------------------------------

TOKENS = {"input_ids": {"dtype": "int64", "shape": ["batch", "length"], "range": [0, 50]}}
DIMS = {"batch": {"max": 3}, "length": {"max": 12}}
LLAMA = """
import torch
from transformers import LlamaConfig, LlamaModel


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        config = LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, attn_implementation="eager", use_cache=False,
        )
        self.llama = LlamaModel(config).to(torch.bfloat16)

    def forward(self, input_ids):
        return self.llama(input_ids).last_hidden_state
"""


def test_a_transformers_module_in_bfloat16_is_packaged_in_float32(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = project(tmp_path, LLAMA, inputs=TOKENS, dims=DIMS)
    _, bundle, notes = build(path)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    llama = transformers.LlamaModel(config).eval()
    state = torch.load(tmp_path / "best.pt")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    llama.load_state_dict({name.removeprefix("llama."): tensor.float() for name, tensor in state.items()})
    ids = np.arange(14).reshape(2, 7)
    with torch.no_grad():
        expected = llama(torch.from_numpy(ids)).last_hidden_state.numpy()
    assert np.allclose(bundle.run({"input_ids": ids})["output_0"], expected, atol=1e-5)
    assert mentions(notes[0], "bfloat16", "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_hugging_face_folder_that_was_saved_narrow_says_that_it_is_packaged_in_float32(tmp_path, dtype):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).to(getattr(torch, dtype)).eval()
    model.save_pretrained(tmp_path / "bert")
    path = manifest(tmp_path, inputs=TOKENS, dims=DIMS, model={}, checkpoint={"path": "bert"})
    result, bundle, notes = build(path)
    ids = np.arange(10).reshape(2, 5)
    with torch.no_grad():
        expected = model.float()(torch.from_numpy(ids)).logits.numpy()
    assert np.allclose(bundle.run({"input_ids": ids})["logits"], expected, atol=1e-5)
    assert mentions(notes[0], dtype, "float32")
    assert bundle.config["source"]["dtype"] == "float32"
    assert dtype in json.loads((result.bundle / "evidence/parity.json").read_text())["reference"]
