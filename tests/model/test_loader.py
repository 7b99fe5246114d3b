"""Manifest and checkpoint in, the eager module out."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load, refused, zero_project
from projects import LINEAR, project

import packager
from packager.errors import StateDoesNotFit, WeightsNotFound
from packager.model import loader
from packager.project import manifest


def test_the_module_is_in_eval_mode_on_the_cpu_without_gradients(tmp_path):
    text = LINEAR.replace(
        "self.layer = nn.Linear(4, 3)", "self.layer = nn.Linear(4, 3)\n        self.drop = nn.Dropout()"
    )
    module = load(project(tmp_path, text)).module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert {str(parameter.device) for parameter in module.parameters()} == {"cpu"}


def test_compiled_functions_run_eagerly_while_the_loader_is_open(tmp_path):
    text = LINEAR.replace("    def forward", "    @torch.compile(backend=refuse)\n    def forward")
    text = text.replace("class Net", "def refuse(graph, inputs):\n    raise AssertionError('compiled')\n\n\nclass Net")
    path = project(tmp_path, text, state={"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)})
    with loader.open_model_loader(manifest.load_manifest(path)) as opening:
        module = opening().module
        assert torch.equal(module(torch.ones(1, 4)), torch.full((1, 3), 4.0))
    with pytest.raises(Exception, match="compiled"):  # the caller's process is as it was
        module(torch.ones(5, 4))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_file_leaves_memory_if_the_module_has_copies_of_its_tensors(tmp_path):
    # Random numbers keep the constructor off the meta device, so that the values are copied into its parameters.
    text = LINEAR.replace("super().__init__()", "super().__init__()\n        self.seed = torch.rand(1)")
    loaded = load(project(tmp_path, text))
    gc.collect()
    assert str(tmp_path / "best.pt") not in Path("/proc/self/maps").read_text()
    assert loaded.key_match.prefix == ""


def test_missing_weights_are_reported_at_the_field_that_asks_for_them(tmp_path):
    path = project(tmp_path, checkpoint={"path": "best.pt", "weights": "ema"})
    assert refused(path, WeightsNotFound).where.endswith(": checkpoint.weights")


SCRIPTED = (
    LINEAR
    + """

def scripted():
    return torch.jit.script(Net())


def traced():
    return torch.jit.trace(Net().eval(), torch.zeros(2, 4))


def frozen():
    return torch.jit.freeze(scripted().eval())
"""
)


@pytest.mark.parametrize("entry", ["model.py:scripted", "model.py:traced"])
def test_an_entry_that_returns_a_script_module_gets_the_weights_of_the_checkpoint(tmp_path, entry):
    path = zero_project(tmp_path, SCRIPTED, entry=entry)
    model = load(path)
    assert model.parameters == 15
    assert torch.equal(model.module(torch.ones(2, 4)), torch.zeros(2, 3))
    bundle = packager.load(packager.build(path, tmp_path / "out").bundle)
    assert not bundle.run({"x": np.ones((2, 4), np.float32)})["output_0"].any()


def test_a_script_module_without_weights_of_its_own_is_refused(tmp_path, golden):
    error = refused(zero_project(tmp_path, SCRIPTED, entry="model.py:frozen"), StateDoesNotFit)
    golden(error.why, "model.py:frozen", "ScriptModule")
    golden(error.hint, "torch.jit.freeze()")


WITHOUT_WEIGHTS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor([1.0, 0.0, -1.0, 2.0]), persistent=False)

    def forward(self, x):
        return x / x.abs().amax(1, keepdim=True).clamp_min(0.1) + self.shift
"""


def test_a_module_without_weights_is_built_from_an_empty_state_dict(tmp_path):
    path = project(tmp_path, WITHOUT_WEIGHTS)
    assert load(path).parameters == 0
    bundle = packager.load(packager.build(path, tmp_path / "out").bundle)
    output = bundle.run({"x": np.array([[2, 1, 0, -4]], np.float32)})["output_0"]
    np.testing.assert_allclose(output, [[1.5, 0.25, -1, 1]], rtol=1e-6)


@pytest.mark.parametrize("settings", [{"strict": False}, {"allow_missing": ["*"]}, {}], ids=str)
def test_an_empty_state_dict_of_a_module_with_weights_is_refused(tmp_path, golden, settings):
    path = project(tmp_path, state={}, checkpoint={"path": "best.pt", **settings})
    error = refused(path, WeightsNotFound)
    assert error.where.endswith(": checkpoint.weights")
    golden(error.why, "layer.weight", "layer.bias")


def test_a_tensor_that_a_module_without_weights_has_no_place_for_is_refused(tmp_path):
    path = project(tmp_path, WITHOUT_WEIGHTS, state={"scale": torch.ones(1)})
    refused(path, StateDoesNotFit)
