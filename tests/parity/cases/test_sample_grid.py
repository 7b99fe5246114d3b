"""Input specs and a seed in, the grid of test cases out: how many, and with which values."""

import numpy as np
import pytest
import torch
from grids import declared, grid, sizes_of
from hypothesis import given
from hypothesis import strategies as st

from packager.parity.cases.sample_grid import build_grid, drop_expensive_cases


def same(left, right):
    """Return whether two cases hold the same arrays, name by name and byte by byte."""
    return list(left.inputs) == list(right.inputs) and all(
        (left.inputs[name].dtype, left.inputs[name].shape, left.inputs[name].tobytes())
        == (right.inputs[name].dtype, right.inputs[name].shape, right.inputs[name].tobytes())
        for name in left.inputs
    )


def test_there_are_at_least_as_many_samples_as_the_manifest_asks_for():
    assert [case.name for case in grid({"x": [3]}, samples=12).cases] == [f"{index:03}" for index in range(12)]
    rows = sum(len(case.inputs["x"]) for case in grid({"x": ["batch", 3]}, samples=200).cases)
    assert 200 <= rows < 300


def test_every_size_has_a_case_however_few_samples_the_manifest_asks_for():
    assert sizes_of(grid({"x": ["batch"]}, {"batch": {"max": 9}}, samples=1), "batch") == {1, 2, 3, 9}


def test_a_range_is_tried_at_both_its_ends():
    ids = {"dtype": "int64", "shape": ["batch", "length"], "range": [5, 100]}
    arrays_by_kind = {case.value_description: case.inputs["ids"] for case in grid({"ids": ids}).cases}
    assert set(arrays_by_kind) == {"random", "extremes", "low", "high", "extremes, low, high"}
    assert (np.unique(arrays_by_kind["low"]).tolist(), np.unique(arrays_by_kind["high"]).tolist()) == ([5], [99])


def test_an_input_without_a_range_is_standard_normal_in_every_case():
    ranged = {"dtype": "float32", "shape": ["batch"], "range": [0, 1]}
    cases = grid({"x": ["batch", 50], "y": ranged}, {"batch": {"max": 400}}).cases
    assert all(len(np.unique(case.inputs["x"])) > 10 for case in cases)
    largest = max((case.inputs["x"] for case in cases), key=np.size)
    assert abs(float(largest.mean())) < 0.05 and abs(float(largest.std()) - 1) < 0.05


def test_a_bool_input_is_true_and_false():
    cases = grid({"x": {"dtype": "bool", "shape": ["batch", 9]}}, {"batch": {"max": 99}}).cases
    arrays_by_kind = {case.value_description: case.inputs["x"] for case in cases}
    assert {array.dtype for array in arrays_by_kind.values()} == {np.dtype("bool")}
    assert {kind: set(array.ravel().tolist()) for kind, array in arrays_by_kind.items()} == {
        "random": {True, False}, "padded": {True, False}, "whole": {True}, "low": {False}, "high": {True},
        "padded, low, high": {True, False},
    }  # fmt: skip


def test_every_kind_has_a_row_in_a_batch_of_others_too():
    spec = {"dtype": "float32", "shape": ["batch", 50], "range": [0, 1]}
    for shape in (["batch", 50], ["batch", 200, 200]):
        cases = grid({"x": {**spec, "shape": shape}}).cases
        alone = {case.value_kinds[0] for case in cases if len(case.value_kinds) == 1}
        mixed = {kind for case in cases if len(case.value_kinds) > 1 for kind in case.value_kinds}
        kinds = {"extremes", "long-tailed", "low", "high", "vanishing"}
        assert mixed >= kinds and alone >= {"low", "high", "vanishing"}
    zeros = [(case.inputs["x"].reshape(len(case.inputs["x"]), -1) == 0).all(1) for case in cases]
    assert any(rows.any() and not rows.all() for rows in zeros)


@pytest.mark.parametrize("limits", [None, [-1, 1]])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "batch"), [(["batch", 3, 64, 64], {}), (["batch", 500], {"min": 30}), ([3, 99, 99], None)]
)
def test_however_large_the_inputs_few_elements_of_all_cases_are_subnormal(shape, batch, dtype, limits):
    inputs = {name: {"dtype": dtype, "shape": shape, "range": limits} for name in "xy"}
    cases = grid(inputs, {} if batch is None else {"batch": batch}).cases
    counts = {
        case.name: sum(
            int(np.count_nonzero((array != 0) & (np.abs(array) < np.finfo(array.dtype).smallest_normal)))
            for array in case.inputs.values()
        )
        for case in cases
    }
    assert {name for name, count in counts.items() if count} == {
        case.name for case in cases if "vanishing" in case.value_kinds
    }
    assert all(count <= 16 for count in counts.values()) and sum(counts.values()) <= 32


def test_vanishing_values_show_flushed_subnormal_numbers_and_a_lost_sign_of_zero():
    case = next(case for case in grid({"x": ["batch", 64]}).cases if case.value_kinds == ("vanishing",))
    x = torch.from_numpy(case.inputs["x"])
    expected = x * 1e30
    assert torch.set_flush_denormal(True)
    try:
        flushed = x * 1e30
    finally:
        torch.set_flush_denormal(False)
    assert 0 < (flushed != expected).sum() <= 8
    unsigned = x + 0.0  # as -0.0 + 0.0 is 0.0
    assert (1 / unsigned != 1 / x).any()


@given(st.integers(0, 2**64), st.integers(0, 1000))
def test_the_same_seed_gives_the_same_arrays_and_a_different_seed_different_ones(seed, step):
    inputs = {"x": ["batch", 4], "ids": {"dtype": "int64", "shape": ["batch"], "range": [0, 2**60]}}
    first, second = grid(inputs, seed=seed), grid(inputs, seed=seed)
    assert all(same(*pair) for pair in zip(first.cases, second.cases, strict=True))
    other = grid(inputs, seed=seed + 1 + step)
    assert not any(
        same(*pair) for pair in zip(first.cases, other.cases, strict=True) if pair[0].value_description == "random"
    )


def test_no_two_cases_and_no_two_inputs_have_the_same_values():
    arrays = [array for case in grid({"x": [8], "y": [8]}).cases for array in case.inputs.values()]
    assert len({array.tobytes() for array in arrays}) == len(arrays)


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_added_input_without_new_kinds_changes_no_other_input(place):
    inputs = {"x": ["batch", 4], "ids": {"dtype": "int64", "shape": ["batch"], "range": [0, 9]}}
    other = {"y": {"dtype": "float32", "shape": ["batch"]}}
    before = grid(inputs)
    after = grid({**other, **inputs} if place == "before" else {**inputs, **other})
    for case, other in zip(before.cases, after.cases, strict=True):
        assert all(np.array_equal(case.inputs[name], other.inputs[name]) for name in inputs)


def test_more_samples_leave_the_first_ones_as_they_are():
    few, many = grid({"x": ["batch", 4]}, samples=8), grid({"x": ["batch", 4]}, samples=200)
    assert len(many.cases) > len(few.cases)
    assert all(same(*pair) for pair in zip(few.cases, many.cases, strict=False))


# -- a budget for the cases -----------------------------------------------------------------

IMAGES = {"x": {"dtype": "float32", "shape": ["batch", 3, 64, 64], "range": [0, 1]}}
ROW = 3 * 64 * 64


def within(budget, inputs=IMAGES, dims=None, **parity):
    """Return the grid of a project whose cases cost their elements, before and after expensive ones are dropped."""
    project = declared(inputs, dims, **parity)
    built = build_grid(project)
    return built, drop_expensive_cases(project, built, lambda case: case.element_count, budget)


def test_cases_that_fit_the_budget_together_are_all_kept():
    built, kept = within(10**9)
    assert kept == built


def test_the_example_and_the_probe_are_kept_whatever_they_cost():
    built, kept = within(0)
    assert [case.name for case in kept.cases] == [built.example_case.name, built.probe_case.name]
    assert "random values at batch=3" not in kept.skipped_cases and len(kept.skipped_cases) > 2


def test_varied_values_come_before_sizes_and_constant_values_last():
    _, kept = within(ROW * 6)  # two rows of the example, one of the probe, and three more
    values = [case.value_description for case in kept.cases]
    assert values == ["random", "random", "extremes, long-tailed, random"]
    assert set(kept.skipped_cases) >= {"low values at batch=1", "high values at batch=1", "vanishing values at batch=1"}


def test_a_large_batch_is_halved_until_it_fits():
    vectors = {"x": ["batch", 8]}
    built, _ = within(10**9, vectors)
    assert 128 in sizes_of(built, "batch")
    total = sum(case.element_count for case in built.cases)
    _, kept = within(total - 8 * 80, vectors)
    assert max(sizes_of(kept, "batch")) == 32
    assert kept.skipped_cases == ("random values at batch=128",)
    assert sum(case.element_count for case in kept.cases) <= total - 8 * 80


def test_samples_that_the_manifest_asks_for_are_kept():
    _, kept = within(0, samples=20)
    assert 20 <= sum(len(case.inputs["x"]) for case in kept.cases) < 23
    _, fewer = within(0)
    assert sum(len(case.inputs["x"]) for case in fewer.cases) == 3


@pytest.mark.parametrize("limit", [4, 1000])
def test_some_case_shows_whether_all_that_goes_to_the_same_index_is_added_up(tmp_path, limit):
    edges = {"dtype": "int64", "shape": [2, "edges"], "range": [0, limit]}
    cases = grid({"x": ["nodes", 2], "edges": edges}).cases
    neighbours = [set(zip(*case.inputs["edges"].tolist(), strict=True)) for case in cases]
    assert any(len({target for _, target in pairs}) < len(pairs) for pairs in neighbours)
