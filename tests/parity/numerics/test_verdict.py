"""The verdict on an artifact, over all test cases."""

import math
from dataclasses import replace

import numpy as np
import pytest

from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase, check_parity

EXACT = ElementTolerance(0.0, 0.0)


def reference_case(case="000", limit=EXACT, **outputs):
    """Return a case with the input x = 1 and these outputs."""
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    return ReferenceCase(case, {"x": np.ones(1, np.float32)}, arrays, dict.fromkeys(arrays, limit))


def returns(**outputs):
    """Return an artifact that returns these outputs, whatever its inputs are."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    arrays = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in arrays.items()}
    return lambda inputs: arrays


def test_an_artifact_that_returns_the_expected_outputs_passes():
    result = check_parity(returns(y=[1.0, 2.0]), [reference_case(y=[1, 2]), reference_case("001", y=[1, 2])])
    assert (result.passed, result.reason) == (True, "")
    assert list(result.outputs) == ["y"]


def test_every_case_runs_on_its_own_inputs():
    cases = [
        ReferenceCase(str(size), {"x": np.ones(size)}, {"y": np.full(size, 2.0)}, {"y": EXACT}) for size in (1, 2, 3)
    ]
    assert check_parity(lambda inputs: {"y": inputs["x"] * 2}, cases).passed
    assert not check_parity(lambda inputs: {"y": np.full_like(inputs["x"], len(inputs["x"]))}, cases).passed


def test_cases_may_come_from_an_iterator():
    assert check_parity(returns(y=[1.0]), (reference_case(str(number), y=[1]) for number in range(3))).passed


@pytest.mark.parametrize(
    ("run", "cases"),
    [
        (returns(y=[1.0]), []),
        (returns(), [reference_case()]),
        (returns(y=[], z=np.zeros((2, 0), np.float32)), [reference_case(y=[], z=np.zeros((2, 0)))]),
    ],
    ids=["no case", "no output", "no element"],
)
def test_without_a_compared_element_there_is_no_pass(run, cases, golden):
    result = check_parity(run, cases)
    assert (result.passed, result.worst) == (False, None)
    golden(result.reason)


def test_an_empty_output_next_to_another_one_passes():
    result = check_parity(returns(y=[], z=[1.0]), [reference_case(y=[], z=[1])])
    assert result.passed
    assert result.worst.output == "z"


@pytest.mark.parametrize(
    ("run", "facts"),
    [
        (returns(z=[1.0]), ("000", "['z']", "['y']")),
        (returns(), ("000", "[]", "['y']")),
        (returns(y=[1.0], z=[1.0]), ("000", "['y', 'z']", "['y']")),
        (returns(y=np.array([1], np.int64)), ("000", "int64", "float32")),
        (returns(y=np.array([1], np.float16)), ("000", "float16", "float32")),
        (returns(y=1.0), ("000", "[]", "[1]")),
        (returns(y=[1.0, 1.0]), ("000", "[2]", "[1]")),
        (returns(y=[1.5]), ("y[0]", "000", "1.0", "1.5")),
        (returns(y=[math.nan]), ("y[0]", "000", "1.0")),
    ],
    ids=["name", "missing output", "extra output", "int64", "float16", "rank", "size", "value", "NaN"],
)
def test_a_failure_says_what_is_wrong_and_where(run, facts, golden):
    result = check_parity(run, [reference_case(y=[1])])
    assert not result.passed
    golden(result.reason, *facts)


def test_outputs_in_another_order_fail(golden):
    result = check_parity(returns(z=[1.0], y=[1.0]), [reference_case(y=[1], z=[1])])
    assert not result.passed
    golden(result.reason, "000", "['z', 'y']", "['y', 'z']")


def test_a_failure_beyond_its_tolerance_says_by_how_much(golden):
    result = check_parity(returns(y=[[0.0, 3.0]]), [reference_case(y=[[0, 1]], limit=ElementTolerance(1.0, 0.0))])
    golden(result.reason, "y[0, 1]", "000", "1.0", "3.0", "2")


def test_a_scalar_output_has_an_empty_index(golden):
    golden(check_parity(returns(y=2.0), [reference_case(y=1)]).reason, "y[]", "000", "1.0", "2.0")


def test_one_bad_case_among_good_ones_fails():
    cases = [reference_case("000", y=[1]), reference_case("001", y=[2]), reference_case("002", y=[1])]
    result = check_parity(returns(y=[1.0]), cases)
    assert (result.passed, result.worst.case) == (False, "001")


def test_one_bad_output_among_good_ones_fails():
    result = check_parity(returns(y=[1.0], z=[1.0]), [reference_case(y=[1], z=[2])])
    assert (result.passed, result.worst.output) == (False, "z")


def test_each_output_has_its_own_tolerance():
    limits = {"y": ElementTolerance(1.0, 0.0), "z": ElementTolerance(0.1, 0.0)}
    ones = {name: np.ones(1, np.float32) for name in limits}
    result = check_parity(returns(y=[1.5], z=[1.05]), [ReferenceCase("000", {}, ones, limits)])
    assert result.passed
    swapped = check_parity(returns(y=[1.05], z=[1.5]), [ReferenceCase("000", {}, ones, limits)])
    assert (swapped.passed, swapped.worst.output) == (False, "z")


def test_the_worst_element_has_the_largest_error_relative_to_its_tolerance_over_all_cases_and_outputs():
    cases = [
        reference_case("000", limit=ElementTolerance(10.0, 0.0), y=[0, 0], z=[0]),
        reference_case("001", limit=ElementTolerance(2.0, 0.0), y=[0, 0], z=[0]),
    ]
    result = check_parity(returns(y=[0.5, 1.0], z=[0.25]), cases)
    worst = result.worst
    assert result.passed
    assert (worst.case, worst.output, worst.index, worst.expected, worst.actual) == ("001", "y", (1,), 0.0, 1.0)
    assert worst.error_over_limit == 0.5


def test_the_errors_of_an_output_are_the_largest_over_all_cases_and_the_smallest_cosine():
    wide = ElementTolerance(100.0, 0.0)
    cases = [
        reference_case("000", wide, y=[3, 4]),
        reference_case("001", wide, y=[0, 1]),
        reference_case("002", wide, y=[1, 1]),
    ]
    found = check_parity(returns(y=[0.0, 1.0]), cases).outputs["y"]
    assert found.max_abs == 3.0
    assert found.max_rel == 1.0
    assert found.rms == 3.0
    assert found.cosine == pytest.approx(math.sqrt(0.5))
    assert found.error_over_limit == pytest.approx(0.03)
    assert found.mismatched_nonfinite == 0


def test_mismatches_of_nan_and_infinity_add_up_over_the_cases():
    cases = [reference_case(str(number), ElementTolerance(9.0, 9.0), y=[math.nan, 1, math.inf]) for number in range(3)]
    result = check_parity(returns(y=[1.0, 1.0, -math.inf]), cases)
    assert (result.passed, result.outputs["y"].mismatched_nonfinite) == (False, 6)
    assert check_parity(returns(y=[math.nan, 1.0, math.inf]), cases).passed


def test_no_case_runs_after_outputs_that_cannot_be_compared(golden):
    seen = []

    def run(inputs):
        seen.append(len(seen))
        return {"y": np.ones(len(seen), np.float32)}

    result = check_parity(run, [reference_case(str(number), y=[1]) for number in range(4)])
    assert not result.passed
    golden(result.reason, "1", "[2]", "[1]")
    assert seen == [0, 1]
    assert list(result.outputs) == ["y"]


def test_an_artifact_that_raises_is_not_caught_here():
    def run(inputs):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        check_parity(run, [reference_case(y=[1])])


# -- float64 outputs ------------------------------------------------------------------------


def with_float64(eager, float64, limit):
    """Return a case with a float64 output."""
    return replace(reference_case(limit=limit, y=eager), float64_outputs={"y": np.asarray(float64, np.float64)})


def test_an_artifact_that_is_right_against_eager_and_off_against_float64_fails(golden):
    """The errors of PyTorch and of the artifact, each within the tolerance, may add up: so both are compared."""
    case = with_float64([1.0, 2.0], [1.0, 1.5], ElementTolerance(0.75, 0.0))
    result = check_parity(returns(y=[1.0, 2.5]), [case])
    assert not result.passed
    assert result.outputs["y"].error_over_limit == pytest.approx(0.5 / 0.75)
    assert result.outputs["y"].error_over_limit_float64 == pytest.approx(1 / 0.75)
    golden(result.reason, "y[1]", "000", "1.5", "2.5", "1.33")


def test_an_artifact_that_is_right_against_float64_and_off_against_eager_fails():
    result = check_parity(returns(y=[1.0, 2.0]), [with_float64([1.0, 3.0], [1.0, 2.0], ElementTolerance(0.75, 0.0))])
    assert (result.passed, result.outputs["y"].error_over_limit_float64) == (False, 0.0)


def test_an_artifact_that_is_right_against_both_passes_and_both_errors_are_kept():
    cases = [with_float64([1.0], [1.25], ElementTolerance(1.0, 0.0)), reference_case("001", y=[1.0])]
    result = check_parity(returns(y=[1.0]), cases)
    assert result.passed
    assert (result.outputs["y"].error_over_limit, result.outputs["y"].error_over_limit_float64) == (0.0, 0.25)
    assert check_parity(returns(y=[1.0]), cases[1:]).outputs["y"].error_over_limit_float64 is None
    assert check_parity(returns(y=[1.0]), cases[::-1]).outputs == result.outputs


def test_nan_and_infinity_are_compared_with_the_float64_output_too():
    limit = ElementTolerance(1.0, 1.0)
    assert check_parity(
        returns(y=[math.nan, math.inf]), [with_float64([math.nan, math.inf], [math.nan, math.inf], limit)]
    ).passed
    assert not check_parity(returns(y=[math.nan]), [with_float64([math.nan], [1.0], limit)]).passed


def test_a_wrong_shape_is_reported_with_the_sizes_of_the_dims(golden):
    case = replace(reference_case(y=[1, 2, 3]), sizes={"batch": 3, "length": 5})
    result = check_parity(returns(y=[1.0]), [case])
    golden(result.reason, "000", "batch=3", "length=5", "[1]", "[3]")
