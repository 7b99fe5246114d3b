"""Test cases on which a tie decides the outputs are generated again or left out, and reported."""

import numpy as np
import pytest
from messages import carries

from packager.errors import DecidedByTies, OutputsNan
from packager.parity import reference
from packager.parity.cases import sample_grid
from packager.parity.cost import ForwardCost
from packager.parity.ties import find_tied_output

RANKED = {"x": {"dtype": "float32", "shape": ["batch", 8], "range": [0, 1]}}
TOPK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = x * self.scale
        return {}
"""
CHOSEN = {
    "an index": "y.topk(3).indices",
    "a value elsewhere": "torch.zeros_like(y).scatter(1, y.topk(3).indices, 1.0)",
    "what is masked": "y.masked_fill(torch.zeros_like(y).scatter(1, y.topk(3).indices, 1.0) == 0, float('-inf'))",
}


def measure(loaded, model, grid, *, has_discrete_decisions=True):
    return reference.measure_reference(
        loaded,
        model,
        grid,
        reference.measure_noise(loaded, model, grid, {}, ForwardCost(0, 0.0)),
        probe=(),
        has_discrete_decisions=has_discrete_decisions,
    )


@pytest.mark.parametrize("expression", CHOSEN.values(), ids=CHOSEN)
def test_a_case_that_a_tie_decides_is_generated_again_and_reported(opened, expression, golden):
    loaded, model, grid = opened(TOPK.format(expression), RANKED)
    result = measure(loaded, model, grid)
    tied = {
        case.name: case.value_description
        for case in grid.cases
        if {"extremes", "low", "high", "vanishing"} & set(case.value_kinds)
    }
    assert len(tied) == 6
    assert len(result.uncompared) == len(tied)
    for note, (name, kind) in zip(result.uncompared, tied.items(), strict=True):
        golden(note, name, kind)
    assert [case.name for case in result.cases] == [case.name for case in grid.cases]
    assert {case.value_description for case in result.cases if case.name in tied} == {"random"}
    assert [case.name for case in result.reference_cases] == [case.name for case in result.cases]


def test_a_case_that_is_generated_again_keeps_its_sizes_and_is_the_same_each_time(opened):
    loaded, model, grid = opened(TOPK.format(CHOSEN["an index"]), RANKED)
    result = measure(loaded, model, grid)
    for case, original in zip(result.cases, grid.cases, strict=True):
        assert case.sizes == original.sizes
        again = sample_grid.redraw_case(loaded, case.name, case.sizes, case.value_kinds)
        assert np.array_equal(again.inputs["x"], case.inputs["x"])


def test_a_module_without_discrete_decisions_is_not_nudged(opened):
    loaded, model, grid = opened(TOPK.format(CHOSEN["an index"]), RANKED)
    result = measure(loaded, model, grid, has_discrete_decisions=False)
    assert result.uncompared == ()
    assert result.cases == grid.cases


def test_user_data_with_a_tie_are_left_out_and_reported(opened, tmp_path, golden):
    np.savez(tmp_path / "real.npz", x=np.full((3, 8), 0.5, np.float32))
    loaded, model, grid = opened(TOPK.format(CHOSEN["an index"]), RANKED, parity={"data": "real.npz"})
    result = measure(loaded, model, grid)
    golden(result.uncompared[-1], "(data)", "output_0")
    assert "data" not in [case.name for case in result.cases]


def test_a_module_whose_every_output_depends_on_a_tie_is_refused(opened, tmp_path, golden):
    loaded, model, grid = opened(TOPK.format("(y * 1e7).round().long()"), RANKED)
    with pytest.raises(DecidedByTies) as caught:
        measure(loaded, model, grid)
    names = {case.name: case.value_description for case in grid.cases}
    last = next(name for name in names if carries(caught.value.why, f"{name} ({names[name]})"))
    golden(
        caught.value,
        *(f"{tmp_path / 'package.yaml'}:1: parity", len(grid.cases), "output_0"),
        case=f"{last} ({names[last]})",
    )


NAN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        y = self.layer(x)
        return {}
"""


def test_a_case_on_which_rounding_decides_whether_an_output_is_nan_is_not_called_a_tie(opened, golden):
    source = NAN.format("(z := self.layer(x / x.norm(dim=-1, keepdim=True))).argmax(-1), z")
    loaded, model, grid = opened(source, {"x": {"dtype": "float32", "shape": ["batch", 8]}})
    notes = measure(loaded, model, grid).uncompared
    golden(notes[0], "(vanishing)", "output_1", "NaN")
    assert all("NaN" in note and "tie" not in note for note in notes)


def test_a_module_whose_outputs_are_nan_or_not_by_rounding_is_not_refused_for_ties(opened, tmp_path, golden):
    source = NAN.format("y, torch.acos(nn.functional.cosine_similarity(x[:, None], x[None], -1))")
    loaded, model, grid = opened(source, {"x": {"dtype": "float32", "shape": ["batch", 8]}})
    with pytest.raises(OutputsNan) as caught:
        measure(loaded, model, grid)
    golden(caught.value, f"{tmp_path / 'package.yaml'}:1: parity", "output_1", "NaN")


# -- outputs that a nudge changes -----------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "nudged", "tied"),
    [
        ([1.0, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, 2.05], False),
        ([1.0, 2.0], [1.0, 2.5], True),
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], False),
        ([1.0, np.inf, 2.0], [np.inf, 1.0, 2.0], True),
        ([1.0, np.nan], [1.0, 2.0], True),
        ([1, 2], [1, 2], False),
        ([1, 2], [2, 1], True),
        ([True, False], [True, True], True),
        ([1.0, 2.0], [1.0, 2.0, 3.0], True),
    ],
    ids=["same", "near", "far", "same nonfinite", "moved infinity", "lost NaN", "same integers", "swapped integers",
         "boolean", "shape"],
)  # fmt: skip
def test_a_tied_output_is_the_first_that_a_nudge_changes_by_more_than_rounding(output, nudged, tied):
    arrays = {"first": np.ones(2), "second": np.asarray(output), "third": np.asarray(output)}
    changed = {"first": np.ones(2), "second": np.asarray(nudged), "third": np.asarray(nudged)}
    assert find_tied_output(arrays, changed) == ("second" if tied else "")
