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
SIGNAL = torch.sin(torch.arange(80.0) ** 1.3).reshape(2, 40)

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
    "fft_fft": lambda: torch.fft.fft(Z) + torch.fft.fft(X) + torch.fft.fft(Z, 7, norm="ortho")[:, :3],
    "fft_fft2": lambda: torch.fft.fft2(Z.T @ Z) + torch.fft.fft2(X.T @ X, norm="forward") + torch.fft.fftn(Z.T @ W),
    "fft_ifft": lambda: torch.fft.ifft(Z, norm="forward") + torch.fft.ifft(X) + torch.fft.ifft(Z, 5, dim=0)[:2],
    "fft_ifft2": lambda: torch.fft.ifft2(Z.T @ Z, norm="ortho") + torch.fft.ifftn(X, (3, 3)),
    "fft_irfft": lambda: (
        torch.fft.irfft(Z, 3)
        + torch.fft.irfft(Z, 5, norm="forward")[:, :3]
        + torch.fft.irfft(Z, 6, norm="ortho")[:, :3]
    ),
    "fft_irfft of no size": lambda: torch.fft.irfft(torch.cat((Z, W[:, :1]), 1)),
    "fft_irfft2": lambda: torch.fft.irfft2(Z, (3, 5)) + torch.fft.irfftn(Z, (3, 5), norm="forward"),
    "fft_rfft": lambda: torch.fft.rfft(X) + torch.fft.rfft(X, 3, norm="ortho") + torch.fft.rfft(X.T, 6, 0).T[:, :2],
    "fft_rfft2": lambda: torch.fft.rfft2(X.tile(3, 2)) + torch.fft.rfftn(X, (6, 6), norm="forward"),
    "imag": lambda: torch.imag(Z) + (Z * X).imag,
    "masked_fill": lambda: Z.masked_fill(MASK, 1.5),
    "matmul": lambda: Z @ W.mT + Z @ W.mH + Z @ W.T,
    "mul": lambda: Z * W + Z * X + X * Z + 2 * Z + 1j * X,
    "mul_": lambda: (Z * 1).mul_(W),
    "pad": lambda: (
        torch.nn.functional.pad(Z, (1, 0), value=1.5)
        + torch.nn.functional.pad(W, (0, 1))
        + torch.nn.functional.pad(Z, (0, 1), mode="reflect")
        + torch.nn.functional.pad(W[None], (1, 0), mode="replicate")[0]
    ),
    "polar": lambda: torch.polar(X.abs(), X),
    "pow": lambda: Z**2,
    "real": lambda: torch.real(Z) + (Z * X).real,
    "reciprocal": lambda: Z.reciprocal(),
    "slice": lambda: Z[1:, ::2].unsqueeze(0).expand(2, 1, 2),
    "square": lambda: Z.square(),
    "stft": lambda: (
        torch.stft(SIGNAL, 12, 5, 9, torch.hann_window(9), normalized=True, return_complex=True)[:, :, :4]
        + torch.stft(SIGNAL[0], 12, center=False, return_complex=True)[:, :4]
    ),
    "stft to real": lambda: torch.stft(SIGNAL[0], 6, return_complex=False),
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
    lacking = ("view_as_complex", "fft", "stft")  # of what lacks a rule
    assert not [name for name in operators if any(part in name for part in lacking)]


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
    "a spectrogram": """
        signal = x.flatten(1)
        spectrum = torch.stft(signal, 12, 5, window=self.window, return_complex=True)
        return spectrum.abs().pow(2) + torch.stft(signal, 12, 5, window=self.window, return_complex=False)[..., 0]""",
    "a filter in two dims": """
        spectrum = torch.fft.rfft2(x[:, :6].unflatten(2, (2, 4)), dim=(1, 3))
        return torch.fft.irfft2(spectrum * 0.5, s=(6, 4), dim=(1, 3))""",
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


@pytest.mark.parametrize("points", [6, 100, 400, 960, 1999])
def test_a_transform_of_any_fixed_length_is_as_accurate_as_that_of_torch(tmp_path, points):
    text = SOURCE.replace("EXPRESSION", "return torch.view_as_real(torch.fft.rfft(x))")
    path = project(tmp_path, text, inputs={"x": {"dtype": "float32", "shape": ["batch", points]}})
    graph, _, _, _ = export("torch-export", path, tmp_path)
    x = np.random.default_rng(0).standard_normal((5, points), np.float32)
    (actual,) = onnxruntime.InferenceSession(graph).run(None, {"x": x})
    exact = np.fft.rfft(x.astype(np.float64))
    error = np.abs(actual[..., 0] + 1j * actual[..., 1] - exact).max()
    assert error < 1e-6 * np.abs(exact).max()


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
