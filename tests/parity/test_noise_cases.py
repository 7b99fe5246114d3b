"""Which test cases noise is measured on: the largest affordable ones, and every kind of values."""

from dataclasses import fields

import numpy as np

from packager.parity.cases.sample_grid import Grid, InputCase
from packager.parity.noise_cases import FLOAT64_PRICE, MAX_ROWS, NoiseCases, choose_noise_cases


def case(name, rows, width=1, kinds=("random",)):
    """Return a case of one input, an array of zeros that takes no memory."""
    return InputCase(name, {"batch": rows}, kinds, {"x": np.broadcast_to(np.float32(0), (rows, width))})


def chosen(*cases, example, probe, budget=float("inf")):
    """Choose among these cases, of which two are named; a case costs its elements. Returns the names of each group."""
    by_name = {candidate.name: candidate for candidate in cases}
    grid = Grid(cases, by_name[example], by_name[probe])
    noise_cases = choose_noise_cases(grid, lambda case: case.element_count, budget)
    return {
        group.name: [candidate.name for candidate in getattr(noise_cases, group.name)] for group in fields(noise_cases)
    }


def test_cheap_cases_are_evaluated_in_every_way():
    cases = case("000", 2), case("001", 1), case("002", 5), case("003", 3)
    assert chosen(*cases, example="000", probe="001") == {
        "float64_cases": ["002", "003", "000", "001"],
        "serial_cases": ["002"],
        "batch_cases": ["002", "003", "000"],
        "plain_cases": ["000"],
        "other_kind_cases": [],
    }


def test_64_cases_at_most_run_in_float64():
    cases = [case(f"{index:03}", 2) for index in range(100)]
    assert len(chosen(*cases, example="000", probe="001")["float64_cases"]) == 64


def test_cases_beyond_the_budget_are_left_out_and_smaller_ones_fill_it():
    cases = case("000", 2), case("001", 1), case("002", 60_000), case("003", 50_000), case("004", 5_000)
    groups = chosen(*cases, example="000", probe="001", budget=2 * FLOAT64_PRICE * 65_003)
    assert groups["float64_cases"] == ["002", "004", "000", "001"]


def test_constant_values_run_in_float64_only_after_all_others():
    cases = case("000", 2), case("001", 1), case("002", 3, kinds=("low", "random")), case("003", 2, kinds=("low",))
    groups = chosen(*cases, example="000", probe="001", budget=2 * FLOAT64_PRICE * 6)
    assert groups["float64_cases"] == ["002", "000", "001"]
    groups = chosen(*cases, example="000", probe="001", budget=2 * FLOAT64_PRICE * 8)
    assert groups["float64_cases"] == ["002", "000", "001", "003"]


def test_the_smallest_case_runs_in_float64_whatever_it_costs_and_nothing_else_does():
    cases = case("000", 2), case("001", 1), case("002", 3), case("003", 1, kinds=("low",))
    groups = chosen(*cases, example="000", probe="001", budget=1)
    assert groups.pop("float64_cases") == ["001"]
    assert set(map(len, groups.values())) == {0}


def test_without_a_case_of_few_rows_the_example_runs_row_by_row():
    cases = case("000", 2), case("001", 65_536), case("002", 1)
    groups = chosen(*cases, example="000", probe="002", budget=2 * FLOAT64_PRICE * 65_536)
    assert (groups["float64_cases"], groups["batch_cases"]) == (["001"], ["000"])


def test_every_kind_that_does_not_run_in_float64_has_a_small_case():
    cases = (
        case("000", 2),
        case("001", 1),
        case("002", 3, kinds=("low",)),
        case("003", 1, kinds=("low",)),
        case("004", 2, kinds=("high", "random")),
        case("data", 4, kinds=()),
        case("005", 28),  # all that float64 may cost
    )
    groups = chosen(*cases, example="000", probe="001", budget=2 * FLOAT64_PRICE * 28)
    assert groups["float64_cases"] == ["005"]
    assert groups["other_kind_cases"] == ["003", "004", "data"]


def test_every_case_is_listed_once():
    first, second, third = case("000", 2), case("001", MAX_ROWS), case("002", 1)
    groups = NoiseCases((first, second), (first,), (second,), (first,), (third, first))
    assert groups.all_cases() == [first, second, third]
