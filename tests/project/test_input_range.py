"""The range of an input: which ranges are valid, and which values of the dtype lie in them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.project.input_range import check_range, find_value_bounds

FLOATS = ("float16", "float32", "float64")
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)


def below(value, dtype):
    """Return the largest value of a float dtype that is less than `value`."""
    return np.nextafter(dtype(value), dtype(-np.inf))


@pytest.mark.parametrize(
    ("dtype", "value_range", "first", "last"),
    [
        ("int8", (-128, 128), -128, 127),
        ("uint64", (0, 2**64), 0, 2**64 - 1),
        ("int32", (2.0, 5.0), 2, 4),
        ("float64", (0, 1), np.float64(0), below(1, np.float64)),
        ("float32", (0.1, 1), np.float32(0.1), below(1, np.float32)),
        ("bfloat16", (0, 1), np.float32(0), below(1, np.float32)),
        ("float16", (-1e6, 1e6), np.float16(-65504), np.float16(65504)),
    ],
)
def test_the_bounds_are_the_outermost_values_of_the_dtype(dtype, value_range, first, last):
    check_range(dtype, value_range)
    bounds = find_value_bounds(dtype, *value_range)
    assert bounds == (first, last)
    assert [type(bound) for bound in bounds] == [type(first), type(last)]


def test_a_float_or_bool_input_needs_no_range():
    for dtype in (*FLOATS, "bool"):
        check_range(dtype, None)


@given(st.sampled_from(FLOATS), NUMBERS, NUMBERS)
def test_a_float_range_is_valid_exactly_if_the_dtype_has_a_value_in_it(dtype, low, high):
    try:
        check_range(dtype, [low, high])
        valid = True
    except ValueError:
        valid = False
    assert valid == (next_value(dtype, low) < high)


def next_value(dtype, low):
    """Return the smallest value of a dtype that is at least `low`, by bisection of its bit patterns."""
    bits = {"float16": np.uint16, "float32": np.uint32, "float64": np.uint64}[dtype]
    width = 8 * np.dtype(bits).itemsize
    infinity = int(np.array(np.inf, dtype).view(bits))

    def value(position):
        pattern = position if position >= 0 else 2 ** (width - 1) - position
        return float(np.array(pattern, bits).view(dtype))

    lowest, highest = -infinity, infinity
    while lowest < highest:
        middle = (lowest + highest) // 2
        if value(middle) >= low:
            highest = middle
        else:
            lowest = middle + 1
    return value(lowest) if math.isfinite(value(lowest)) else math.inf
