"""Which dim is the batch, and whether a batch gives what its parts give alone."""

import numpy as np
import pytest

from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase
from packager.runtime import row_independence


@pytest.mark.parametrize(
    ("inputs", "outputs", "least", "dim"),
    [
        ([["n", 4]], [["n", 3]], 1, "n"),
        ([["n", 4], ["n"]], [["n"]], 0, "n"),
        ([["n", 4]], [["n", 3]], 2, None),
        ([], [], 1, None),
        ([], [["k", 3]], 1, None),
        ([["n", 4], [2, "m"]], [["n", 3]], 1, None),
        ([["n", 4], []], [["n", 3]], 1, None),
        ([["n", 4]], [["n", 3], []], 1, None),
        ([["n", 4]], [[None, 3]], 1, None),
        ([["n", 4]], [["m", 3]], 1, None),
        ([["n", "n"]], [["n"]], 1, None),
        ([["n", 4]], [["n", "n"]], 1, None),
        ([["n", 4]], [["n", None]], 1, None),
        ([["n", "m"]], [["n", "m"]], 1, "n"),
        ([["n", 4]], [["n", "m"]], 1, None),
        ([[1, 4]], [[1, 3]], 1, None),
    ],
)
def test_a_batch_is_the_named_dim_in_front_of_every_tensor_and_nowhere_else(inputs, outputs, least, dim):
    config = {
        "inputs": [{"shape": shape} for shape in inputs],
        "outputs": [{"shape": shape} for shape in outputs],
        "dims": {"n": {"min": least, "max": None}, "m": {"min": 1, "max": None}},
    }
    assert row_independence.find_leading_dim(config) == dim


def make_case(function, rows):
    x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
    tolerance = {"y": ElementTolerance(1e-6, 1e-6)}
    return ReferenceCase(f"of {rows}", {"x": x}, function({"x": x}), tolerance, {"n": rows})


@pytest.mark.parametrize(
    ("function", "independent"),
    [
        (lambda inputs: {"y": inputs["x"] * 2}, True),
        (lambda inputs: {"y": inputs["x"] - inputs["x"].mean(0)}, False),
        (lambda inputs: {"y": np.cumsum(inputs["x"], axis=0)}, False),
        (lambda inputs: {"y": inputs["x"][::-1]}, False),
        (lambda inputs: {"y": inputs["x"] * len(inputs["x"])}, False),
    ],
    ids=["elementwise", "mean", "running sum", "reversed", "size"],
)
def test_rows_are_independent_if_parts_compute_what_the_whole_does(function, independent):
    cases = [make_case(function, rows) for rows in (1, 2, 5)]
    why = row_independence.check_rows_are_independent(function, cases, "n")
    assert why is None if independent else why == "rows of n depend on each other"


def test_evidence_that_does_not_fit_the_model_shows_nothing_about_a_batch():
    def double(inputs):
        return {"y": inputs["z"] * 2}

    case = make_case(lambda inputs: {"y": inputs["x"]}, 3)
    assert "cannot be run: KeyError" in row_independence.check_rows_are_independent(double, [case], "n")


def test_without_a_case_of_two_rows_nothing_is_known_about_a_batch():
    def double(inputs):
        return {"y": inputs["x"] * 2}

    why = row_independence.check_rows_are_independent(double, [make_case(double, 1)], "n")
    assert "no test case with two rows of n that differ" in why


def test_rows_that_are_equal_show_nothing():
    def centre(inputs):
        return {"y": inputs["x"] - inputs["x"].mean(0)}

    x = np.ones((3, 4), np.float32)
    tolerance = {"y": ElementTolerance(1e-6, 1e-6)}
    case = ReferenceCase("of 3", {"x": x}, centre({"x": x}), tolerance, {"n": 3})
    assert "that differ" in row_independence.check_rows_are_independent(centre, [case], "n")
