"""Check the `range` of an input, and find the values of its dtype that lie in it.

A range [low, high] stands for low ≤ x < high, for floats as for integers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_integer_dtype(dtype: str) -> bool:
    """Return whether a dtype of the manifest is an integer; bool is not."""
    return dtype.startswith(("int", "uint"))


def check_range(dtype: str, value_range: Sequence[float | int] | None) -> None:
    """Check that a range is well-formed and contains a value of the dtype. Raises ValueError, with a message to show.

    `value_range` is [low, high], or None if the manifest has no range.
    """
    if value_range is None:
        if is_integer_dtype(dtype):
            raise ValueError(
                f"an {dtype} input requires a range [low, high] with low ≤ x < high, such as [0, 30522] for token ids"
            )
        return
    if dtype == "bool":
        raise ValueError("a bool input cannot have a range")
    low, high = value_range
    if not -sys.float_info.max <= low < high <= sys.float_info.max:
        raise ValueError(f"the range [{low}, {high}] is not valid: low must be less than high, and both finite")
    if is_integer_dtype(dtype):
        if low != int(low) or high != int(high):
            raise ValueError(f"the range [{low}, {high}] of an integer input must have integer bounds")
        bits = int(dtype.removeprefix("u").removeprefix("int"))
        least, most = (0, 2**bits) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        if low < least or high > most:
            raise ValueError(f"the range [{low}, {high}] exceeds that of {dtype}, which is [{least}, {most}]")
    first, last = find_value_bounds(dtype, low, high)
    if first > last:
        raise ValueError(f"the range [{low}, {high}] contains no {dtype} value")


def find_value_bounds(dtype: str, low: float, high: float) -> tuple[Any, Any]:
    """Return the smallest and the largest value of the dtype with low ≤ x < high.

    They are Python ints for an integer dtype and numpy scalars for a float dtype; bfloat16 uses float32. The first is
    greater than the last if the range contains no value of the dtype.
    """
    if is_integer_dtype(dtype):
        return int(low), int(high) - 1
    # numpy lacks bfloat16. A bound may lie between two values of the dtype, or beyond all of them.
    scalar = np.dtype("float32" if dtype == "bfloat16" else dtype).type
    with np.errstate(over="ignore"):
        first, last = scalar(low), scalar(high)
    if float(first) < low:
        first = np.nextafter(first, scalar(np.inf))
    if float(last) >= high:
        last = np.nextafter(last, scalar(-np.inf))
    return first, last
