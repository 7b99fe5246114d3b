"""Compare two arrays element by element: how far apart they are, where most, and whether that is within a tolerance.

An element is within its tolerance if

    |actual - expected| ≤ atol + rtol·|expected|

which is the rule of `numpy.isclose`, with `expected` as the reference. Comparisons commonly go wrong in these ways, so:

* A NaN equals a NaN in the same position and nothing else. Infinities agree in position and sign.
* Integers and booleans agree exactly. Their difference is computed without wrapping around.
* An element near zero is judged by `atol`, which carries the scale of the array; nothing is divided by it.
* Dtype and shape agree exactly before any value is compared: nothing is broadcast or cast.
* An empty array agrees with an empty array of its shape.
* float16 and float32 are compared in float64, so the comparison adds no rounding of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class ElementTolerance:
    """The tolerance of one output: |actual - expected| ≤ atol + rtol·|expected|, element by element."""

    atol: float
    rtol: float


@dataclass(frozen=True)
class ComparedElement:
    """One element of two arrays: its index, and the value on each side as a Python number."""

    index: tuple[int, ...]
    expected: float | int | bool
    actual: float | int | bool


@dataclass(frozen=True)
class ErrorMetrics:
    """How far `actual` is from `expected`, all in float64.

    With d = |actual - expected| over the elements that are finite on both sides:

        max_abs                the largest d
        max_rel                the largest d / max(|expected|, RMS of expected)
        rms                    the root mean square of d
        cosine                 the cosine similarity of the two arrays as vectors; 1.0 if both are zero everywhere
        mismatched_nonfinite   how many elements are NaN or infinite on one side, and not in the same way on the other
        error_over_limit       the largest d / (atol + rtol·|expected|); infinite if a limit of 0 is exceeded, or if a
                               non-finite element is mismatched
        worst                  the element with that largest ratio; None for empty arrays
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
        """Whether every element is within its tolerance."""
        return self.mismatched_nonfinite == 0 and self.error_over_limit <= 1.0


class ShapesDiffer(Exception):
    """The arrays differ in dtype or shape, so their elements cannot be compared."""


def is_float(array: Array) -> bool:
    """Return whether an array holds real floating-point numbers, the only dtypes that have a tolerance."""
    return array.dtype.kind == "f"


def compare(expected: Array, actual: Array, tolerance: ElementTolerance) -> ErrorMetrics:
    """Compare two arrays of the same shape and dtype, element by element.

    Complex arrays are compared as their real and imaginary parts, on a new last axis. For integers and booleans the
    tolerance is ignored: they must be equal.

    Raises:
        ShapesDiffer: dtype or shape differ.
    """
    if expected.dtype != actual.dtype:
        raise ShapesDiffer(f"dtype {actual.dtype}, expected {expected.dtype}")
    if expected.shape != actual.shape:
        raise ShapesDiffer(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if expected.size == 0:
        return ErrorMetrics(0.0, 0.0, 0.0, 1.0, 0, 0.0, None)
    if expected.dtype.kind == "c":
        return _compare_floats(_split_complex(expected), _split_complex(actual), tolerance)
    if is_float(expected):
        return _compare_floats(expected, actual, tolerance)
    return _compare_exact(expected, actual)


def _compare_floats(expected: Array, actual: Array, tolerance: ElementTolerance) -> ErrorMetrics:
    """Compare block by block: as a whole, the float64 arrays would take twenty times the memory of float32 outputs."""
    pairs = partial(_iterate_blocks, expected, actual)
    magnitudes = _Magnitudes()
    for block in pairs():
        magnitudes = magnitudes.merge(block, tolerance)
    sums = _Sums()
    for block in pairs():
        sums = sums.merge(block, magnitudes)
    expected_rms = _scale_root_mean(magnitudes.left, sums.left, sums.count)
    return ErrorMetrics(
        max_abs=magnitudes.difference,
        max_rel=max(block.measure_relative_difference(expected_rms) for block in pairs()),
        rms=_scale_root_mean(magnitudes.difference, sums.difference, sums.count),
        cosine=_cosine_similarity(magnitudes, sums),
        mismatched_nonfinite=magnitudes.mismatched,
        error_over_limit=magnitudes.ratio,
        worst=_make_compared_element(np.unravel_index(magnitudes.position, expected.shape), expected, actual),
    )


BLOCK_ELEMENTS = 1 << 18
"""As many elements are compared at a time: the float64 arrays of a block stay in the processor's cache."""


@dataclass(frozen=True)
class _Block:
    """A part of two flattened arrays, in float64, with zeros where either is not finite; `start` is its position."""

    start: int
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    finite: NDArray[np.bool_]
    mismatched: NDArray[np.bool_]

    def measure_difference(self) -> NDArray[np.float64]:
        """Return |right - left|; infinite where that is too large for float64."""
        with np.errstate(over="ignore"):
            return np.abs(self.right - self.left)

    def measure_relative_difference(self, expected_rms: float) -> float:
        """Return the largest |right - left| / max(|left|, expected_rms)."""
        with np.errstate(over="ignore"):
            relative = _divide_differences(self.left, self.right, np.maximum(np.abs(self.left), expected_rms))
        return float(relative.max())


def _iterate_blocks(expected: Array, actual: Array) -> Iterator[_Block]:
    flat_expected, flat_actual = expected.reshape(-1), actual.reshape(-1)
    for start in range(0, expected.size, BLOCK_ELEMENTS):
        left, right = (
            array[start : start + BLOCK_ELEMENTS].astype(np.float64) for array in (flat_expected, flat_actual)
        )
        finite = np.isfinite(left) & np.isfinite(right)
        same_nonfinite = (np.isnan(left) & np.isnan(right)) | (np.isinf(left) & (left == right))
        yield _Block(
            start, np.where(finite, left, 0.0), np.where(finite, right, 0.0), finite, ~finite & ~same_nonfinite
        )


@dataclass(frozen=True)
class _Magnitudes:
    """The largest |left|, |right|, difference and difference / limit so far, and the position of the last."""

    left: float = 0.0
    right: float = 0.0
    difference: float = 0.0
    ratio: float = 0.0
    position: int = 0
    mismatched: int = 0

    def merge(self, block: _Block, tolerance: ElementTolerance) -> _Magnitudes:
        """Add a block; of equal ratios, the first element counts."""
        difference, magnitude = block.measure_difference(), np.abs(block.left)
        with np.errstate(over="ignore"):
            limit = tolerance.atol + tolerance.rtol * magnitude
        ratio = _divide(difference, limit)
        ratio[block.mismatched] = np.inf
        index = int(np.argmax(ratio))
        is_larger = ratio[index] > self.ratio
        return _Magnitudes(
            max(self.left, float(magnitude.max())),
            max(self.right, float(np.abs(block.right).max())),
            max(self.difference, float(difference.max())),
            float(ratio[index]) if is_larger else self.ratio,
            block.start + index if is_larger else self.position,
            self.mismatched + int(block.mismatched.sum()),
        )


@dataclass(frozen=True)
class _Sums:
    """Sums of squares and products over the blocks so far, of values divided by the largest, and how many are finite.

    np.sum and not np.dot: BLAS adds in an order that depends on the number of threads.
    """

    left: float = 0.0
    right: float = 0.0
    product: float = 0.0
    difference: float = 0.0
    count: int = 0

    def merge(self, block: _Block, largest: _Magnitudes) -> _Sums:
        """Add a block."""
        left = block.left[block.finite] / (largest.left or 1.0)
        right = block.right[block.finite] / (largest.right or 1.0)
        scale = largest.difference if 0.0 < largest.difference < np.inf else 1.0
        with np.errstate(over="ignore"):  # an infinite difference is reported as it is
            difference = block.measure_difference()[block.finite] / scale
            return _Sums(
                self.left + float(np.sum(left * left)),
                self.right + float(np.sum(right * right)),
                self.product + float(np.sum(left * right)),
                self.difference + float(np.sum(difference * difference)),
                self.count + int(block.finite.sum()),
            )


def _scale_root_mean(largest: float, sum_of_squares: float, count: int) -> float:
    """Return the root mean square of values, from the sum of their squares after division by the largest magnitude."""
    return largest if largest == 0.0 or not np.isfinite(largest) else largest * math.sqrt(sum_of_squares / count)


def _cosine_similarity(largest: _Magnitudes, sums: _Sums) -> float:
    if largest.left == 0.0 or largest.right == 0.0:
        return 1.0 if largest.left == largest.right else 0.0
    cosine = sums.product / math.sqrt(sums.left * sums.right)
    return max(-1.0, min(1.0, cosine))


def _split_complex(array: Array) -> Array:
    """Return the real and imaginary parts of a complex array, stacked along a new last axis."""
    return np.stack([array.real, array.imag], axis=-1)


def _compare_exact(expected: Array, actual: Array) -> ErrorMetrics:
    if expected.dtype == np.bool_:
        difference = (expected != actual).astype(np.uint64)
    else:
        # Two's complement: larger - smaller is right modulo 2**64, and it is below 2**64, so it is right.
        high, low = np.maximum(expected, actual), np.minimum(expected, actual)
        difference = np.subtract(high.astype(np.uint64), low.astype(np.uint64))  # `-` warns if these are scalars
    worst = np.unravel_index(int(np.argmax(difference)), expected.shape)
    left = expected.astype(np.float64)
    distance = difference.astype(np.float64)
    scale = root_mean_square(left)
    return ErrorMetrics(
        max_abs=float(distance.max()),
        max_rel=float(_divide(distance, np.maximum(np.abs(left), scale)).max()),
        rms=root_mean_square(distance),
        cosine=_compare_floats(expected, actual, ElementTolerance(0.0, 0.0)).cosine,
        mismatched_nonfinite=0,
        error_over_limit=np.inf if difference.any() else 0.0,
        worst=_make_compared_element(worst, expected, actual),
    )


def root_mean_square(values: NDArray[np.float64]) -> float:
    """Return the root mean square of finite float64 values of any shape; 0.0 for an empty array.

    Values are divided by the largest magnitude first, so that no square overflows or underflows.
    """
    largest = float(np.abs(values).max()) if values.size else 0.0
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.mean(np.square(values / largest))))


def _divide(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numerator / denominator, elementwise, for numerators ≥ 0: 0 / 0 is 0, x / 0 and inf / inf are infinite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: NDArray[np.float64] = np.where(
            (numerator == 0.0) | np.isinf(numerator), numerator, numerator / denominator
        )
    return quotient


def _divide_differences(
    left: NDArray[np.float64], right: NDArray[np.float64], denominator: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return |right - left| / denominator, elementwise, also where the difference overflows."""
    difference = np.abs(right - left)
    halves = 2.0 * _divide(np.abs(right / 2.0 - left / 2.0), denominator)
    return np.where(np.isinf(difference), halves, _divide(difference, denominator))


def _make_compared_element(index: tuple[np.intp, ...], expected: Array, actual: Array) -> ComparedElement:
    position = tuple(int(axis_index) for axis_index in index)
    return ComparedElement(position, expected[position].item(), actual[position].item())
