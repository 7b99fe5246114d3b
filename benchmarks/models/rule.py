"""Decide whether an artifact is right: its error against float64, beside the error of PyTorch's own float32.

    error = max |actual - exact|         exact: the eager module in float64
    noise = max |expected - exact|       expected: the eager module in float32
    scale = max |exact|
    right = error ≤ max(16 x noise, floor x scale)

Where a module has no float64, `exact` is `expected`, the noise is unknown, and the floor is `BLIND_FLOOR`. Dtypes,
shapes, and the places of NaN and infinities agree exactly, as do integers and booleans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NOISE_FACTOR = 16.0
FLOOR = 1e-5
BLIND_FLOOR = 1e-4


@dataclass(frozen=True)
class Comparison:
    """The worst output of one case: `error` is relative to the scale, `of_limit` above 1 is wrong."""

    error: float
    of_limit: float
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether every output is within its limit."""
        return self.of_limit <= 1.0


def compare(actual: Sequence[Array], expected: Sequence[Array], exact: Sequence[Array] | None) -> Comparison:
    """Compare all outputs of one case; returns the worst of them."""
    if len(actual) != len(expected):
        return Comparison(math.inf, math.inf, f"{len(actual)} outputs for {len(expected)}")
    references = exact if exact is not None else [None] * len(expected)
    outputs = [_compare_output(*arrays) for arrays in zip(actual, expected, references, strict=True)]
    return max(outputs, key=lambda comparison: comparison.of_limit, default=Comparison(0.0, 0.0))


def _compare_output(actual: Array, expected: Array, exact: Array | None) -> Comparison:
    if actual.shape != expected.shape:
        return Comparison(math.inf, math.inf, f"shape {list(actual.shape)} for {list(expected.shape)}")
    if actual.dtype != expected.dtype:
        return Comparison(math.inf, math.inf, f"{actual.dtype} for {expected.dtype}")
    if actual.size == 0:
        return Comparison(0.0, 0.0)
    if actual.dtype.kind not in "fc":
        share = float(np.mean(actual != expected))
        return Comparison(share, math.inf if share else 0.0, f"{share:.2%} of the elements differ" if share else "")
    return _compare_floats(actual, expected, exact)


def _compare_floats(actual: Array, expected: Array, exact: Array | None) -> Comparison:
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return Comparison(math.inf, math.inf, "NaN or infinity in other places")
    reference = expected.astype(np.complex128 if expected.dtype.kind == "c" else np.float64)
    noise, floor = 0.0, BLIND_FLOOR
    if exact is not None and np.array_equal(np.isfinite(exact), finite):
        noise, floor, reference = _largest(expected[finite] - exact[finite]), FLOOR, exact
    scale = _largest(reference[finite])
    error = _largest(actual[finite] - reference[finite])
    if not math.isfinite(error):
        return Comparison(math.inf, math.inf, "NaN or infinity in other places")
    limit = max(NOISE_FACTOR * noise, floor * scale, float(np.finfo(np.float32).tiny))
    relative = error / scale if scale > 0 else (0.0 if error == 0 else math.inf)
    return Comparison(relative, error / limit, f"off by {error:.3g} of {scale:.3g}, noise {noise:.3g}")


def _largest(values: Array) -> float:
    return float(np.max(np.abs(values))) if values.size else 0.0
