"""Evaluating a module in float64 operator by operator: the same numbers as with a float64 copy of its weights."""

import gc

import numpy as np
import pytest
import torch
from loading import load
from projects import project
from torch import nn

from packager.common import output_tree
from packager.parity import forward, noise_variants
from packager.parity.cases.sample_grid import build_grid
from packager.parity.noise_variants import FLOAT64
from packager.parity.widening import WidenedWeights
from packager.project.manifest import load_manifest


class Uses(nn.Module):
    """Uses its weights in every way but by calling a layer: as attributes, views, dtypes, in lists."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("bias", torch.randn(4))

    def forward(self, indices):
        x = self.embedding(indices) @ self.weight.T + self.bias
        x = x.to(self.embedding.weight.dtype) * self.weight[0] + torch.stack([self.bias, self.bias])[0]
        zeros = torch.zeros(self.weight.shape[0], dtype=self.weight.dtype)
        return (x + zeros.copy_(self.bias) + self.bias.data) @ self.embedding.weight.t()


def transformer(name, **settings):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(vocab_size=20, **settings)
    return getattr(transformers, {"T5": "T5EncoderModel"}.get(name, f"{name}Model"))(config)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
INDICES = torch.arange(8).reshape(2, 4)
MODULES = {
    "attributes": (Uses, INDICES),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.GroupNorm(1, 2),
            nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(98, 3)),
        ),
        torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8),
    ),
    "LSTM": (lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True), torch.linspace(0, 1, 32).reshape(2, 4, 4)),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2),
        torch.linspace(-1, 1, 64).reshape(2, 4, 8),
    ),
    "BERT": (lambda: transformer("Bert", **SMALL), INDICES),
    "Llama": (lambda: transformer("Llama", use_cache=False, **SMALL), INDICES),
    "T5": (lambda: transformer("T5", d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2), INDICES),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_the_outputs_are_those_of_the_module_in_float64(name):
    make, inputs = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.inference_mode():
        with WidenedWeights(module):
            widened = output_tree.flatten_outputs(module(inputs))
        assert {tensor.dtype for tensor in module.state_dict().values()} <= {torch.float32, torch.int64}
        expected = output_tree.flatten_outputs(module.double()(inputs))
    for name, tensor in expected.items():
        assert widened[name].dtype == tensor.dtype == torch.float64
        assert torch.allclose(widened[name], tensor, rtol=1e-12, atol=1e-13)


def test_no_wide_copy_outlives_its_operator():
    class Watch(torch.overrides.TorchFunctionMode):
        """Counts the bytes of float64 weights that live at the same time, at every function that torch calls."""

        largest = calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            with torch._C.DisableTorchFunction():  # else a weight says that it is float64
                matrices = [item for item in gc.get_objects() if type(item) is torch.Tensor and item.dim() == 2]
                wide = [item for item in matrices if item.dtype == torch.float64 and len(item) == 64]
            self.calls += 1
            self.largest = max(self.largest, sum(item.nbytes for item in wide))
            return function(*args, **(kwargs or {}))

    module = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
    with torch.inference_mode(), WidenedWeights(module), Watch() as watch:
        module(torch.ones(1, 64, dtype=torch.float64))
    assert watch.largest <= 64 * 64 * 8
    assert watch.calls >= 5


def test_a_large_module_is_measured_against_the_same_float64(tmp_path, monkeypatch):
    path = project(tmp_path)
    model, opened = load(path), load_manifest(path)
    case = build_grid(opened).example_case
    copied = noise_variants._evaluate_float64(opened, model, [case])
    monkeypatch.setattr(noise_variants, "LARGE_BYTES", 0)
    monkeypatch.setattr(noise_variants, "get_state", None)  # would copy
    widened = noise_variants._evaluate_float64(opened, model, [case])
    assert (widened.name, widened.note) == (FLOAT64, "")
    for name, array in copied.outputs[case.name].items():
        assert widened.outputs[case.name][name].dtype == np.float64
        assert np.array_equal(widened.outputs[case.name][name], array)
    assert forward.run_case(opened, model, case)["output_0"].dtype == np.float32
