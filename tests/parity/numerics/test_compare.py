"""Two arrays side by side, against exact arithmetic: fractions, and mpmath where a root is taken."""

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
LIMIT = ElementTolerance(1e-5, 1e-4)
MIXED = ["float32", "float64", "int64", "int32", "bool"]
SPECIALS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0]

mpmath.mp.prec = 2300  # holds the square of the smallest float64 beside that of the largest


@pytest.fixture(autouse=True)
def _no_warnings():
    """A comparison says what it finds in what it returns; nothing of it belongs on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@st.composite
def pairs(draw, dtypes, elements=None):
    """Two arrays of one dtype and shape, which agree here and there."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    one_value = elements(dtype) if elements else npst.from_dtype(np.dtype(dtype))
    expected = draw(npst.arrays(dtype, shape, elements=one_value))
    near = draw(npst.arrays(dtype, shape, elements=one_value))
    agree = draw(npst.arrays(np.bool_, shape))
    return expected, np.where(agree, expected, near).astype(dtype).reshape(shape)


def finite(dtype):
    """Every finite value of a dtype, denormals among them."""
    width = 8 * np.dtype(dtype).itemsize
    return st.floats(width=width, allow_nan=False, allow_infinity=False) | st.floats(-4, 4, width=width)


def exact(array):
    """The elements as exact numbers."""
    return [Fraction(value) for value in array.ravel().tolist()]


def as_float(number):
    """An exact number, or one of mpmath's, as the nearest float64."""
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
    """Whether a float64 is within a few roundings of an exact number; denormals round in steps of 5e-324."""
    if math.isinf(found):
        return expected > mpmath.mpf(1.79e308)
    return abs(mpmath.mpf(found) - expected) <= expected * mpmath.mpf(1e-13) + mpmath.mpf(2**-1073)


# -- finite numbers -------------------------------------------------------------------------


@given(pairs(FLOATS, finite))
def test_max_abs_is_the_largest_difference_rounded_once(pair):
    expected, actual = pair
    differences = [abs(one - other) for one, other in zip(exact(expected), exact(actual), strict=True)]
    assert compare(expected, actual, LIMIT).max_abs == as_float(max(differences))


@given(pairs(FLOATS, finite))
def test_rms_is_the_root_of_the_mean_square_difference(pair):
    expected, actual = pair
    differences = [one - other for one, other in zip(exact(expected), exact(actual), strict=True)]
    assert close(compare(expected, actual, LIMIT).rms, rms(differences))


@given(pairs(FLOATS, finite))
def test_max_rel_divides_by_the_element_or_by_the_rms_of_all(pair):
    expected, actual = pair
    # float64 holds a scale among its denormals in steps of 5e-324: that is the scale that can be divided by.
    scale = Fraction(root_mean_square(expected.astype(np.float64)))
    ratios = [
        abs(one - other) / max(abs(one), scale) if max(abs(one), scale) else math.inf
        for one, other in zip(exact(expected), exact(actual), strict=True)
        if one != other
    ]
    largest = max(ratios, default=Fraction(0))
    found = compare(expected, actual, LIMIT).max_rel
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
    found = compare(*pair, LIMIT).cosine
    assert abs(mpmath.mpf(found) - cosine) < 1e-13
    assert -1.0 <= found <= 1.0


@given(pairs(FLOATS, finite), st.floats(0, 10), st.floats(0, 0.5))
def test_an_element_is_judged_by_atol_and_rtol_times_what_was_expected(pair, atol, rtol):
    expected, actual = pair
    distance = compare(expected, actual, ElementTolerance(atol, rtol))
    shares = []
    for one, other in zip(exact(expected), exact(actual), strict=True):
        allowed = Fraction(atol) + Fraction(rtol) * abs(one)
        shares.append(abs(one - other) / allowed if allowed else Fraction(0) if one == other else math.inf)
    largest = max(shares)
    # float64 rounds a product below 1e-308 by more than one part in 1e16.
    coarse = any(0 < Fraction(rtol) * abs(one) < Fraction(1e-290) for one in exact(expected)) or 0 < atol < 1e-290
    if not coarse and largest != math.inf:
        assert close(distance.error_over_limit, mpmath.mpf(largest.numerator) / largest.denominator)
    if largest == math.inf:
        assert distance.error_over_limit == math.inf
    if not coarse and not 1 - 1e-12 < largest < 1 + 1e-12:
        assert distance.within_tolerance == (largest <= 1)
    assert distance.mismatched_nonfinite == 0


@given(pairs(FLOATS, finite))
def test_the_worst_element_is_the_farthest_beyond_its_limit(pair):
    expected, actual = pair
    distance = compare(expected, actual, LIMIT)
    place = distance.worst.index
    assert (distance.worst.expected, distance.worst.actual) == (expected[place].item(), actual[place].item())
    assert compare(expected[place], actual[place], LIMIT).error_over_limit == distance.error_over_limit


@given(pairs(FLOATS, finite))
def test_the_distance_of_an_array_from_itself_is_nothing(pair):
    distance = compare(pair[0], pair[0].copy(), ElementTolerance(0.0, 0.0))
    assert (distance.max_abs, distance.max_rel, distance.rms, distance.error_over_limit) == (0.0, 0.0, 0.0, 0.0)
    assert distance.within_tolerance and abs(distance.cosine - 1.0) < 1e-13


@given(pairs(FLOATS, finite))
def test_what_is_allowed_with_a_narrow_limit_is_allowed_with_a_wider(pair):
    narrow, wide = (compare(*pair, ElementTolerance(size, size)) for size in (1e-3, 1e-2))
    assert wide.error_over_limit <= narrow.error_over_limit
    assert wide.within_tolerance or not narrow.within_tolerance


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_element_at_its_limit_is_allowed_and_the_next_is_not(dtype):
    limit = ElementTolerance(0.5, 0.25)  # |8 - 10.5| = 0.5 + 0.25 · 8
    at, beyond = np.array([10.5], dtype), np.nextafter(np.array([10.5], dtype), np.inf, dtype=dtype)
    assert compare(np.array([8], dtype), at, limit).within_tolerance
    assert not compare(np.array([8], dtype), beyond, limit).within_tolerance


def test_rtol_is_of_what_was_expected_and_not_of_what_was_found():
    assert not compare(np.array([1.0]), np.array([2.0]), ElementTolerance(0.0, 0.5)).within_tolerance
    assert compare(np.array([2.0]), np.array([1.0]), ElementTolerance(0.0, 0.5)).within_tolerance


def test_an_element_near_zero_is_judged_on_the_scale_of_atol():
    distance = compare(np.array([0.0, 100.0]), np.array([1e-6, 100.0]), ElementTolerance(1e-5, 0.0))
    assert distance.within_tolerance
    assert distance.error_over_limit == pytest.approx(0.1)
    assert distance.max_rel == pytest.approx(1e-6 / math.sqrt(5000))


def test_the_smallest_difference_misses_a_limit_of_nothing():
    for dtype in FLOATS:
        tiny = np.array([np.finfo(dtype).smallest_subnormal, 1], dtype)
        distance = compare(np.array([0, 1], dtype), tiny, ElementTolerance(0.0, 0.0))
        assert distance.max_abs == float(tiny[0]) > 0
        assert distance.error_over_limit == math.inf and not distance.within_tolerance


def test_minus_zero_equals_zero():
    assert compare(np.array([0.0]), np.array([-0.0]), ElementTolerance(0.0, 0.0)).within_tolerance


def test_a_difference_that_float16_cannot_hold_is_held():
    assert compare(np.array([65504], "float16"), np.array([-65504], "float16"), LIMIT).max_abs == 131008.0


def test_the_squares_of_large_and_of_small_numbers_neither_overflow_nor_vanish():
    for scale in (1e300, 1e-300, 5e-324):
        distance = compare(np.array([scale, -scale]), np.array([-scale, scale]), LIMIT)
        assert (distance.rms, distance.cosine) == (2 * scale, -1.0)


def test_a_difference_beyond_float64_is_infinite_and_allowed_by_nothing():
    largest = np.finfo("float64").max
    for limit in (LIMIT, ElementTolerance(0.0, 4.0)):
        distance = compare(np.array([largest]), np.array([-largest]), limit)
        assert (distance.max_abs, distance.rms, distance.error_over_limit) == (math.inf, math.inf, math.inf)
        assert not distance.within_tolerance


# -- NaN and infinities ---------------------------------------------------------------------


def agree(one, other):
    """NaN with NaN, an infinity with the same infinity."""
    return (math.isnan(one) and math.isnan(other)) or one == other


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("one", "other"), list(itertools.product(SPECIALS, SPECIALS)))
def test_a_nan_equals_a_nan_and_an_infinity_the_same_infinity_and_nothing_else(dtype, one, other):
    distance = compare(np.array([1, one], dtype), np.array([1, other], dtype), ElementTolerance(0.0, 0.0))
    assert distance.within_tolerance == agree(one, other)
    both_finite = math.isfinite(one) and math.isfinite(other)
    assert distance.mismatched_nonfinite == (not both_finite and not agree(one, other))


def test_a_nan_equals_a_nan_in_the_same_place_and_nothing_else():
    expected = np.array([[math.nan, 1.0], [2.0, math.nan]])
    assert compare(expected, expected.copy(), ElementTolerance(0.0, 0.0)).within_tolerance
    moved = compare(expected, expected[:, ::-1], LIMIT)
    assert not moved.within_tolerance and moved.mismatched_nonfinite == 4


def test_no_limit_is_wide_enough_for_a_nan_or_an_infinity():
    for one, other in [(math.nan, 0.0), (0.0, math.nan), (math.inf, 1e308), (math.inf, -math.inf)]:
        distance = compare(np.array([one]), np.array([other]), ElementTolerance(1e308, 1e308))
        assert not distance.within_tolerance and distance.error_over_limit == math.inf
        assert repr((distance.worst.expected, distance.worst.actual)) == repr((one, other))


def special(dtype):
    return st.sampled_from(SPECIALS) | st.floats(-4, 4, width=8 * np.dtype(dtype).itemsize)


@given(pairs(FLOATS, special))
def test_what_is_not_finite_is_counted_and_leaves_the_other_figures_alone(pair):
    expected, actual = pair
    finite_places = np.isfinite(expected) & np.isfinite(actual)
    distance = compare(expected, actual, LIMIT)
    mismatched = [
        not agree(one, other) and not (math.isfinite(one) and math.isfinite(other))
        for one, other in zip(expected.ravel().tolist(), actual.ravel().tolist(), strict=True)
    ]
    assert distance.mismatched_nonfinite == sum(mismatched)
    alone = compare(expected[finite_places], actual[finite_places], LIMIT)
    for figure in ("max_abs", "max_rel", "rms", "cosine"):
        assert getattr(distance, figure) == getattr(alone, figure)
    assert distance.error_over_limit == (math.inf if any(mismatched) else alone.error_over_limit)


# -- integers and booleans ------------------------------------------------------------------


@given(pairs([*INTEGERS, "bool"]))
def test_integers_and_booleans_agree_exactly_or_not_at_all(pair):
    expected, actual = pair
    left, right = expected.ravel().tolist(), actual.ravel().tolist()
    differences = [abs(int(one) - int(other)) for one, other in zip(left, right, strict=True)]
    distance = compare(expected, actual, ElementTolerance(1e9, 1e9))
    assert distance.within_tolerance == (max(differences) == 0)
    assert distance.error_over_limit == (math.inf if max(differences) else 0.0)
    assert distance.max_abs == float(max(differences))
    assert distance.mismatched_nonfinite == 0
    assert close(distance.rms, rms([Fraction(one) for one in differences]))
    place = distance.worst.index
    assert (distance.worst.expected, distance.worst.actual) == (expected[place].item(), actual[place].item())
    assert abs(int(distance.worst.expected) - int(distance.worst.actual)) == max(differences)


@given(pairs([*INTEGERS, "bool"]))
def test_the_relative_error_and_the_cosine_of_integers_are_those_of_their_values(pair):
    left, right = ([Fraction(int(value)) for value in one.ravel().tolist()] for one in pair)
    distance = compare(*pair, LIMIT)
    scale = rms(left)
    shares = [
        mpmath.mpf(abs(one - other).numerator) / max(mpmath.mpf(abs(one).numerator), scale) if scale else mpmath.inf
        for one, other in zip(left, right, strict=True)
        if one != other
    ]
    largest = max(shares, default=mpmath.mpf(0))
    assert distance.max_rel == math.inf if largest == mpmath.inf else close(distance.max_rel, largest)
    lengths = mpmath.sqrt(sum(one * one for one in left)) * mpmath.sqrt(sum(one * one for one in right))
    product = sum(one * other for one, other in zip(left, right, strict=True))
    cosine = mpmath.mpf(product.numerator) / lengths if lengths else mpmath.mpf(not any(left) and not any(right))
    assert abs(mpmath.mpf(distance.cosine) - cosine) < 1e-13


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_extremes_of_an_integer_are_as_far_apart_as_they_are(dtype):
    information = np.iinfo(dtype)
    least, most = np.array([information.min], dtype), np.array([information.max], dtype)
    width = float(2**information.bits - 1)
    assert compare(least, most, LIMIT).max_abs == compare(most, least, LIMIT).max_abs == width


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_that_are_one_float64_are_told_apart(dtype):
    large = 2**60
    distance = compare(np.array([large, 0], dtype), np.array([large + 1, 0], dtype), ElementTolerance(9.0, 9.0))
    assert (distance.max_abs, distance.within_tolerance) == (1.0, False)
    assert (distance.worst.expected, distance.worst.actual) == (large, large + 1)


def test_a_boolean_differs_by_one():
    distance = compare(np.array([True, False, True]), np.array([True, True, True]), ElementTolerance(1.0, 1.0))
    assert (distance.max_abs, distance.worst.index, distance.within_tolerance) == (1.0, (1,), False)
    assert (distance.worst.expected, distance.worst.actual) == (False, True)


# -- shapes and dtypes ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool", "complex64"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2, 0)])
def test_an_empty_array_agrees_with_an_empty_array_of_its_shape(dtype, shape):
    distance = compare(np.zeros(shape, dtype), np.zeros(shape, dtype), ElementTolerance(0.0, 0.0))
    assert distance.within_tolerance and distance.worst is None
    assert (distance.max_abs, distance.max_rel, distance.rms, distance.cosine) == (0.0, 0.0, 0.0, 1.0)


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
def test_shapes_agree_exactly_before_any_value_is_looked_at(left, right, facts):
    with pytest.raises(ShapesDiffer) as caught:
        compare(np.zeros(left), np.zeros(right), LIMIT)
    mentions(caught.value, *facts)


@pytest.mark.parametrize(("left", "right"), list(itertools.permutations(MIXED, 2)))
def test_dtypes_agree_exactly_before_any_value_is_looked_at(left, right):
    with pytest.raises(ShapesDiffer) as caught:
        compare(np.zeros(2, left), np.zeros(2, right), LIMIT)
    mentions(caught.value, right, left)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_a_scalar_is_compared_as_any_array(dtype):
    one, other = np.array(1, dtype), np.array(0, dtype)
    distance = compare(one, other, ElementTolerance(0.0, 0.0))
    assert (distance.max_abs, distance.rms, distance.worst.index, distance.within_tolerance) == (1.0, 1.0, (), False)
    assert compare(one, one.copy(), ElementTolerance(0.0, 0.0)).within_tolerance


def test_how_an_array_lies_in_memory_makes_no_difference():
    expected = np.arange(24, dtype=np.float32).reshape(4, 6)
    strange = np.asfortranarray(expected)[::2, ::-1]
    distance = compare(expected[::2, ::-1], strange + np.float32(1), LIMIT)
    assert distance == compare(np.ascontiguousarray(expected[::2, ::-1]), np.ascontiguousarray(strange) + 1, LIMIT)
    assert distance.max_abs == 1.0


def test_neither_array_is_changed():
    expected, actual = np.array([math.nan, 1.0, math.inf]), np.array([1.0, math.nan, 2.0])
    before = expected.tobytes(), actual.tobytes()
    compare(expected, actual, LIMIT)
    assert (expected.tobytes(), actual.tobytes()) == before


DISTANCE = """
import numpy as np
from packager.parity.numerics.compare import ElementTolerance, compare
draw = np.random.default_rng(0)
for _ in range(9):
    expected = draw.standard_normal(200_000)
    print(compare(expected, expected + draw.standard_normal(200_000) / 8, ElementTolerance(1e-5, 1e-4)))
"""


def test_the_distance_of_large_arrays_is_the_same_with_any_number_of_threads():
    one, some = (python(DISTANCE, env={**os.environ, "OPENBLAS_NUM_THREADS": count}) for count in "14")
    assert one.returncode == 0, one.stderr
    assert one.stdout == some.stdout


# -- complex numbers ------------------------------------------------------------------------


@given(pairs(["complex64", "complex128"], lambda dtype: npst.from_dtype(np.dtype(dtype))))
def test_a_complex_number_is_its_two_parts(pair):
    expected, actual = (np.stack([one.real, one.imag], axis=-1) for one in pair)
    # repr, as a NaN in a record does not equal itself.
    assert repr(compare(*pair, LIMIT)) == repr(compare(expected, actual, LIMIT))


def test_the_worst_of_a_complex_array_says_which_part():
    distance = compare(np.array([1 + 2j, 3 + 4j]), np.array([1 + 2j, 3 + 5j]), LIMIT)
    assert (distance.worst.index, distance.worst.expected, distance.worst.actual) == ((1, 1), 4.0, 5.0)
    assert not distance.within_tolerance


# -- the root mean square -------------------------------------------------------------------


@given(st.lists(finite("float64"), max_size=9))
def test_the_root_mean_square_is_right_at_any_scale(values):
    assert close(root_mean_square(np.array(values, dtype=np.float64)), rms([Fraction(one) for one in values]))
