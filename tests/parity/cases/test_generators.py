"""The values of one input: every kind is within the range and the dtype, and serves its purpose."""

import typing

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from packager.parity.cases import generators
from packager.project.manifest import InputSpec

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64", "bfloat16"]
KINDS = list(typing.get_args(generators.ValueKind))
VARIED_KINDS = KINDS[1:]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
MASKS = [InputSpec(dtype="bool", shape=[])] + [InputSpec(dtype=name, shape=[], range=[0, 2]) for name in INTEGERS]


@st.composite
def integers(draw):
    dtype = draw(st.sampled_from(INTEGERS))
    information = np.iinfo(dtype)
    low = draw(st.integers(int(information.min), int(information.max)))
    high = draw(st.integers(low + 1, int(information.max) + 1))
    return InputSpec(dtype=dtype, shape=[], range=[low, high])


@st.composite
def floats(draw):
    dtype = draw(st.sampled_from(FLOATS))
    bounds = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
    low, high = sorted([draw(bounds), draw(bounds)])
    try:
        return InputSpec(dtype=dtype, shape=[], range=[low, high])
    except ValueError:  # no value of this dtype is in it
        return InputSpec(dtype=dtype, shape=[], range=[-1.5, 0.7])


RANGED = integers() | floats()
OPEN = st.sampled_from(FLOATS).map(lambda dtype: InputSpec(dtype=dtype, shape=[]))
SPECS = RANGED | OPEN | st.sampled_from(MASKS)


def drawn(spec, shape, kind, seed=0):
    return generators.draw_values(spec, shape, kind, np.random.default_rng(seed))


def dtype_of(spec):
    return np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)


# -- laws of every kind ---------------------------------------------------------------------


@given(SPECS, SHAPES, st.sampled_from(KINDS), st.integers(0, 99))
def test_every_kind_has_the_dtype_shape_and_range_of_the_input_and_is_the_same_each_time(spec, shape, kind, seed):
    array = drawn(spec, shape, kind, seed)
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.shape) == (dtype_of(spec), shape)
    if spec.range is not None:
        low, high = spec.range
        assert all(low <= value < high for value in array.ravel().tolist())
    elif spec.dtype != "bool":
        assert np.isfinite(array).all() and (np.abs(array) <= 30).all()  # none too far for exp()
    assert drawn(spec, shape, kind, seed).tobytes() == array.tobytes()


@given(SPECS, SHAPES, st.sampled_from(VARIED_KINDS))
def test_a_kind_without_a_meaning_for_an_input_is_drawn_at_random(spec, shape, kind):
    assume(kind not in generators.select_kinds([spec]) and kind not in ("whole", "low, unmasked"))
    assert drawn(spec, shape, kind).tobytes() == drawn(spec, shape, "random").tobytes()


@given(SPECS, SHAPES)
def test_low_unmasked_is_low_except_that_masks_are_whole(spec, shape):
    same = "whole" if generators.has_mask([spec]) else "low"
    assert drawn(spec, shape, "low, unmasked").tobytes() == drawn(spec, shape, same).tobytes()


@given(SPECS, st.sampled_from(VARIED_KINDS))
def test_a_kind_with_a_meaning_gives_different_values_than_random(spec, kind):
    assume(kind in generators.select_kinds([spec]))
    assume(spec.range is None or spec.value_bounds()[0] != spec.value_bounds()[1])
    if spec.dtype != "bool" and spec.range is not None and kind in ("vanishing", "long-tailed"):
        least, most = (float(bound) for bound in spec.value_bounds())
        assume(most - least > 1e-3 * max(abs(least), abs(most)))  # few values: some shares fall on the same
    assert drawn(spec, (64,), kind).tobytes() != drawn(spec, (64,), "random").tobytes()


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        ({"dtype": "float32"}, ("long-tailed", "large", "vanishing")),
        ({"dtype": "float32", "range": [0, 1]}, ("extremes", "long-tailed", "low", "high", "vanishing")),
        ({"dtype": "float32", "range": [1, 2]}, ("extremes", "long-tailed", "low", "high")),
        ({"dtype": "int64", "range": [0, 9]}, ("extremes", "low", "high")),
        ({"dtype": "int64", "range": [0, 2]}, ("extremes", "padded", "low", "high")),
        ({"dtype": "bool"}, ("padded", "low", "high")),
    ],
)
def test_an_input_is_varied_by_the_kinds_that_have_a_meaning_for_it(spec, kinds):
    assert generators.select_kinds([InputSpec(shape=[], **spec)]) == kinds


def test_several_inputs_are_varied_by_the_kinds_of_each_of_them():
    kinds = generators.select_kinds([InputSpec(dtype="float32", shape=[]), InputSpec(dtype="bool", shape=[])])
    assert kinds == ("long-tailed", "large", "padded", "low", "high", "vanishing")
    assert generators.has_mask([InputSpec(dtype="float32", shape=[]), InputSpec(dtype="bool", shape=[])])
    assert not generators.has_mask([InputSpec(dtype="int64", shape=[], range=[0, 3])])


# -- the ends -------------------------------------------------------------------------------


@given(RANGED)
def test_the_ends_are_the_first_and_the_last_value_of_the_range(spec):
    low, high = spec.range
    first, last = (drawn(spec, (), kind) for kind in ("low", "high"))
    assert low <= first.item() <= last.item() < high
    if spec.dtype in INTEGERS:
        assert (first.item(), last.item()) == (low, high - 1)
    else:
        with np.errstate(over="ignore"):
            assert float(np.nextafter(first, -np.inf, dtype=first.dtype)) < low
            assert float(np.nextafter(last, np.inf, dtype=last.dtype)) >= high


@given(RANGED | st.sampled_from(MASKS))
def test_low_and_high_are_one_value_everywhere(spec):
    for kind in ("low", "high"):
        assert len(np.unique(drawn(spec, (20,), kind))) == 1
    assert set(drawn(MASKS[0], (3,), "low")) == {False} and set(drawn(MASKS[0], (3,), "high")) == {True}


@given(RANGED)
def test_extremes_are_both_ends_and_nothing_between(spec):
    ends = {drawn(spec, (), kind).item() for kind in ("low", "high")}
    assert set(drawn(spec, (64,), "extremes").tolist()) == ends


# -- floats ---------------------------------------------------------------------------------


def test_a_range_is_filled_and_not_only_its_ends():
    array = drawn(InputSpec(dtype="float32", shape=[], range=[-3, 5]), (4000,), "random")
    counts, _ = np.histogram(array, bins=8, range=(-3, 5))
    assert counts.min() > 400


def subnormal(array):
    return (array != 0) & (np.abs(array) < np.finfo(array.dtype).smallest_normal)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("limits", [None, [-1, 1], [0, 1]])
def test_vanishing_values_are_zeros_of_either_sign_tiny_numbers_and_a_few_subnormal_ones(dtype, limits):
    spec = InputSpec(dtype=dtype, shape=[], range=limits)
    array = drawn(spec, (20, 20), "vanishing")
    zeros, few = array == 0, subnormal(array)
    assert few.sum() == 8
    assert np.signbit(array[zeros]).any() and not np.signbit(array[zeros]).all()
    tiny = np.abs(array[~zeros & ~few]).astype(float)
    assert 120 < tiny.size < 280
    largest = {"float64": 4e-205, "float16": 3.2e-3}.get(dtype, 1.1e-25)
    assert (tiny <= largest).all()
    assert limits is None or ((limits[0] <= array) & (array < limits[1])).all()
    assert (few != subnormal(drawn(spec, (20, 20), "vanishing", seed=1))).any()
    if dtype == "bfloat16":
        assert (array[few].view(np.uint32) & 0xFFFF == 0).all()  # not rounded away where it is made bfloat16


@given(OPEN | floats(), st.lists(st.integers(0, 40), max_size=3).map(tuple), st.integers(0, 99))
def test_however_large_an_array_a_few_elements_are_subnormal(spec, shape, seed):
    assert subnormal(drawn(spec, shape, "vanishing", seed)).sum() <= 8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_turn_vanishing_values_into_no_subnormal_ones(dtype):
    values = drawn(InputSpec(dtype=dtype, shape=[]), (256, 256), "vanishing")
    assert not subnormal(np.outer(values[~subnormal(values)], np.asarray([1e-12, 0.01, 1, 100], dtype))).any()
    assert not subnormal(np.square(values)).any()
    generator = np.random.default_rng(0)
    for _ in range(12):
        weights = (0.02 * generator.standard_normal((256, 256))).astype(dtype)
        values = np.maximum(values @ weights, 0)
        assert not subnormal(values).any() and (values != 0).any()


def test_long_tailed_values_are_mostly_small_and_seldom_far_out():
    wide = np.abs(drawn(InputSpec(dtype="float32", shape=[]), (4000,), "long-tailed"))
    assert np.median(wide) < 2 and wide.max() == 30
    narrow = drawn(InputSpec(dtype="float32", shape=[], range=[0, 1]), (4000,), "long-tailed")
    assert np.median(narrow) < 0.01 and narrow.max() > 0.9


def test_large_is_four_times_the_standard_deviation():
    assert abs(drawn(InputSpec(dtype="float32", shape=[]), (4000,), "large").std() - 4) < 0.2


# -- masks ----------------------------------------------------------------------------------


@given(st.sampled_from(MASKS), st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), st.integers(0, 99))
def test_a_random_mask_has_a_one_in_every_row(spec, shape, seed):
    array = drawn(spec, shape, "random", seed)
    assert set(array.ravel().tolist()) <= {0, 1}
    assert array.any(axis=-1).all()


def test_a_random_mask_has_zeros_too():
    assert not drawn(MASKS[0], (20, 8), "random").all()


@given(st.sampled_from(MASKS), SHAPES, st.integers(0, 99))
def test_a_padded_mask_is_ones_followed_by_zeros(spec, shape, seed):
    array = drawn(spec, shape, "padded", seed).astype(int)
    if shape and shape[-1]:
        assert (array[..., 0] == 1).all()
        assert (np.diff(array, axis=-1) <= 0).all()
    else:
        assert (array == 1).all()


def test_padded_masks_are_of_different_lengths():
    assert len(set(drawn(MASKS[0], (40, 8), "padded").sum(axis=1).tolist())) > 4


@pytest.mark.parametrize("spec", MASKS, ids=lambda spec: spec.dtype)
def test_a_whole_mask_is_ones(spec):
    assert (drawn(spec, (3, 4), "whole") == 1).all()


# -- enumerated integers ---------------------------------------------------------------------


@st.composite
def enumerable(draw):
    """Draw a spec of a few integers anywhere in its dtype."""
    dtype = draw(st.sampled_from(INTEGERS))
    information = np.iinfo(dtype)
    count = draw(st.integers(3, 200))
    low = draw(st.integers(int(information.min), int(information.max) + 1 - count))
    return InputSpec(dtype=dtype, shape=[], range=[low, low + count])


@given(enumerable(), st.integers(1, 50), st.integers(0, 99))
def test_enumerated_integers_come_once_each_before_any_repeats(spec, size, seed):
    low, high = spec.range
    blocks = -(-(high - low) // size)
    parts = [
        generators.enumerate_values(spec, (size,), block, np.random.default_rng(seed)) for block in range(2 * blocks)
    ]
    values = np.concatenate(parts).tolist()
    assert generators.is_enumerable(spec)
    for start in range(0, len(values) - (high - low) + 1, high - low):
        assert sorted(values[start : start + high - low]) == list(range(low, high))


@given(enumerable(), st.integers(0, 99))
def test_as_many_random_integers_as_the_range_has_are_all_of_them(spec, seed):
    low, high = spec.range
    assert sorted(drawn(spec, (high - low,), "random", seed).tolist()) == list(range(low, high))


def test_enumerated_integers_repeat_in_a_different_order():
    spec = InputSpec(dtype="int64", shape=[2, 40], range=[0, 4])
    edges = generators.enumerate_values(spec, (2, 40), 0, np.random.default_rng(0))
    assert len(set(zip(*edges.tolist(), strict=True))) > 10  # of 16 pairs; in one order there are 4


def test_the_order_of_enumerated_integers_depends_on_the_generator():
    spec = InputSpec(dtype="int64", shape=[], range=[0, 100])
    assert drawn(spec, (100,), "random", 0).tolist() != drawn(spec, (100,), "random", 1).tolist()


def test_integers_of_the_widest_range_are_not_enumerated_and_reach_far():
    spec = InputSpec(dtype="uint64", shape=[], range=[0, 2**64])
    assert not generators.is_enumerable(spec)
    array = drawn(spec, (400,), "random")
    assert array.min() < 2**58 and array.max() > 2**64 - 2**58
