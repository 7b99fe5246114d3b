"""Two arrays side by side: how far apart they are, where most, and whether that is allowed. numpy only.

Rules that tools of this field get wrong, and this module does not:

* a NaN equals a NaN in the same place and nothing else; infinities agree in place and sign;
* integers and booleans agree exactly, and their distance is computed without wrapping around;
* a finite element is judged by |actual - expected| ≤ atol + rtol·|expected|, so an element near
  zero is judged on the scale that `atol` stands for and not by dividing by it;
* count, name, dtype and shape agree exactly before any value is looked at;
* an empty array agrees with an empty array of its shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class ElementTolerance:
    """What is allowed: |actual - expected| ≤ atol + rtol·|expected|."""

    atol: float
    rtol: float


@dataclass(frozen=True)
class ComparedElement:
    """The element that is farthest beyond its limit, or nearest to it."""

    index: tuple[int, ...]
    expected: float | int | bool
    actual: float | int | bool


@dataclass(frozen=True)
class ErrorMetrics:
    """How far `actual` is from `expected`.

    `max_abs` and `rms` are of the finite elements' differences; `max_rel` divides each difference
    by |expected| or the RMS of `expected`, whichever is larger; `cosine` is of the finite elements,
    1.0 where both are zero everywhere; `mismatched_nonfinite` counts elements of which one side is
    NaN or infinite and the other not in the same way; `excess` is the largest ratio of a difference
    to its limit, infinite where a limit of zero or a non-finite element is missed.
    """

    max_abs: float
    max_rel: float
    rms: float
    cosine: float
    mismatched_nonfinite: int
    error_over_limit: float
    worst: ComparedElement | None

    @property
    def within_tolerance(self) -> bool:
        """Whether every element is within its limit."""
        return self.mismatched_nonfinite == 0 and self.error_over_limit <= 1.0


class ShapesDiffer(Exception):
    """The arrays cannot be set side by side: dtype or shape differ."""


def compare(expected: Array, actual: Array, tolerance: ElementTolerance) -> ErrorMetrics:
    """Compare two arrays of one shape and dtype, element by element. Raises `ShapesDiffer`."""
    if expected.dtype != actual.dtype:
        raise ShapesDiffer(f"dtype {actual.dtype}, expected {expected.dtype}")
    if expected.shape != actual.shape:
        raise ShapesDiffer(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if expected.size == 0:
        return ErrorMetrics(0.0, 0.0, 0.0, 1.0, 0, 0.0, None)
    if expected.dtype.kind == "c":
        return _compare_floats(_real_and_imaginary(expected), _real_and_imaginary(actual), tolerance)
    if expected.dtype.kind == "f":
        return _compare_floats(expected, actual, tolerance)
    return _compare_exact(expected, actual)


def _compare_floats(expected: Array, actual: Array, limit: ElementTolerance) -> ErrorMetrics:
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    same_nonfinite = (np.isnan(left) & np.isnan(right)) | (np.isinf(left) & (left == right))
    mismatched = ~finite & ~same_nonfinite
    left_finite, right_finite = np.where(finite, left, 0.0), np.where(finite, right, 0.0)
    with np.errstate(over="ignore"):  # float64's own extremes: an infinite difference is a right answer
        difference = np.abs(right_finite - left_finite)
        magnitude = np.abs(left_finite)
        scale = root_mean_square(left_finite[finite])
        allowed = limit.atol + limit.rtol * magnitude
    excess = _divide(difference, allowed)
    excess[mismatched] = np.inf
    worst = np.unravel_index(int(np.argmax(excess)), expected.shape)
    return ErrorMetrics(
        max_abs=float(difference.max()),
        max_rel=float(_divide(difference, np.maximum(magnitude, scale)).max()),
        rms=root_mean_square(difference[finite]),
        cosine=_cosine_similarity(left_finite[finite], right_finite[finite]),
        mismatched_nonfinite=int(mismatched.sum()),
        error_over_limit=float(excess.max()),
        worst=_make_compared_element(worst, expected, actual),
    )


def _real_and_imaginary(array: Array) -> Array:
    return np.stack([array.real, array.imag], axis=-1)


def _compare_exact(expected: Array, actual: Array) -> ErrorMetrics:
    if expected.dtype == np.bool_:
        difference = (expected != actual).astype(np.uint64)
    else:
        # Two's complement: the difference of the larger and the smaller is right modulo 2**64, hence right.
        high, low = np.maximum(expected, actual), np.minimum(expected, actual)
        difference = np.subtract(high.astype(np.uint64), low.astype(np.uint64))  # `-` warns where these are scalars
    excess = np.where(difference > 0, np.inf, 0.0)
    worst = np.unravel_index(int(np.argmax(difference)), expected.shape)
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    distance = difference.astype(np.float64)
    scale = root_mean_square(left)
    return ErrorMetrics(
        max_abs=float(distance.max()),
        max_rel=float(_divide(distance, np.maximum(np.abs(left), scale)).max()),
        rms=root_mean_square(distance),
        cosine=_cosine_similarity(left, right),
        mismatched_nonfinite=0,
        error_over_limit=float(excess.max()),
        worst=_make_compared_element(worst, expected, actual),
    )


def root_mean_square(values: NDArray[np.float64]) -> float:
    """The root of the mean square of finite float64 values, without overflow or underflow on the way; 0.0 if none."""
    largest = float(np.abs(values).max()) if values.size else 0.0
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.mean(np.square(values / largest))))


def _divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part / whole, where 0 / 0 is 0, and x / 0 and whatever part is infinite are infinite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found: NDArray[np.float64] = np.where((part == 0.0) | np.isinf(part), part, part / whole)
    return found


def _cosine_similarity(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    high_left, high_right = (float(np.abs(one).max()) if one.size else 0.0 for one in (left, right))
    if high_left == 0.0 or high_right == 0.0:
        return 1.0 if high_left == high_right else 0.0
    left, right = (left / high_left).ravel(), (right / high_right).ravel()
    # Sums, and no dot products: those are BLAS's, which adds in another order with each number of threads.
    cosine = float(np.sum(left * right)) / float(np.sqrt(np.sum(left * left) * np.sum(right * right)))
    return max(-1.0, min(1.0, cosine))


def _make_compared_element(index: tuple[np.intp, ...], expected: Array, actual: Array) -> ComparedElement:
    place = tuple(int(one) for one in index)
    return ComparedElement(place, expected[place].item(), actual[place].item())
