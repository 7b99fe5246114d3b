"""Derive the tolerance of each output from the noise floor of the module's own arithmetic.

A difference means nothing by itself: 1e-4 is much for a probability and nothing for a logit of 300. So differences are
measured relative to the element and to the scale of its output:

    relative difference = max over elements of |a - b| / (|b| + scale)

where `scale` is the size of a small element in that output (`estimate_scales`), so that an element near zero is judged
relative to its neighbours. The largest relative difference between two evaluations that are equal in mathematics is the
noise floor of the output. The tolerance is a multiple of it, in the same unit:

    |actual - expected| ≤ NOISE_MULTIPLE × noise × (|expected| + scale)

which is atol + rtol·|expected| with rtol = NOISE_MULTIPLE × noise and atol = rtol × scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packager.parity.numerics.compare import BLOCK_ELEMENTS, Array, ElementTolerance

NOISE_MULTIPLE = 8
"""The tolerance in noise floors.

PyTorch and a correct artifact are each about one noise floor from the exact result, so they are up to two apart. The
rest is a margin, because the noise floor is a maximum over few inputs. An artifact that moves an element by ten noise
floors is always found: 8, plus one for the noise of each side. tests/mutants checks this on broken bundles.
"""

MAX_TOLERANCE_SHARE = 0.25
"""The largest useful rtol: a tolerance of a quarter of the output itself would prove nothing, so it is refused."""

_MIN_NOISE_IN_EPSILONS = 4
"""The least noise floor: two evaluations can agree by luck, but any other order of summation costs a few roundings."""

SMALL_QUANTILE = 0.25
"""Elements of this size are small in an output: its lower quartile."""

_SAMPLE_SIZE = 1 << 16
"""How many elements of an array, evenly spaced, its scale is estimated from: enough for the quartile of a large one."""

_SENTINEL_SHARE = 1 / 16
"""A magnitude that more than this share of the elements has, to the last bit, is a sentinel, as a mask's -1e9 is."""


def derive_tolerance(noise: float, scale: float, dtype: np.dtype[Any]) -> ElementTolerance:
    """Return the tolerance NOISE_MULTIPLE × noise × (|expected| + scale) of an output of this float dtype.

    `noise` is the noise floor, a relative difference without a unit; `scale` has the unit of the output.
    """
    return ElementTolerance(max(NOISE_MULTIPLE * noise * scale, get_smallest_normal(dtype)), NOISE_MULTIPLE * noise)


def derive_noise_floors(
    measured: Mapping[str, float], partly_measured: Mapping[str, float], cases: Sequence[str], least: float
) -> dict[str, float]:
    """Return the noise floor of each of `cases`, by name, for one output.

    Noise depends on the inputs, so every test case has its own noise floor:

    * measured with every evaluation (`measured`): its own, but not below the typical one (the median of all), as few
      elements can agree by luck;
    * measured with some evaluations (`partly_measured`): also not below the largest of `measured`, as an evaluation
      that was left out might have shown more;
    * not measured: the largest of all.

    None is below `least`.
    """
    every = [*measured.values(), *partly_measured.values()]
    typical = max(least, float(np.median(every))) if every else least
    highest = max([typical, *measured.values()])
    floors = {case: max(typical, noise) for case, noise in measured.items()}
    floors |= {case: max(highest, noise) for case, noise in partly_measured.items()}
    unmeasured = max([typical, *every])
    return {case: floors.get(case, unmeasured) for case in cases}


def get_minimum_noise(dtype: np.dtype[Any]) -> float:
    """Return the least noise floor of a float dtype: 4 machine epsilons, 4.8e-7 for float32."""
    return _MIN_NOISE_IN_EPSILONS * get_machine_epsilon(dtype)


def get_machine_epsilon(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next larger number of a float dtype, 2**-23 for float32."""
    return float(np.finfo(dtype).eps)


def get_smallest_normal(dtype: np.dtype[Any]) -> float:
    """Return the difference below which two numbers of a float dtype count as equal, 1.2e-38 for float32.

    Smaller numbers are subnormal, which a processor may flush to zero. float16 is computed in float32.
    """
    return float(np.finfo(np.promote_types(dtype, np.float32)).smallest_normal)


def measure_relative_difference(array: Array, reference: Array, scale: float) -> float:
    """Return the largest |array - reference| / (|reference| + scale), computed in float64.

    The arrays have the same shape. Elements that are NaN or infinite on either side are left out; without any other
    element the result is 0.0. A difference below the smallest normal number of `array` counts as 0: what underflows
    there may be a tiny number in float64. The result is infinite for other differences if |reference| + scale is 0.
    """
    left, right = array.reshape(-1), reference.reshape(-1)
    starts = range(0, left.size, BLOCK_ELEMENTS)
    smallest = get_smallest_normal(array.dtype)
    blocks = ((left[start : start + BLOCK_ELEMENTS], right[start : start + BLOCK_ELEMENTS]) for start in starts)
    return max((_measure_relative_difference(*block, scale, smallest) for block in blocks), default=0.0)


def _measure_relative_difference(array: Array, reference: Array, scale: float, smallest: float) -> float:
    left, right = array.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    left, right = left[finite], right[finite]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        difference = np.abs(left - right)
        shares = np.where(difference < smallest, 0.0, difference / (np.abs(right) + scale))
    return float(shares.max()) if shares.size else 0.0


def estimate_scales(arrays: Sequence[Array], quantile: float = SMALL_QUANTILE) -> list[float]:
    """Return the scale of each array: the size of a small element in it, in the unit of the arrays.

    The arrays are one float output for different inputs; they may have any shapes. The scale is the lower quartile of
    an array's magnitudes, or that of all arrays together if it is larger: few elements, or one unusual input, say
    little by themselves. The mean or the RMS would not do: with masked logits of -1e9 among them, every real logit
    would be small. A higher `quantile` is for outputs of which only the larger elements can be compared.

    Left out are zeros, NaN and infinities, and values that many elements share to the last bit (`_SENTINEL_SHARE`),
    such as those of a mask, unless there are no others. The scale is 0.0 if nothing is left.
    """
    samples = [_sample_magnitudes(array) for array in arrays]
    overall = _quantile(np.concatenate(samples), quantile) if samples else 0.0
    return [max(_quantile(magnitudes, quantile), overall) for magnitudes in samples]


def _sample_magnitudes(array: Array) -> NDArray[np.float64]:
    """Return a sample of the magnitudes that are finite and not zero, in ascending order, without sentinels."""
    flat = array.reshape(-1)
    sample = flat[:: max(1, -(-flat.size // _SAMPLE_SIZE))].astype(np.float64)
    values, counts = np.unique(np.abs(sample[np.isfinite(sample) & (sample != 0.0)]), return_counts=True)
    genuine = counts <= max(2.0, _SENTINEL_SHARE * counts.sum())
    chosen = genuine if genuine.any() else np.ones_like(genuine)
    magnitudes: NDArray[np.float64] = np.repeat(values[chosen], counts[chosen])
    return magnitudes


def _quantile(values: NDArray[np.float64], quantile: float) -> float:
    """Return a quantile, as one of the values; 0.0 for an empty array."""
    return float(np.quantile(values, quantile, method="lower")) if values.size else 0.0
