"""How far an artifact may be: so many noise floors, on the scale of each element's neighbourhood. numpy only.

A difference means nothing by itself: 1e-4 is much for a probability and nothing for a logit of 300. It is
divided by |expected| plus the scale of what counts as small in that output, so that an element near zero is
judged by the company it keeps. The largest such ratio between two evaluations that are equal in mathematics
is the noise floor; a limit is a small multiple of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packager.parity.numerics.compare import Array, ElementTolerance

NOISE_MULTIPLE = 8
"""An artifact may be this many noise floors away. Two evaluations that are each one floor from the truth are
two apart; the rest is for floors measured on few inputs. Whatever moves an element by ten floors is found:
eight, and one for each side's own noise."""

MAX_TOLERANCE_SHARE = 0.25
"""A limit of a quarter of the output's own size proves nothing."""

_MIN_NOISE_IN_EPSILONS = 4  # where the measured noise is by luck smaller than rounding itself
_SAMPLE_SIZE = 1 << 16  # of an array's elements, evenly spread, are enough to know its scale
_SENTINEL_SHARE = 1 / 16  # a value that so many elements have to the last bit is no measurement of anything


def derive_tolerance(noise: float, scale: float) -> ElementTolerance:
    """What is allowed where the noise floor is `noise` and small elements are of the size `scale`."""
    return ElementTolerance(NOISE_MULTIPLE * noise * scale, NOISE_MULTIPLE * noise)


def derive_noise_floors(
    measured: Mapping[str, float], partly_measured: Mapping[str, float], cases: Sequence[str], least: float
) -> dict[str, float]:
    """The floor of each case, from those of the cases where it was measured, and of others where it was in part.

    A case has its own, as noise depends on the inputs, but none below the median of all: few elements agree by
    luck. Where it was measured in part it is also none below the largest of the whole ones, and where it was not it
    is the largest of all.
    """
    every = [*measured.values(), *partly_measured.values()]
    typical = max(least, float(np.median(every))) if every else least
    highest = max([typical, *measured.values()])
    found = {case: max(typical, share) for case, share in measured.items()}
    found |= {case: max(highest, share) for case, share in partly_measured.items()}
    other = max([typical, *every])
    return {case: found.get(case, other) for case in cases}


def get_minimum_noise(dtype: np.dtype[Any]) -> float:
    """The floor below which none is believed: a few roundings of a float dtype."""
    return _MIN_NOISE_IN_EPSILONS * get_machine_epsilon(dtype)


def get_machine_epsilon(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next number of a float dtype."""
    return float(np.finfo(dtype).eps)


def measure_relative_difference(found: Array, other: Array, scale: float) -> float:
    """The largest |found - other| / (|other| + scale) of the elements that are finite on both sides; 0.0 if none."""
    left, right = found.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    left, right = left[finite], right[finite]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        difference = np.abs(left - right)
        shares = np.where(difference == 0.0, 0.0, difference / (np.abs(right) + scale))
    return float(shares.max()) if shares.size else 0.0


def estimate_scales(arrays: Sequence[Array]) -> list[float]:
    """What counts as small in each of several float arrays that are one output on different inputs.

    The lower quartile of an array's magnitudes, or that of all arrays together where it is larger: few
    elements, or one odd input, say little of their own. Not the mean or the RMS: masked logits stand at -1e9
    beside real ones, and on that scale nothing would show. Zeros count for nothing, nor does a value that
    many elements share to the last bit, as such masks do, while there are others.
    """
    seen = [_sample_magnitudes(one) for one in arrays]
    together = _lower_quartile(np.concatenate(seen)) if seen else 0.0
    return [max(_lower_quartile(one), together) for one in seen]


def _sample_magnitudes(array: Array) -> NDArray[np.float64]:
    """A sample of the finite magnitudes that are not zero, in increasing order, sentinels aside."""
    flat = array.reshape(-1)
    sample = flat[:: max(1, -(-flat.size // _SAMPLE_SIZE))].astype(np.float64)
    values, counts = np.unique(np.abs(sample[np.isfinite(sample) & (sample != 0.0)]), return_counts=True)
    genuine = counts <= max(2.0, _SENTINEL_SHARE * counts.sum())
    chosen = genuine if genuine.any() else np.ones_like(genuine)
    found: NDArray[np.float64] = np.repeat(values[chosen], counts[chosen])
    return found


def _lower_quartile(values: NDArray[np.float64]) -> float:
    return float(np.quantile(values, 0.25, method="lower")) if values.size else 0.0
