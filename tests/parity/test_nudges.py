"""Inputs moved by a few roundings: small, within the range, and not all in one direction."""

import numpy as np
import pytest
from grids import declared
from hypothesis import given
from hypothesis import strategies as st
from projects import LINEAR

from packager.parity import nudges, reference
from packager.parity.cases import generators
from packager.project.manifest import InputSpec


def nudge(array, **spec):
    """Return the nudged values of the one input of a project."""
    return nudges._nudge(declared({"x": {"shape": [], **spec}}), "x", array)


@st.composite
def nudge_inputs(draw):
    """Draw the spec of a float input, and values within its range."""
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    bounds = st.floats(-1e4, 1e4, width=16)
    low, high = sorted([draw(bounds), draw(bounds)])
    try:
        spec = InputSpec(dtype=dtype, shape=[], range=draw(st.sampled_from([None, [low, high]])))
    except ValueError:
        spec = InputSpec(dtype=dtype, shape=[], range=[-1, 1])
    kind = draw(st.sampled_from(["random", "extremes", "vanishing", "low", "high"]))
    return spec, generators.draw_values(spec, (16,), kind, np.random.default_rng(draw(st.integers(0, 99))))


@given(nudge_inputs())
def test_a_nudge_is_small_and_stays_within_the_range(spec_and_array):
    spec, array = spec_and_array
    nudged = nudge(array, dtype=spec.dtype, range=spec.range)
    assert nudged.dtype == array.dtype
    if spec.range is not None:
        assert ((spec.range[0] <= nudged) & (nudged < spec.range[1])).all()
    epsilon = float(np.finfo(array.dtype).eps)
    far = np.abs(nudged.astype(float) - array.astype(float))
    assert (far <= 66 * epsilon * (np.abs(array.astype(float)) + 1)).all()


@pytest.mark.parametrize("limits", [None, [0, 1]])
def test_a_nudge_moves_every_element_it_may_and_not_all_one_way(limits):
    array = np.linspace(0.1, 0.9, 200, dtype=np.float32)
    nudged = nudge(array, dtype="float32", range=limits)
    assert (nudged != array).all()
    assert 50 < (nudged > array).sum() < 150


def test_masks_of_infinities_stay_and_neither_the_largest_number_nor_data_outside_the_range_move_further_out():
    most = np.finfo(np.float32).max
    array = np.array([-np.inf, np.inf, np.nan, -most, most, 0.0], np.float32)
    nudged = nudge(array, dtype="float32")
    assert np.array_equal(nudged[:3], array[:3], equal_nan=True) and np.isfinite(nudged[3:]).all()
    data = np.array([255.0, -7.0, 0.5], np.float32)
    beyond = nudge(data, dtype="float32", range=[0, 1])
    np.testing.assert_allclose(beyond, data, rtol=1e-4)


def test_integers_are_not_nudged():
    array = np.arange(5)
    assert nudge(array, dtype="int64", range=[0, 5]) is array


def test_a_module_of_integers_is_nudged_by_its_parameters(opened):
    text = LINEAR.replace("nn.Linear(4, 3)", "nn.Embedding(9, 3)")
    loaded, model, grid = opened(text, {"x": {"dtype": "int64", "shape": ["batch", 4], "range": [0, 9]}})
    case = grid.example_case
    output, nudged = reference.run_case(loaded, model, case), nudges.run_nudged(loaded, model, case)
    assert 0 < np.abs(output["output_0"] - nudged["output_0"]).max() < 1e-6
