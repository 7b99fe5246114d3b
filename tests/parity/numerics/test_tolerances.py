"""Tolerances: laws of scales, noise floors and relative differences, checked with exact arithmetic."""

import math
from fractions import Fraction

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from packager.parity.numerics.compare import compare
from packager.parity.numerics.tolerances import (
    NOISE_MULTIPLE,
    derive_noise_floors,
    derive_tolerance,
    estimate_scales,
    get_machine_epsilon,
    get_minimum_noise,
    get_smallest_normal,
    measure_relative_difference,
)

DTYPES = ["float16", "float32", "float64"]
MODERATE = st.floats(-1e6, 1e6, width=32)
ANY = st.floats(width=32)
ARRAYS = npst.arrays("float32", npst.array_shapes(min_dims=0, max_dims=2, max_side=6), elements=MODERATE)
WHOLE = st.lists(ARRAYS, min_size=1, max_size=4)


def exact(array):
    return [Fraction(value) for value in array.ravel().tolist()]


# -- scales ---------------------------------------------------------------------------------


@given(WHOLE, st.randoms(use_true_random=False))
def test_scales_depend_neither_on_the_order_of_the_elements_nor_on_their_signs(arrays, random):
    def shuffled(array):
        values = array.ravel().tolist()
        random.shuffle(values)
        return -np.array(values, array.dtype).reshape(array.shape)

    assert estimate_scales([shuffled(array) for array in arrays]) == estimate_scales(arrays)
    assert estimate_scales(arrays[::-1]) == estimate_scales(arrays)[::-1]


@given(WHOLE, st.integers(-20, 20))
def test_scales_grow_with_the_arrays(arrays, power):
    wide = [array.astype(np.float64) for array in arrays]
    assert estimate_scales([array * 2.0**power for array in wide]) == [
        scale * 2.0**power for scale in estimate_scales(wide)
    ]


@given(st.lists(npst.arrays("float32", (8,), elements=ANY), min_size=1, max_size=4))
def test_scales_are_finite_and_the_size_of_some_element_or_zero(arrays):
    magnitudes = {abs(value) for array in arrays for value in array.tolist()} | {0.0}
    assert all(math.isfinite(scale) and scale in magnitudes for scale in estimate_scales(arrays))


@given(WHOLE)
def test_an_array_is_on_no_smaller_scale_than_all_together(arrays):
    together = estimate_scales([np.concatenate([array.ravel() for array in arrays])])[0]
    scales = estimate_scales(arrays)
    distinct = all(len(set(np.abs(array).ravel().tolist())) == array.size for array in arrays)
    if distinct and len({abs(value) for array in arrays for value in array.ravel().tolist()}) == sum(
        map(np.size, arrays)
    ):
        assert min(scales) == together


@given(npst.arrays("float32", (20,), elements=st.floats(0.5, 2, width=32), unique=True), st.integers(2, 60))
@example(np.linspace(0.5, 2, 20, dtype="float32"), 20)
def test_a_value_that_many_elements_share_does_not_count(values, count):
    masked = np.concatenate([values, np.full(count, -1e9, np.float32)])
    plain = estimate_scales([values])[0]
    assert (
        estimate_scales([masked])[0] == plain
        if count > max(2, len(masked) / 16)
        else estimate_scales([masked])[0] >= plain
    )


@given(npst.arrays("float32", (20,), elements=st.floats(0.5, 2, width=32), unique=True), st.integers(1, 60))
def test_zeros_and_nonfinite_elements_do_not_count(values, count):
    others = np.tile(np.array([0.0, -0.0, np.nan, np.inf, -np.inf], np.float32), count)
    assert estimate_scales([np.concatenate([others, values])]) == estimate_scales([values])


@pytest.mark.parametrize("value", [3.0, -3.0])
def test_if_all_elements_have_the_same_value_it_is_the_scale(value):
    assert estimate_scales([np.full(50, value, np.float32)]) == [3.0]


@pytest.mark.parametrize("array", [np.zeros(5), np.zeros(0), np.full(3, np.nan), np.full(3, -np.inf)])
def test_an_array_without_a_scale_takes_that_of_the_others(array):
    one = array.astype(np.float32)
    assert estimate_scales([one]) == [0.0]
    assert estimate_scales([one, np.arange(1, 9, dtype=np.float32)]) == [2.0, 2.0]
    assert estimate_scales([]) == []


def test_the_scale_is_the_lower_quartile():
    assert estimate_scales([np.arange(1, 101, dtype=np.float32)]) == [25.0]
    assert estimate_scales([np.arange(1, 101, dtype=np.float32), np.arange(101, 201, dtype=np.float32)]) == [
        50.0,
        125.0,
    ]


def test_a_large_array_is_sampled_evenly():
    array = np.repeat(np.linspace(1, 2, 1 << 20, dtype=np.float32), 2)
    assert estimate_scales([array])[0] == pytest.approx(1.25, rel=1e-3)


# -- noise floors ---------------------------------------------------------------------------

NOISE = st.floats(0, 1)
CASES = "abcdefghijklm"
MEASURED = st.dictionaries(st.sampled_from("abcdefgh"), NOISE)
PARTLY_MEASURED = st.dictionaries(st.sampled_from("ijk"), NOISE)


@given(MEASURED, PARTLY_MEASURED, st.floats(1e-12, 1e-3))
def test_noise_floors_lie_between_the_median_and_the_largest(measured, partly_measured, least):
    floors = derive_noise_floors(measured, partly_measured, CASES, least)
    every = [*measured.values(), *partly_measured.values()]
    assert list(floors) == list(CASES)
    if not every:
        assert set(floors.values()) == {least}
        return
    middle = sorted(map(Fraction, every))
    median = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
    largest = max(least, *every)
    assert all(floor <= largest for floor in floors.values())
    assert all(floor >= least and Fraction(floor) >= median * (1 - Fraction(1, 2**50)) for floor in floors.values())


@given(MEASURED, PARTLY_MEASURED, st.floats(1e-12, 1e-3))
def test_no_case_has_less_than_was_measured_and_an_unmeasured_one_has_the_largest(measured, partly_measured, least):
    floors = derive_noise_floors(measured, partly_measured, CASES, least)
    assert all(floors[case] >= noise for case, noise in {**measured, **partly_measured}.items())
    largest = max([least, *measured.values(), *partly_measured.values()])
    assert all(floors[case] == largest for case in CASES if case not in measured and case not in partly_measured)


@given(MEASURED, PARTLY_MEASURED, st.floats(1e-12, 1e-3))
def test_a_partly_measured_case_has_no_less_than_any_fully_measured_one(measured, partly_measured, least):
    floors = derive_noise_floors(measured, partly_measured, CASES, least)
    assert all(floors[case] >= noise for case in partly_measured for noise in measured.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_least_noise_is_a_few_roundings(dtype):
    one = np.dtype(dtype).type(1)
    assert get_machine_epsilon(np.dtype(dtype)) == float(np.nextafter(one, one + one) - one)
    assert get_minimum_noise(np.dtype(dtype)) == 4 * get_machine_epsilon(np.dtype(dtype))


# -- relative differences -------------------------------------------------------------------


@st.composite
def pairs(draw, elements):
    shape = draw(npst.array_shapes(min_dims=0, max_dims=2, max_side=4))
    dtype = draw(st.sampled_from(DTYPES))
    return tuple(draw(npst.arrays("float16", shape, elements=elements)).astype(dtype) for _ in range(2))


HALVES = st.floats(width=16, allow_nan=False, allow_infinity=False)


@given(pairs(HALVES), st.floats(0, 1e3))
def test_a_relative_difference_is_the_largest_share_of_the_reference_and_the_scale(pair, scale):
    shares = [
        abs(one - other) / whole if (whole := abs(other) + Fraction(scale)) else math.inf
        for one, other in zip(exact(pair[0]), exact(pair[1]), strict=True)
        if one != other
    ]
    expected = max(shares, default=Fraction(0))
    found = measure_relative_difference(*pair, scale)
    assert found == expected if expected == math.inf else found == pytest.approx(float(expected), rel=1e-14)
    assert measure_relative_difference(pair[0], pair[0].copy(), scale) == 0.0


@given(pairs(st.floats(width=16)), st.floats(0, 1e3))
def test_elements_that_are_nonfinite_on_either_side_do_not_count(pair, scale):
    both = np.isfinite(pair[0]) & np.isfinite(pair[1])
    assert measure_relative_difference(*pair, scale) == measure_relative_difference(pair[0][both], pair[1][both], scale)


@given(pairs(HALVES), st.floats(0.1, 1e3), st.integers(-30, 30))
def test_a_relative_difference_does_not_depend_on_the_unit(pair, scale, power):
    left, right = (array.astype(np.float64) for array in pair)
    assert measure_relative_difference(
        left * 2.0**power, right * 2.0**power, scale * 2.0**power
    ) == measure_relative_difference(left, right, scale)


@given(pairs(HALVES), st.floats(1e-6, 1e-2), st.floats(0.1, 10))
def test_a_difference_of_some_noise_floors_is_within_a_tolerance_of_as_many(pair, noise, scale):
    """Tolerance and relative difference have one unit: up to eight noise floors of |expected| + scale are within it."""
    found, expected = pair
    share = measure_relative_difference(found, expected, scale) / noise
    assume(not 0.999 * NOISE_MULTIPLE < share < 1.001 * NOISE_MULTIPLE)
    assert compare(expected, found, derive_tolerance(noise, scale, found.dtype)).within_tolerance == (
        share < NOISE_MULTIPLE
    )


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_empty_arrays_have_no_relative_difference(shape):
    assert measure_relative_difference(np.zeros(shape, np.float32), np.zeros(shape, np.float32), 1.0) == 0.0


def test_a_difference_beyond_float64_is_infinite_and_causes_no_warning():
    most = np.array([np.finfo("float64").max])
    assert measure_relative_difference(most, -most, 1.0) == math.inf


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_underflows_is_no_difference(dtype):
    """transformers' initial EfficientNet returns zeros in float32 where float64 has 1e-67."""
    tiny = get_smallest_normal(np.dtype(dtype))
    zeros, remainder = np.zeros(3, dtype), np.array([tiny / 2, -tiny / 2, 0.0])
    assert measure_relative_difference(zeros, remainder, 0.0) == 0.0
    assert measure_relative_difference(zeros, 4 * remainder, 0.0) == 1.0
    tolerance = derive_tolerance(1e-7, 0.0, np.dtype(dtype))
    assert compare(np.zeros(3), remainder, tolerance).within_tolerance
    assert not compare(np.zeros(3), 4 * remainder, tolerance).within_tolerance
