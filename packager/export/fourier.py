"""Discrete Fourier transforms as products with matrices, for lengths that onnxruntime transforms inaccurately.

For a length that is not a power of two, the error of onnxruntime's DFT grows with it: 4e-5 of the largest coefficient
at 400 points and 1e-4 at 960, where torch has 2e-7 (onnxruntime 1.31, float32). A product with a matrix of rounded
float64 numbers has 5e-7. All functions take and return real tensors, in the dtype of their arguments.
"""

from __future__ import annotations

import math
from typing import Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor

_MAX_POINTS = 2048  # with more, the two matrices of a real transform would take over 16 MB

Norm = Literal["backward", "ortho", "forward"] | None
Matrices = tuple[Tensor, Tensor]


def is_inaccurate(points: object) -> TypeGuard[int]:
    """Tell whether a transform of so many points is better written as a product: a size that is fixed, and small."""
    return isinstance(points, int) and 2 < points <= _MAX_POINTS and points & (points - 1) != 0


def transform(
    real: Tensor, imag: Tensor | None, points: int, dim: int, norm: Norm, *, inverse: bool = False, count: int
) -> tuple[Tensor, Tensor]:
    """Return both parts of the first `count` coefficients along `dim`; without `imag`, the signal is real."""
    cosine, sine = _make_matrices(points, points, count, _get_scale(points, norm, inverse=inverse), like=real)
    sine = -sine if inverse else sine
    row = _fit(real.movedim(dim, -1), points)
    parts = row @ cosine, -(row @ sine)
    if imag is not None:
        column = _fit(imag.movedim(dim, -1), points)
        parts = parts[0] + column @ sine, parts[1] + column @ cosine
    return parts[0].movedim(-1, dim), parts[1].movedim(-1, dim)


def transform_to_real(real: Tensor, imag: Tensor, points: int, dim: int, norm: Norm) -> Tensor:
    """Return the real signal of which half a spectrum is given along `dim`."""
    half = points // 2 + 1
    cosine, sine = _make_matrices(points, half, points, _get_scale(points, norm, inverse=True), like=real)
    twice = torch.full((half, 1), 2.0, dtype=real.dtype)
    twice[0] = 1.0
    if points % 2 == 0:
        twice[-1] = 1.0
    rows = (_fit(part.movedim(dim, -1), half) for part in (real, imag))
    return (next(rows) @ (twice * cosine) - next(rows) @ (twice * sine)).movedim(-1, dim)


def transform_frames(signal: Tensor, points: int, hop: int, window: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the parts of the spectra of overlapping frames: a signal [batch, samples] gives [batch, half, frames]."""
    half = points // 2 + 1
    cosine, sine = _make_matrices(points, points, half, scale, like=signal)
    kernel = torch.cat((cosine, -sine), 1).t() * window
    spectra = torch.nn.functional.conv1d(signal[:, None], kernel[:, None], stride=hop)
    return spectra[:, :half], spectra[:, half:]


def _make_matrices(points: int, rows: int, columns: int, scale: float, *, like: Tensor) -> Matrices:
    """Return the cosines and sines of 2π · row · column / points, times `scale`, rounded to the dtype of a tensor."""
    turns = np.outer(np.arange(rows), np.arange(columns)) % points  # exact, and the angles stay small
    angles = turns * (2 * math.pi / points)
    cosine, sine = (torch.from_numpy(scale * function(angles)).to(like.dtype) for function in (np.cos, np.sin))
    return cosine, sine


def _get_scale(points: int, norm: Norm, *, inverse: bool) -> float:
    if norm == "ortho":
        return 1 / math.sqrt(points)
    divides = (norm == "forward") != inverse
    return 1 / points if divides else 1.0


def _fit(tensor: Tensor, size: int) -> Tensor:
    """Cut the last dim to a size, or fill it up with zeros, as torch.fft does."""
    actual = tensor.shape[-1]
    return tensor[..., :size] if actual >= size else torch.nn.functional.pad(tensor, (0, size - actual))
