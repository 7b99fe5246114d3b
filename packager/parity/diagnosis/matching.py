"""Match the values of two runs: which are equal within the tolerance, and how far apart others are. numpy only.

Two values match if they have the same dtype and shape, and every element is within the tolerance of the reference's
value. Names and scopes play no part: every exporter and every pass has its own, and gets some wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from packager.parity.diagnosis.activations import Activation, Activations, measure_typical_magnitude
from packager.parity.diagnosis.budget import UNLIMITED, Budget
from packager.parity.numerics.compare import Array, ElementTolerance, ErrorMetrics, ShapesDiffer, compare

_SAMPLE_SIZE = 16  # elements that are compared before whole arrays are
_NEAR_MISS = 0.01  # an array that differs from another by less than this share of its own size is that array, but off


def get_tolerance(value: Activation) -> ElementTolerance:
    """Return the tolerance of a value of the reference; dtypes other than floats must be equal.

    An element is judged on the scale of its own magnitude plus the typical magnitude of its tensor.
    """
    if value.array is None or value.array.dtype.kind not in "fc":
        return ElementTolerance(0.0, 0.0)
    return ElementTolerance(value.relative_tolerance * measure_typical_magnitude(value.array), value.relative_tolerance)


def compare_activation(expected: Activation, actual: Array | None) -> ErrorMetrics | None:
    """Compare an array with the value it should be; return None if their shapes or dtypes differ."""
    if expected.array is None or actual is None:
        return None
    try:
        return compare(expected.array, actual, get_tolerance(expected))
    except ShapesDiffer:
        return None


def matches(expected: Activation, actual: Array) -> bool:
    """Tell whether an array equals a value of the reference within its tolerance."""
    if expected.array is None or not has_type_of(expected, actual):
        return False
    return _samples_agree(_sample(expected.array), _sample(actual), get_tolerance(expected)) and _is_within_tolerance(
        expected, actual
    )


def match_values(
    reference: Activations, suspect: Activations, budget: Budget = UNLIMITED
) -> tuple[list[list[int]], list[list[int]]]:
    """List the matching values of the suspect for each value of the reference, and the other way round, by index.

    If the time is over, the later values of the suspect have no matches.
    """
    by_type: dict[tuple[str, tuple[int, ...]], list[tuple[int, NDArray[np.complex128], ElementTolerance]]] = {}
    for index, value in enumerate(reference.values):
        if value.array is not None:
            key = (value.array.dtype.str, value.array.shape)
            by_type.setdefault(key, []).append((index, _sample(value.array), get_tolerance(value)))
    to_suspect: list[list[int]] = [[] for _ in reference.values]
    to_reference: list[list[int]] = [[] for _ in suspect.values]
    for index, value in enumerate(suspect.values):
        if budget.is_over():
            break
        if value.array is None:
            continue
        sample = _sample(value.array)
        for other, expected, tolerance in by_type.get((value.array.dtype.str, value.array.shape), ()):
            if _samples_agree(expected, sample, tolerance) and _is_within_tolerance(
                reference.values[other], value.array
            ):
                to_suspect[other].append(index)
                to_reference[index].append(other)
    return to_suspect, to_reference


def find_near_misses(
    reference: Activations, suspect: Activations, budget: Budget = UNLIMITED
) -> tuple[frozenset[int], frozenset[int]]:
    """Find the values of each run that are nearly like one of the other: those that match none of it are off.

    If the time is over, the later values of the reference are left out.
    """
    left, right = set(), set()
    for index, value in enumerate(reference.values):
        if budget.is_over():
            break
        if value.array is None or not is_distinctive(value.array):
            continue
        size = finite_rms(value.array)
        for other, suspected in enumerate(suspect.values):
            if suspected.array is None or not has_type_of(suspected, value.array):
                continue
            if rms_difference(_sample(value.array), _sample(suspected.array)) > 4 * _NEAR_MISS * size:
                continue
            if rms_difference(value.array, suspected.array) <= _NEAR_MISS * size:
                left.add(index)
                right.add(other)
    return frozenset(left), frozenset(right)


def is_distinctive(array: Array | None) -> bool:
    """Tell whether an array that matches a value does so for a reason: shapes, masks and zeros match by chance."""
    if array is None or array.dtype.kind not in "fc" or array.size == 0:
        return False
    values = array.astype(np.complex128)
    finite = values[np.isfinite(values)]
    return bool(np.any(finite != np.round(finite)))


def has_type_of(value: Activation, array: Array) -> bool:
    """Tell whether a value has the shape and the dtype of an array."""
    return value.array is not None and value.array.shape == array.shape and value.array.dtype == array.dtype


def rms_difference(left: Array, right: Array) -> float:
    """Return the root mean square of the differences that are finite."""
    with np.errstate(all="ignore"):
        return finite_rms(left.astype(np.complex128) - right.astype(np.complex128))


def finite_rms(array: Array) -> float:
    """Return the root mean square of the finite elements; infinity if there are none."""
    with np.errstate(all="ignore"):
        magnitudes = np.abs(array.astype(np.complex128))
        finite = magnitudes[np.isfinite(magnitudes)]
        return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else float("inf")


def _is_within_tolerance(expected: Activation, actual: Array) -> bool:
    metrics = compare_activation(expected, actual)
    return metrics is not None and metrics.within_tolerance


def _sample(array: Array) -> NDArray[np.complex128]:
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLE_SIZE)].astype(np.complex128)


def _samples_agree(
    expected: NDArray[np.complex128], actual: NDArray[np.complex128], tolerance: ElementTolerance
) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(actual - expected) <= tolerance.atol + tolerance.rtol * np.abs(expected)
    return bool(np.all(near | (actual == expected) | (np.isnan(actual) & np.isnan(expected))))
