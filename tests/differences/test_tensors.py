"""The difference between two arrays, checked against Python's own arithmetic."""

import math
import warnings
from dataclasses import replace

import hypothesis.extra.numpy as npst
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions

from packager.differences import tensors
from packager.differences.tensors import TensorChange, measure_change

SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool", "complex64", "complex128"]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@st.composite
def pairs(draw, dtypes=tuple(DTYPES)):
    """Draw two arrays of the same dtype and shape, which agree in some elements."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    before, other = draw(npst.arrays(dtype, shape)), draw(npst.arrays(dtype, shape))
    return before, np.where(draw(npst.arrays("bool", shape)), before, other).astype(dtype)


def bits(array):
    return [value.tobytes() for value in array.reshape(-1)]


@given(pairs())
def test_a_value_has_changed_if_its_bits_have(arrays):
    before, after = arrays
    changed = sum(left != right for left, right in zip(bits(before), bits(after), strict=True))
    change = measure_change(before, after)
    assert (change is None) == (changed == 0)
    assert change is None or (change.changed, change.total) == (changed, before.size)
    assert measure_change(before, before.copy()) is None


@given(pairs(["float16", "float32", "int8", "int64", "uint64", "bool"]))
def test_the_largest_distance_agrees_with_exact_arithmetic(arrays):
    before, after = arrays
    change = measure_change(before, after)
    numbers = list(zip(before.reshape(-1).tolist(), after.reshape(-1).tolist(), strict=True))
    finite = [abs(left - right) for left, right in numbers if math.isfinite(left) and math.isfinite(right)]
    if change is not None:
        assert change.max_abs == float(max(finite, default=0))
        nonfinite = [pair for pair in numbers if not all(map(math.isfinite, pair)) and not all(map(math.isnan, pair))]
        assert change.nonfinite == sum(left != right for left, right in nonfinite)


@given(pairs())
def test_swapping_the_arrays_changes_only_the_scale(arrays):
    there, back = measure_change(*arrays), measure_change(*arrays[::-1])
    assert (there is None) == (back is None)
    if there is not None:
        assert (there.changed, there.max_abs, there.nonfinite) == (back.changed, back.max_abs, back.nonfinite)


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_the_block_size_makes_no_difference(monkeypatch, block):
    before = np.arange(10, dtype=np.float32).reshape(2, 5)
    after = before.copy()
    after[1, 3] += 0.5
    monkeypatch.setattr(tensors, "_BLOCK_VALUES", block)
    change = measure_change(before, after)
    assert (change.changed, change.total, change.max_abs, change.nonfinite) == (1, 10, 0.5, 0)
    assert change.relative == pytest.approx(0.5 / math.sqrt(28.5), rel=1e-12)


def signalling():
    return np.array([0x7F800001], np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("before", "after", "expected", "facts"),
    [
        (np.zeros(2), np.array([-0.0, 0.0]), TensorChange(1, 2, 0.0, 0.0), ("1", "2", "0")),
        (np.zeros(2), np.ones(2), TensorChange(2, 2, 1.0, math.inf), ("2", "1")),
        (
            np.array([math.nan, 3.0]), np.array([1.0, 4.0]), TensorChange(2, 2, 1.0, 1 / 3, 1),
            ("2", "1", "NaN"),
        ),
        (
            np.array([math.inf]), np.array([-math.inf]), TensorChange(1, 1, 0.0, 0.0, 1),
            ("1", "NaN"),
        ),
        (signalling(), -signalling(), TensorChange(1, 1, 0.0, 0.0), ("1", "0")),
        (
            np.array([2**63], "u8"), np.array([2**63 + 1], "u8"), TensorChange(1, 1, 1.0, 2.0**-63),
            ("1",),
        ),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), TensorChange(1, 2, None, None), ("1", "2")),
        (
            np.array([1, 2], ml_dtypes.bfloat16), np.array([1, 2.5], ml_dtypes.bfloat16),
            TensorChange(1, 2, 0.5, 0.5 / math.sqrt(2.5)), ("1", "2", "0.5"),
        ),
        (np.array([7], ml_dtypes.int4), np.array([-8], ml_dtypes.int4), TensorChange(1, 1, 15.0, 15 / 7), ("1",)),
        (np.array(3.0 + 4.0j), np.array(0j), TensorChange(1, 1, 5.0, 1.0), ("1", "5")),
        (np.array([1e200]), np.array([-1e200]), TensorChange(1, 1, 2e200, 2.0), ("1", "2e+200")),
    ],
)  # fmt: skip
def test_special_values_are_compared(before, after, expected, facts):
    change = measure_change(before, after)
    assert change == replace(expected, relative=change.relative)
    assert change.relative == (expected.relative and pytest.approx(expected.relative, rel=1e-12))
    mentions(change.text(), *facts)


def test_a_change_has_no_infinity_in_json():
    assert TensorChange(1, 2, 1.0, math.inf).as_json() == {
        "changed": 1, "total": 2, "max_abs": 1.0, "relative": "Infinity", "nonfinite": 0
    }  # fmt: skip
