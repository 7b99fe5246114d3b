"""Every way to evaluate a module, on the case where an artifact failed."""

import math

import numpy as np
import pytest
import torch
from projects import LINEAR, RECURRENT

from packager.parity import noise_variants as noises
from packager.parity.cost import ForwardCost
from packager.parity.reference import measure_noise, measure_reference
from packager.parity.remeasurement import remeasure_case

EXPENSIVE = ForwardCost(1 << 34, 0.0)
AUDIO = {"x": {"dtype": "float32", "shape": ["batch", 400], "range": [-1, 1]}}
NORMALIZED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(1, 16, 10, 5), nn.GroupNorm(16, 16)

    def forward(self, x):
        return torch.relu(self.norm(self.convolution(x[:, None]))).mean(2)
"""


def remeasured(opened, text, kind, inputs=None):
    """Return the noise of an expensive module's case of this kind, and its tolerance before."""
    project, model, grid = opened(text, *([] if inputs is None else [inputs]))
    noise = measure_noise(project, model, grid, {}, EXPENSIVE)
    reference = measure_reference(project, model, grid, noise, probe=(), has_discrete_decisions=False)
    pairs = zip(reference.cases, reference.reference_cases, strict=True)
    case, expected = next(pair for pair in pairs if pair[0].value_description == kind)
    return remeasure_case(project, model, case, expected)["output_0"], expected.tolerances["output_0"]


def test_a_case_is_evaluated_in_every_way(opened):
    torch.set_num_threads(2)
    parts, _ = remeasured(opened, LINEAR, "random")
    assert list(parts) == [
        noises.FLOAT64,
        noises.ONE_THREAD,
        noises.ROW_BY_ROW,
        noises.PLAIN_KERNELS,
        noises.PERTURBED_PARAMETERS,
        noises.ROUNDED_RESULTS,
        noises.FLUSHED_SUBNORMALS,
    ]
    assert max(parts.values()) < 1e-5


def test_noise_that_only_constant_values_show_is_found(opened):
    """A group normalization divides what rounding left of a constant channel by almost nothing."""
    parts, before = remeasured(opened, NORMALIZED, "high", AUDIO)
    assert 8 * max(parts.values()) > 10 * before.rtol
    parts, _ = remeasured(opened, NORMALIZED, "random", AUDIO)
    assert max(parts.values()) < 1e-5


def test_what_becomes_of_subnormal_numbers_is_noise(opened):
    text = LINEAR.replace(
        "self.layer(x)", "self.layer(x) + (x.clamp(-1e-25, 1e-25) * 2.0**-60 * 2.0**127 * 2.0**17).sum(1, keepdim=True)"
    )
    parts, _ = remeasured(opened, text, "vanishing")
    assert parts[noises.FLUSHED_SUBNORMALS] > 0.1


def test_the_module_and_its_settings_are_left_as_they_were(opened):
    project, model, grid = opened(RECURRENT)
    threads = torch.get_num_threads()
    state = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    noise = measure_noise(project, model, grid, {}, EXPENSIVE)
    reference = measure_reference(project, model, grid, noise, probe=(), has_discrete_decisions=False)
    remeasure_case(project, model, reference.cases[0], reference.reference_cases[0])
    assert torch.get_num_threads() == threads
    assert torch.backends.mkldnn.enabled
    assert torch.tensor([1e-40]).mul(2)[0] > 0  # not flushed
    assert all(torch.equal(state[name], tensor) for name, tensor in model.module.state_dict().items())


def test_rounding_at_random_moves_every_result_but_no_position(opened):
    text = LINEAR.replace(
        "self.layer(x)", "self.layer(x) + self.layer.weight[torch.arange(3).float().mul(1).long(), 0]"
    )
    parts, _ = remeasured(opened, text, "random")
    assert 0.0 < parts[noises.ROUNDED_RESULTS] < 8 * np.finfo(np.float32).eps


TRANSFORMS = {
    "half a spectrum": "torch.fft.rfft(y)",
    "two dims": "torch.fft.fft2(y[:, None] * y[:, :, None])",
    "two dims by name": "torch.fft.rfftn(y[:, None] * y[:, :, None], dim=(1, 2))",
    "frames": "torch.stft(y.repeat(1, 8) ** (torch.arange(24) % 5), 12, return_complex=True)",
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_coefficient_is_as_uncertain_as_the_largest_one_is_large(opened, name):
    transformed = f"{TRANSFORMS[name]}.abs().clamp_min(1e-12).log10()"
    text = LINEAR.replace("return self.layer(x)", f"y = self.layer(x)\n        return {transformed}")
    ordinary, _ = remeasured(opened, text, "random")
    assert ordinary[noises.ROUNDED_RESULTS] < 1e-4
    uncertain, _ = remeasured(opened, text.replace("self.layer(x)\n", "self.layer(x) * 0 + 1\n"), "random")
    assert uncertain[noises.ROUNDED_RESULTS] > 0.1


@pytest.mark.parametrize("kind", ["random", "extremes"])
def test_noise_is_the_same_every_time(opened, kind):
    first, _ = remeasured(opened, NORMALIZED, kind, AUDIO)
    second, _ = remeasured(opened, NORMALIZED, kind, AUDIO)
    assert first == second


ATTENTION = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, mask):
        return self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
"""
MASKED = {
    "x": {"dtype": "float32", "shape": ["batch", "length", 8]},
    "mask": {"dtype": "bool", "shape": ["batch", "length"]},
}


def test_a_case_that_is_nan_only_on_the_fast_path_of_attention_proves_nothing(opened):
    parts, _ = remeasured(opened, ATTENTION, "low", MASKED)
    assert [name for name, difference in parts.items() if math.isinf(difference)] == [noises.UNFUSED_ATTENTION]
    assert torch.backends.mha.get_fastpath_enabled()
    parts, _ = remeasured(opened, ATTENTION, "high", MASKED)
    assert max(parts.values()) < 1e-5


def test_infinity_that_only_float64_reaches_a_number_for_is_no_uncertainty(opened):
    parts, _ = remeasured(opened, LINEAR.replace("self.layer(x)", "(100 + 0 * self.layer(x)).exp()"), "random")
    assert max(parts.values()) == 0.0


def test_attention_with_a_mask_of_float32_that_the_module_makes_is_right_in_float64(opened):
    """The fused kernel reads a float32 mask beside a float64 query as if it were float64, from a length of 16."""
    masked = "torch.zeros(len(x), 1, 1, 16).masked_fill(y[:, None, :, :1].mT < 0, float('-inf'))"
    text = LINEAR.replace(
        "return self.layer(x)",
        f"y = self.layer(x)[:, None] * torch.linspace(-1, 1, 16)[:, None]\n"
        f"        return nn.functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None], {masked})",
    )
    parts, _ = remeasured(opened, text, "random")
    assert parts[noises.FLOAT64] < 1e-5
