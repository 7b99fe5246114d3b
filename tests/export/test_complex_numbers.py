"""A module that computes with complex numbers is exported as one that computes with their parts."""

import numpy as np
import onnxruntime
import pytest
import torch
from exporting import export
from projects import project

from packager.export import complex_numbers

Z = torch.complex(
    torch.tensor([[3.0, -1.5, 2.0], [0.5, 1.0, -2.0]]), torch.tensor([[0.5, -2.0, 1.0], [1.5, 0.25, 3.0]])
)
W = Z.flip(0) + (0.5 - 1.5j)
X = torch.tensor([[3.0, -1.5, 2.0], [0.5, 1.0, -2.0]])
MASK = X > 0

# By the name of the rule: functions of complex and real tensors, whose operators have that rule.
CALLS = {
    "abs": lambda: Z.abs(),
    "add": lambda: (Z + X[:1]) + (1 + W) + (X + 2j),
    "angle": lambda: Z.angle(),
    "cat": lambda: torch.cat((Z, X, W)),
    "complex": lambda: torch.complex(X, X + 1),
    "conj": lambda: Z.conj() * W,
    "copy_": lambda: torch.zeros(2, 3, dtype=torch.complex64).copy_(Z * 1j),
    "div": lambda: Z / W + Z / 2 + Z / X + 1 / W + X / W,
    "div_": lambda: (Z * 1).div_(W),
    "einsum": lambda: torch.einsum("ij,kj->ik", Z, W) + torch.einsum("ij->i", Z),
    "exp": lambda: torch.exp(Z),
    "imag": lambda: torch.imag(Z) + (Z * X).imag,
    "masked_fill": lambda: Z.masked_fill(MASK, 1.5),
    "matmul": lambda: Z @ W.mT + Z @ W.mH + Z @ W.T,
    "mul": lambda: Z * W + Z * X + X * Z + 2 * Z + 1j * X,
    "mul_": lambda: (Z * 1).mul_(W),
    "polar": lambda: torch.polar(X.abs(), X),
    "pow": lambda: Z**2,
    "real": lambda: torch.real(Z) + (Z * X).real,
    "reciprocal": lambda: Z.reciprocal(),
    "slice": lambda: Z[1:, ::2].unsqueeze(0).expand(2, 1, 2),
    "square": lambda: Z.square(),
    "stack": lambda: torch.stack((Z, X), 1),
    "sub": lambda: Z - W - X - 1j,
    "sum": lambda: Z.sum(1) + Z.mean(0)[:2],
    "tanh": lambda: torch.tanh(Z) + torch.tanh(Z * 30),
    "tiny numbers": lambda: (Z * 1e-30).abs() * 1e30,
    "to": lambda: X.to(torch.complex64) * Z + Z.to(torch.complex128).to(torch.complex64) + (X * 1j).to(torch.float32),
    "unbind": lambda: sum(Z.unbind(1)),
    "view_as_real": lambda: torch.view_as_real(Z * W),
    "where": lambda: torch.where(MASK, Z, 0) + torch.where(MASK, X, W),
    "zeros": lambda: torch.zeros(2, 3, dtype=torch.complex64) + torch.full((2, 3), 1.5, dtype=torch.complex64) * Z,
    "zeros_like": lambda: (
        Z * (torch.ones_like(W) + torch.zeros_like(X, dtype=torch.complex64) + torch.ones_like(Z.real))
    ),
}


class Function(torch.nn.Module):
    """A function of the tensors above, which are its buffers, with a real output."""

    def __init__(self, name):
        super().__init__()
        self.function = CALLS[name]
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        result = self.function()
        return (torch.view_as_real(result) if result.is_complex() else result) + x.sum() * 0


@pytest.mark.parametrize("name", CALLS)
def test_the_parts_are_those_of_the_complex_result(name):
    module, x = Function(name), torch.ones(1)
    program = torch.export.export(module, (x,))
    assert complex_numbers.has_complex_numbers(program)
    replaced = complex_numbers.RealArithmetic(program)
    torch.testing.assert_close(replaced(x)[0], module(x))
    operators = {str(node.target) for node in torch.export.export(replaced, (x,)).graph.nodes}
    assert not [name for name in operators if "view_as_complex" in name]  # which is what lacks a rule


SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.rand(3, 8, dtype=torch.cfloat))
        self.register_buffer("window", torch.hann_window(12))

    def forward(self, x):
        EXPRESSION
"""
INPUTS = {"x": {"dtype": "float32", "shape": ["batch", "length", 8]}}
MODULES = {
    "a correlation": """
        spectrum = torch.fft.rfft(x, dim=1)
        return torch.fft.irfft(spectrum * torch.conj(torch.fft.rfft(x.flip(1), dim=1)), n=x.shape[1], dim=1)""",
    "a filter with weights": """
        spectrum = torch.fft.rfft(x, dim=1)
        filtered = torch.zeros_like(spectrum)
        for index, weight in enumerate(self.weights):
            filtered[:, index] = torch.einsum("bh,h->bh", spectrum[:, index], weight)
        return torch.fft.irfft(filtered, n=x.shape[1], dim=1)""",
    "a vocoder": """
        spectrum = x.exp() * (x.cos() + 1j * x.sin())
        return torch.istft(spectrum.transpose(1, 2), 14, 4, 12, self.window, normalized=True)""",
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_is_exported_at_every_size(tmp_path, kind):
    dims = {"length": {"min": 6, "max": 40}}
    path = project(tmp_path, SOURCE.replace("EXPRESSION", MODULES[kind].strip()), inputs=INPUTS, dims=dims)
    graph, grid, cases, _ = export("torch-export", path, tmp_path)
    session = onnxruntime.InferenceSession(graph)
    assert len({case.inputs["x"].shape[1] for case in grid.cases}) > 2
    for case in grid.cases:
        (actual,) = session.run(None, {"x": case.inputs["x"]})
        expected = cases[case.name]["output_0"]
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5 * max(1, np.abs(expected).max()))


def test_a_short_time_transform_is_inverted_with_every_option():
    spectrum = torch.complex(torch.rand(2, 8, 9), torch.rand(2, 8, 9))
    calls = [
        {"window": torch.hann_window(14)},
        {"hop_length": 4, "window": torch.hamming_window(14), "length": 25},
        {"hop_length": 5, "win_length": 11, "window": torch.hamming_window(11), "normalized": True},
        {"hop_length": 4, "window": torch.hamming_window(14), "center": False},
    ]
    for options in calls:
        for part in (spectrum, spectrum[0]):
            actual = complex_numbers._inverse_short_time_fourier(None, _pair(part), 14, **options)
            torch.testing.assert_close(actual, torch.istft(part, 14, **options))


def _pair(tensor):
    return complex_numbers.Pair(tensor.real, tensor.imag)
