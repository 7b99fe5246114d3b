"""Which test cases noise is measured on: the largest affordable ones, and every kind of values."""

import numpy as np
import pytest

from packager.parity.cases.sample_grid import Grid, InputCase
from packager.parity.noise_cases import MAX_ROWS, NoiseCases, choose_noise_cases


def case(name, rows, width=1, kinds=("random",)):
    """Return a case of one input, an array of zeros that takes no memory."""
    return InputCase(name, {"batch": rows}, kinds, {"x": np.broadcast_to(np.float32(0), (rows, width))})


def chosen(*cases, example, probe, parameters=1):
    """Choose among these cases, of which two are named; returns the names of each group."""
    by_name = {candidate.name: candidate for candidate in cases}
    noise_cases = choose_noise_cases(Grid(cases, by_name[example], by_name[probe]), parameters)
    groups = (noise_cases.float64_cases, noise_cases.batch_cases, noise_cases.other_kind_cases)
    return tuple([candidate.name for candidate in group] for group in groups)


def test_the_largest_cases_run_in_float64_and_row_by_row():
    cases = case("000", 2), case("001", 1), case("002", 5), case("003", 3)
    assert chosen(*cases, example="000", probe="001") == (["002", "003", "000", "001"],) * 2 + ([],)


@pytest.mark.parametrize(("parameters", "count"), [(1 << 20, 64), ((1 << 20) + 1, 8)])
def test_a_large_module_runs_on_fewer_cases(parameters, count):
    cases = [case(f"{index:03}", 2) for index in range(100)]
    in_float64, _, others = chosen(*cases, example="000", probe="001", parameters=parameters)
    assert (len(in_float64), others) == (count, [])


def test_cases_beyond_the_budget_are_left_out_and_smaller_ones_fill_it():
    cases = case("000", 2), case("001", 1), case("002", 60_000), case("003", 50_000), case("004", 5_000)
    assert chosen(*cases, example="000", probe="001")[0] == ["002", "004", "000", "001"]


def test_without_a_case_of_few_rows_the_example_is_added():
    cases = case("000", 2), case("001", 65_536), case("002", 1)
    assert chosen(*cases, example="000", probe="002") == (["001", "000"],) * 2 + ([],)


def test_with_large_inputs_one_small_case_runs_in_float64():
    width = (1 << 15) + 1
    cases = case("000", 2, width), case("001", 1, width), case("002", 3, width)
    assert chosen(*cases, example="000", probe="001") == (["001"], ["000"], [])


def test_every_kind_that_does_not_run_in_float64_has_a_small_case():
    width = (1 << 15) + 1
    cases = (
        case("000", 2, width),
        case("001", 1, width),
        case("002", 3, width, ("low",)),
        case("003", 1, width, ("low",)),
        case("004", 2, width, ("high", "random")),
        case("data", 4, width, ()),
    )
    assert chosen(*cases, example="000", probe="001")[2] == ["003", "004", "data"]


def test_every_case_is_listed_once():
    first, second, third = case("000", 2), case("001", MAX_ROWS), case("002", 1)
    assert NoiseCases((first, second), (second,), (third, first)).all_cases() == [first, second, third]
