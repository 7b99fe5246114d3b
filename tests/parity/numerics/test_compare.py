"""The comparison of two arrays, checked with exact arithmetic: fractions, and mpmath for roots."""

import itertools
import math
import os
import warnings
from fractions import Fraction

import hypothesis.extra.numpy as npst
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions
from projects import python

from packager.parity.numerics.compare import ElementTolerance, ShapesDiffer, compare, root_mean_square

FLOATS = ["float16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, max_side=4)
TOLERANCE = ElementTolerance(1e-5, 1e-4)
MIXED = ["float32", "float64", "int64", "int32", "bool"]
SPECIALS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0]

mpmath.mp.prec = 2300  # holds the square of the smallest float64 beside that of the largest


@pytest.fixture(autouse=True)
def _no_warnings():
    """Fail on NumPy's warnings: a comparison reports what it finds in its result, not on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@st.composite
def pairs(draw, dtypes, elements=None):
    """Draw two arrays of the same dtype and shape, which agree in some elements."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    element_strategy = elements(dtype) if elements else npst.from_dtype(np.dtype(dtype))
    expected = draw(npst.arrays(dtype, shape, elements=element_strategy))
    near = draw(npst.arrays(dtype, shape, elements=element_strategy))
    agree = draw(npst.arrays(np.bool_, shape))
    return expected, np.where(agree, expected, near).astype(dtype).reshape(shape)


def finite(dtype):
    """Draw any finite value of a dtype, subnormal numbers among them."""
    width = 8 * np.dtype(dtype).itemsize
    return st.floats(width=width, allow_nan=False, allow_infinity=False) | st.floats(-4, 4, width=width)


def exact(array):
    """Return the elements as exact numbers."""
    return [Fraction(value) for value in array.ravel().tolist()]


def as_float(number):
    """Return an exact number, or one of mpmath's, as the nearest float64."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def rms(numbers):
    if not numbers:
        return mpmath.mpf(0)
    return mpmath.sqrt(mpmath.fsum(mpmath.mpf(one.numerator) ** 2 / mpmath.mpf(one.denominator) ** 2 for one in numbers)
                       / len(numbers))  # fmt: skip


def close(found, expected):
    """Return whether a float64 is within a few roundings of an exact number; subnormal numbers round by 5e-324."""
    if math.isinf(found):
        return expected > mpmath.mpf(1.79e308)
    return abs(mpmath.mpf(found) - expected) <= expected * mpmath.mpf(1e-13) + mpmath.mpf(2**-1073)


# -- finite numbers -------------------------------------------------------------------------


@given(pairs(FLOATS, finite))
def test_max_abs_is_the_largest_difference_rounded_once(pair):
    expected, actual = pair
    differences = [abs(one - other) for one, other in zip(exact(expected), exact(actual), strict=True)]
    assert compare(expected, actual, TOLERANCE).max_abs == as_float(max(differences))


@given(pairs(FLOATS, finite))
def test_rms_is_the_root_of_the_mean_square_difference(pair):
    expected, actual = pair
    differences = [one - other for one, other in zip(exact(expected), exact(actual), strict=True)]
    assert close(compare(expected, actual, TOLERANCE).rms, rms(differences))


@given(pairs(FLOATS, finite))
def test_max_rel_divides_by_the_element_or_by_the_rms_of_all(pair):
    expected, actual = pair
    # A subnormal scale is a multiple of 5e-324, so this is the scale that the division uses.
    scale = Fraction(root_mean_square(expected.astype(np.float64)))
    ratios = [
        abs(one - other) / max(abs(one), scale) if max(abs(one), scale) else math.inf
        for one, other in zip(exact(expected), exact(actual), strict=True)
        if one != other
    ]
    largest = max(ratios, default=Fraction(0))
    found = compare(expected, actual, TOLERANCE).max_rel
    assert (
        found == largest if largest == math.inf else close(found, mpmath.mpf(largest.numerator) / largest.denominator)
    )


@given(pairs(FLOATS, finite))
def test_cosine_is_that_of_the_two_arrays_as_vectors(pair):
    left, right = exact(pair[0]), exact(pair[1])
    lengths = mpmath.sqrt(sum(one * one for one in left)) * mpmath.sqrt(sum(one * one for one in right))
    if lengths:
        product = sum(one * other for one, other in zip(left, right, strict=True))
        cosine = mpmath.mpf(product.numerator) / product.denominator / lengths
    else:
        cosine = mpmath.mpf(1 if not any(left) and not any(right) else 0)
    found = compare(*pair, TOLERANCE).cosine
    assert abs(mpmath.mpf(found) - cosine) < 1e-13
    assert -1.0 <= found <= 1.0


@given(pairs(FLOATS, finite), st.floats(0, 10), st.floats(0, 0.5))
def test_the_tolerance_of_an_element_is_atol_plus_rtol_times_the_expected_value(pair, atol, rtol):
    expected, actual = pair
    metrics = compare(expected, actual, ElementTolerance(atol, rtol))
    shares = []
    for one, other in zip(exact(expected), exact(actual), strict=True):
        allowed = Fraction(atol) + Fraction(rtol) * abs(one)
        shares.append(abs(one - other) / allowed if allowed else Fraction(0) if one == other else math.inf)
    largest = max(shares)
    # float64 rounds a product below 1e-308 by more than one part in 1e16.
    coarse = any(0 < Fraction(rtol) * abs(one) < Fraction(1e-290) for one in exact(expected)) or 0 < atol < 1e-290
    if not coarse and largest != math.inf:
        assert close(metrics.error_over_limit, mpmath.mpf(largest.numerator) / largest.denominator)
    if largest == math.inf:
        assert metrics.error_over_limit == math.inf
    if not coarse and not 1 - 1e-12 < largest < 1 + 1e-12:
        assert metrics.within_tolerance == (largest <= 1)
    assert metrics.mismatched_nonfinite == 0


@given(pairs(FLOATS, finite))
def test_the_worst_element_has_the_largest_error_relative_to_its_tolerance(pair):
    expected, actual = pair
    metrics = compare(expected, actual, TOLERANCE)
    index = metrics.worst.index
    assert (metrics.worst.expected, metrics.worst.actual) == (expected[index].item(), actual[index].item())
    assert compare(expected[index], actual[index], TOLERANCE).error_over_limit == metrics.error_over_limit


@given(pairs(FLOATS, finite))
def test_an_array_has_no_error_against_itself(pair):
    metrics = compare(pair[0], pair[0].copy(), ElementTolerance(0.0, 0.0))
    assert (metrics.max_abs, metrics.max_rel, metrics.rms, metrics.error_over_limit) == (0.0, 0.0, 0.0, 0.0)
    assert metrics.within_tolerance and abs(metrics.cosine - 1.0) < 1e-13


@given(pairs(FLOATS, finite))
def test_what_is_within_a_small_tolerance_is_within_a_larger_one(pair):
    narrow, wide = (compare(*pair, ElementTolerance(size, size)) for size in (1e-3, 1e-2))
    assert wide.error_over_limit <= narrow.error_over_limit
    assert wide.within_tolerance or not narrow.within_tolerance


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_element_exactly_at_its_tolerance_is_within_it_and_the_next_number_is_not(dtype):
    tolerance = ElementTolerance(0.5, 0.25)  # |8 - 10.5| = 0.5 + 0.25 · 8
    at, beyond = np.array([10.5], dtype), np.nextafter(np.array([10.5], dtype), np.inf, dtype=dtype)
    assert compare(np.array([8], dtype), at, tolerance).within_tolerance
    assert not compare(np.array([8], dtype), beyond, tolerance).within_tolerance


def test_rtol_is_relative_to_the_expected_value_and_not_to_the_actual_one():
    assert not compare(np.array([1.0]), np.array([2.0]), ElementTolerance(0.0, 0.5)).within_tolerance
    assert compare(np.array([2.0]), np.array([1.0]), ElementTolerance(0.0, 0.5)).within_tolerance


def test_an_element_near_zero_is_judged_on_the_scale_of_atol():
    metrics = compare(np.array([0.0, 100.0]), np.array([1e-6, 100.0]), ElementTolerance(1e-5, 0.0))
    assert metrics.within_tolerance
    assert metrics.error_over_limit == pytest.approx(0.1)
    assert metrics.max_rel == pytest.approx(1e-6 / math.sqrt(5000))


def test_the_smallest_difference_exceeds_a_tolerance_of_zero():
    for dtype in FLOATS:
        tiny = np.array([np.finfo(dtype).smallest_subnormal, 1], dtype)
        metrics = compare(np.array([0, 1], dtype), tiny, ElementTolerance(0.0, 0.0))
        assert metrics.max_abs == float(tiny[0]) > 0
        assert metrics.error_over_limit == math.inf and not metrics.within_tolerance


def test_minus_zero_equals_zero():
    assert compare(np.array([0.0]), np.array([-0.0]), ElementTolerance(0.0, 0.0)).within_tolerance


def test_a_difference_too_large_for_float16_is_exact():
    assert compare(np.array([65504], "float16"), np.array([-65504], "float16"), TOLERANCE).max_abs == 131008.0


def test_the_squares_of_large_and_small_numbers_neither_overflow_nor_underflow():
    for scale in (1e300, 1e-300, 5e-324):
        metrics = compare(np.array([scale, -scale]), np.array([-scale, scale]), TOLERANCE)
        assert (metrics.rms, metrics.cosine) == (2 * scale, -1.0)


def test_a_difference_beyond_float64_is_infinite_and_exceeds_every_tolerance():
    largest = np.finfo("float64").max
    for tolerance in (TOLERANCE, ElementTolerance(0.0, 4.0)):
        metrics = compare(np.array([largest]), np.array([-largest]), tolerance)
        assert (metrics.max_abs, metrics.rms, metrics.error_over_limit) == (math.inf, math.inf, math.inf)
        assert not metrics.within_tolerance


# -- NaN and infinities ---------------------------------------------------------------------


def agree(one, other):
    """Return whether two numbers agree: NaN with NaN, an infinity with the same infinity."""
    return (math.isnan(one) and math.isnan(other)) or one == other


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("one", "other"), list(itertools.product(SPECIALS, SPECIALS)))
def test_a_nan_equals_a_nan_and_an_infinity_the_same_infinity_and_nothing_else(dtype, one, other):
    metrics = compare(np.array([1, one], dtype), np.array([1, other], dtype), ElementTolerance(0.0, 0.0))
    assert metrics.within_tolerance == agree(one, other)
    both_finite = math.isfinite(one) and math.isfinite(other)
    assert metrics.mismatched_nonfinite == (not both_finite and not agree(one, other))


def test_a_nan_equals_a_nan_in_the_same_position_and_nothing_else():
    expected = np.array([[math.nan, 1.0], [2.0, math.nan]])
    assert compare(expected, expected.copy(), ElementTolerance(0.0, 0.0)).within_tolerance
    moved = compare(expected, expected[:, ::-1], TOLERANCE)
    assert not moved.within_tolerance and moved.mismatched_nonfinite == 4


def test_no_tolerance_is_large_enough_for_a_nan_or_an_infinity():
    for one, other in [(math.nan, 0.0), (0.0, math.nan), (math.inf, 1e308), (math.inf, -math.inf)]:
        metrics = compare(np.array([one]), np.array([other]), ElementTolerance(1e308, 1e308))
        assert not metrics.within_tolerance and metrics.error_over_limit == math.inf
        assert repr((metrics.worst.expected, metrics.worst.actual)) == repr((one, other))


def special(dtype):
    return st.sampled_from(SPECIALS) | st.floats(-4, 4, width=8 * np.dtype(dtype).itemsize)


@given(pairs(FLOATS, special))
def test_nonfinite_elements_are_counted_and_leave_the_other_metrics_alone(pair):
    expected, actual = pair
    finite_places = np.isfinite(expected) & np.isfinite(actual)
    metrics = compare(expected, actual, TOLERANCE)
    mismatched = [
        not agree(one, other) and not (math.isfinite(one) and math.isfinite(other))
        for one, other in zip(expected.ravel().tolist(), actual.ravel().tolist(), strict=True)
    ]
    assert metrics.mismatched_nonfinite == sum(mismatched)
    alone = compare(expected[finite_places], actual[finite_places], TOLERANCE)
    for figure in ("max_abs", "max_rel", "rms", "cosine"):
        assert getattr(metrics, figure) == getattr(alone, figure)
    assert metrics.error_over_limit == (math.inf if any(mismatched) else alone.error_over_limit)


# -- integers and booleans ------------------------------------------------------------------


@given(pairs([*INTEGERS, "bool"]))
def test_integers_and_booleans_agree_exactly_or_not_at_all(pair):
    expected, actual = pair
    left, right = expected.ravel().tolist(), actual.ravel().tolist()
    differences = [abs(int(one) - int(other)) for one, other in zip(left, right, strict=True)]
    metrics = compare(expected, actual, ElementTolerance(1e9, 1e9))
    assert metrics.within_tolerance == (max(differences) == 0)
    assert metrics.error_over_limit == (math.inf if max(differences) else 0.0)
    assert metrics.max_abs == float(max(differences))
    assert metrics.mismatched_nonfinite == 0
    assert close(metrics.rms, rms([Fraction(one) for one in differences]))
    index = metrics.worst.index
    assert (metrics.worst.expected, metrics.worst.actual) == (expected[index].item(), actual[index].item())
    assert abs(int(metrics.worst.expected) - int(metrics.worst.actual)) == max(differences)


@given(pairs([*INTEGERS, "bool"]))
def test_the_relative_error_and_the_cosine_of_integers_are_those_of_their_values(pair):
    left, right = ([Fraction(int(value)) for value in one.ravel().tolist()] for one in pair)
    metrics = compare(*pair, TOLERANCE)
    scale = rms(left)
    shares = [
        mpmath.mpf(abs(one - other).numerator) / max(mpmath.mpf(abs(one).numerator), scale) if scale else mpmath.inf
        for one, other in zip(left, right, strict=True)
        if one != other
    ]
    largest = max(shares, default=mpmath.mpf(0))
    assert metrics.max_rel == math.inf if largest == mpmath.inf else close(metrics.max_rel, largest)
    lengths = mpmath.sqrt(sum(one * one for one in left)) * mpmath.sqrt(sum(one * one for one in right))
    product = sum(one * other for one, other in zip(left, right, strict=True))
    cosine = mpmath.mpf(product.numerator) / lengths if lengths else mpmath.mpf(not any(left) and not any(right))
    assert abs(mpmath.mpf(metrics.cosine) - cosine) < 1e-13


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_difference_of_the_extreme_integers_does_not_wrap_around(dtype):
    information = np.iinfo(dtype)
    least, most = np.array([information.min], dtype), np.array([information.max], dtype)
    width = float(2**information.bits - 1)
    assert compare(least, most, TOLERANCE).max_abs == compare(most, least, TOLERANCE).max_abs == width


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_that_round_to_the_same_float64_are_distinguished(dtype):
    large = 2**60
    metrics = compare(np.array([large, 0], dtype), np.array([large + 1, 0], dtype), ElementTolerance(9.0, 9.0))
    assert (metrics.max_abs, metrics.within_tolerance) == (1.0, False)
    assert (metrics.worst.expected, metrics.worst.actual) == (large, large + 1)


def test_a_boolean_differs_by_one():
    metrics = compare(np.array([True, False, True]), np.array([True, True, True]), ElementTolerance(1.0, 1.0))
    assert (metrics.max_abs, metrics.worst.index, metrics.within_tolerance) == (1.0, (1,), False)
    assert (metrics.worst.expected, metrics.worst.actual) == (False, True)


# -- shapes and dtypes ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool", "complex64"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2, 0)])
def test_an_empty_array_agrees_with_an_empty_array_of_its_shape(dtype, shape):
    metrics = compare(np.zeros(shape, dtype), np.zeros(shape, dtype), ElementTolerance(0.0, 0.0))
    assert metrics.within_tolerance and metrics.worst is None
    assert (metrics.max_abs, metrics.max_rel, metrics.rms, metrics.cosine) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("left", "right", "facts"),
    [
        ((0,), (1,), ("[1]", "[0]")),
        ((0, 2), (2, 0), ("[2, 0]", "[0, 2]")),
        ((), (1,), ("[1]", "[]")),
        ((1,), (1, 1), ("[1, 1]", "[1]")),
        ((2, 3), (3, 2), ("[3, 2]", "[2, 3]")),
        ((2, 1), (2, 5), ("[2, 5]", "[2, 1]")),
    ],
)
def test_shapes_agree_exactly_before_any_value_is_compared(left, right, facts):
    with pytest.raises(ShapesDiffer) as caught:
        compare(np.zeros(left), np.zeros(right), TOLERANCE)
    mentions(caught.value, *facts)


@pytest.mark.parametrize(("left", "right"), list(itertools.permutations(MIXED, 2)))
def test_dtypes_agree_exactly_before_any_value_is_compared(left, right):
    with pytest.raises(ShapesDiffer) as caught:
        compare(np.zeros(2, left), np.zeros(2, right), TOLERANCE)
    mentions(caught.value, right, left)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_a_scalar_is_compared_like_any_array(dtype):
    one, other = np.array(1, dtype), np.array(0, dtype)
    metrics = compare(one, other, ElementTolerance(0.0, 0.0))
    assert (metrics.max_abs, metrics.rms, metrics.worst.index, metrics.within_tolerance) == (1.0, 1.0, (), False)
    assert compare(one, one.copy(), ElementTolerance(0.0, 0.0)).within_tolerance


def test_the_memory_layout_of_an_array_makes_no_difference():
    expected = np.arange(24, dtype=np.float32).reshape(4, 6)
    strange = np.asfortranarray(expected)[::2, ::-1]
    metrics = compare(expected[::2, ::-1], strange + np.float32(1), TOLERANCE)
    assert metrics == compare(np.ascontiguousarray(expected[::2, ::-1]), np.ascontiguousarray(strange) + 1, TOLERANCE)
    assert metrics.max_abs == 1.0


def test_neither_array_is_changed():
    expected, actual = np.array([math.nan, 1.0, math.inf]), np.array([1.0, math.nan, 2.0])
    before = expected.tobytes(), actual.tobytes()
    compare(expected, actual, TOLERANCE)
    assert (expected.tobytes(), actual.tobytes()) == before


COMPARE_LARGE_ARRAYS = """
import numpy as np
from packager.parity.numerics.compare import ElementTolerance, compare
draw = np.random.default_rng(0)
for _ in range(9):
    expected = draw.standard_normal(200_000)
    print(compare(expected, expected + draw.standard_normal(200_000) / 8, ElementTolerance(1e-5, 1e-4)))
"""


def test_the_metrics_of_large_arrays_are_the_same_with_any_number_of_threads():
    one, some = (python(COMPARE_LARGE_ARRAYS, env={**os.environ, "OPENBLAS_NUM_THREADS": count}) for count in "14")
    assert one.returncode == 0, one.stderr
    assert one.stdout == some.stdout


# -- complex numbers ------------------------------------------------------------------------


@given(pairs(["complex64", "complex128"], lambda dtype: npst.from_dtype(np.dtype(dtype))))
def test_a_complex_array_is_compared_as_its_two_parts(pair):
    expected, actual = (np.stack([one.real, one.imag], axis=-1) for one in pair)
    # repr, as a NaN in a record does not equal itself.
    assert repr(compare(*pair, TOLERANCE)) == repr(compare(expected, actual, TOLERANCE))


def test_the_worst_element_of_a_complex_array_says_which_part():
    metrics = compare(np.array([1 + 2j, 3 + 4j]), np.array([1 + 2j, 3 + 5j]), TOLERANCE)
    assert (metrics.worst.index, metrics.worst.expected, metrics.worst.actual) == ((1, 1), 4.0, 5.0)
    assert not metrics.within_tolerance


# -- the root mean square -------------------------------------------------------------------


@given(st.lists(finite("float64"), max_size=9))
def test_the_root_mean_square_is_right_at_any_scale(values):
    assert close(root_mean_square(np.array(values, dtype=np.float64)), rms([Fraction(one) for one in values]))
