"""An artifact, judged over all cases."""

import math
from dataclasses import replace

import numpy as np
import pytest

from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase, check_parity

EXACT = ElementTolerance(0.0, 0.0)


def expectation(case="000", limit=EXACT, **outputs):
    """A case with the input x = 1 and these outputs."""
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    return ReferenceCase(case, {"x": np.ones(1, np.float32)}, arrays, dict.fromkeys(arrays, limit))


def gives(**outputs):
    """An artifact that gives these outputs whatever it is given."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    arrays = {name: one.astype(np.float32) if one.dtype == np.float64 else one for name, one in arrays.items()}
    return lambda inputs: arrays


def test_an_artifact_that_gives_what_was_expected_passes():
    judgement = check_parity(gives(y=[1.0, 2.0]), [expectation(y=[1, 2]), expectation("001", y=[1, 2])])
    assert (judgement.passed, judgement.reason) == (True, "")
    assert list(judgement.outputs) == ["y"]


def test_every_case_runs_on_its_own_inputs():
    cases = [
        ReferenceCase(str(size), {"x": np.ones(size)}, {"y": np.full(size, 2.0)}, {"y": EXACT}) for size in (1, 2, 3)
    ]
    assert check_parity(lambda inputs: {"y": inputs["x"] * 2}, cases).passed
    assert not check_parity(lambda inputs: {"y": np.full_like(inputs["x"], len(inputs["x"]))}, cases).passed


def test_expectations_may_come_one_by_one():
    assert check_parity(gives(y=[1.0]), (expectation(str(number), y=[1]) for number in range(3))).passed


@pytest.mark.parametrize(
    ("run", "cases"),
    [
        (gives(y=[1.0]), []),
        (gives(), [expectation()]),
        (gives(y=[], z=np.zeros((2, 0), np.float32)), [expectation(y=[], z=np.zeros((2, 0)))]),
    ],
    ids=["no case", "no output", "no element"],
)
def test_what_proves_nothing_is_no_pass(run, cases, golden):
    judgement = check_parity(run, cases)
    assert (judgement.passed, judgement.worst) == (False, None)
    golden(judgement.reason)


def test_an_empty_output_beside_another_is_no_fault():
    judgement = check_parity(gives(y=[], z=[1.0]), [expectation(y=[], z=[1])])
    assert judgement.passed
    assert judgement.worst.output == "z"


@pytest.mark.parametrize(
    ("run", "facts"),
    [
        (gives(z=[1.0]), ("000", "['z']", "['y']")),
        (gives(), ("000", "[]", "['y']")),
        (gives(y=[1.0], z=[1.0]), ("000", "['y', 'z']", "['y']")),
        (gives(y=np.array([1], np.int64)), ("000", "int64", "float32")),
        (gives(y=np.array([1], np.float16)), ("000", "float16", "float32")),
        (gives(y=1.0), ("000", "[]", "[1]")),
        (gives(y=[1.0, 1.0]), ("000", "[2]", "[1]")),
        (gives(y=[1.5]), ("y[0]", "000", "1.0", "1.5")),
        (gives(y=[math.nan]), ("y[0]", "000", "1.0")),
    ],
)
def test_a_failure_says_what_is_wrong_and_where(run, facts, golden):
    judgement = check_parity(run, [expectation(y=[1])])
    assert not judgement.passed
    golden(judgement.reason, *facts)


def test_outputs_in_another_order_fail(golden):
    judgement = check_parity(gives(z=[1.0], y=[1.0]), [expectation(y=[1], z=[1])])
    assert not judgement.passed
    golden(judgement.reason, "000", "['z', 'y']", "['y', 'z']")


def test_a_failure_beyond_its_limit_says_how_far(golden):
    judgement = check_parity(gives(y=[[0.0, 3.0]]), [expectation(y=[[0, 1]], limit=ElementTolerance(1.0, 0.0))])
    golden(judgement.reason, "y[0, 1]", "000", "1.0", "3.0", "2")


def test_a_scalar_output_has_an_empty_index(golden):
    golden(check_parity(gives(y=2.0), [expectation(y=1)]).reason, "y[]", "000", "1.0", "2.0")


def test_one_bad_case_among_good_ones_fails():
    cases = [expectation("000", y=[1]), expectation("001", y=[2]), expectation("002", y=[1])]
    judgement = check_parity(gives(y=[1.0]), cases)
    assert (judgement.passed, judgement.worst.case) == (False, "001")


def test_one_bad_output_among_good_ones_fails():
    judgement = check_parity(gives(y=[1.0], z=[1.0]), [expectation(y=[1], z=[2])])
    assert (judgement.passed, judgement.worst.output) == (False, "z")


def test_each_output_has_the_limit_of_its_own():
    limits = {"y": ElementTolerance(1.0, 0.0), "z": ElementTolerance(0.1, 0.0)}
    ones = {name: np.ones(1, np.float32) for name in limits}
    judgement = check_parity(gives(y=[1.5], z=[1.05]), [ReferenceCase("000", {}, ones, limits)])
    assert judgement.passed
    swapped = check_parity(gives(y=[1.05], z=[1.5]), [ReferenceCase("000", {}, ones, limits)])
    assert (swapped.passed, swapped.worst.output) == (False, "z")


def test_the_worst_element_is_the_nearest_to_its_limit_over_all_cases_and_outputs():
    cases = [
        expectation("000", limit=ElementTolerance(10.0, 0.0), y=[0, 0], z=[0]),
        expectation("001", limit=ElementTolerance(2.0, 0.0), y=[0, 0], z=[0]),
    ]
    judgement = check_parity(gives(y=[0.5, 1.0], z=[0.25]), cases)
    worst = judgement.worst
    assert judgement.passed
    assert (worst.case, worst.output, worst.index, worst.expected, worst.actual) == ("001", "y", (1,), 0.0, 1.0)
    assert worst.error_over_limit == 0.5


def test_the_figures_of_an_output_are_the_largest_over_all_cases_and_the_smallest_cosine():
    wide = ElementTolerance(100.0, 0.0)
    cases = [expectation("000", wide, y=[3, 4]), expectation("001", wide, y=[0, 1]), expectation("002", wide, y=[1, 1])]
    found = check_parity(gives(y=[0.0, 1.0]), cases).outputs["y"]
    assert found.max_abs == 3.0
    assert found.max_rel == 1.0
    assert found.rms == 3.0
    assert found.cosine == pytest.approx(math.sqrt(0.5))
    assert found.error_over_limit == pytest.approx(0.03)
    assert found.mismatched_nonfinite == 0


def test_mismatches_of_nan_and_infinity_add_up_over_the_cases():
    cases = [expectation(str(number), ElementTolerance(9.0, 9.0), y=[math.nan, 1, math.inf]) for number in range(3)]
    judgement = check_parity(gives(y=[1.0, 1.0, -math.inf]), cases)
    assert (judgement.passed, judgement.outputs["y"].mismatched_nonfinite) == (False, 6)
    assert check_parity(gives(y=[math.nan, 1.0, math.inf]), cases).passed


def test_nothing_is_run_after_outputs_that_cannot_be_set_side_by_side(golden):
    seen = []

    def run(inputs):
        seen.append(len(seen))
        return {"y": np.ones(len(seen), np.float32)}

    judgement = check_parity(run, [expectation(str(number), y=[1]) for number in range(4)])
    assert not judgement.passed
    golden(judgement.reason, "1", "[2]", "[1]")
    assert seen == [0, 1]
    assert list(judgement.outputs) == ["y"]


def test_an_artifact_that_raises_is_not_caught_here():
    def run(inputs):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        check_parity(run, [expectation(y=[1])])


# -- the oracle -----------------------------------------------------------------------------


def with_oracle(eager, float64, limit):
    """A case whose expected output has an oracle."""
    one = expectation(limit=limit, y=eager)
    return replace(one, float64_outputs={"y": np.asarray(float64, np.float64)})


def test_an_artifact_that_is_right_against_eager_and_off_against_float64_fails(golden):
    """Eager's own error and the artifact's, each within the limit, may add up: both are held to the truth."""
    case = with_oracle([1.0, 2.0], [1.0, 1.5], ElementTolerance(0.75, 0.0))
    judgement = check_parity(gives(y=[1.0, 2.5]), [case])
    assert not judgement.passed
    assert judgement.outputs["y"].error_over_limit == pytest.approx(0.5 / 0.75)
    assert judgement.outputs["y"].error_over_limit_float64 == pytest.approx(1 / 0.75)
    golden(judgement.reason, "y[1]", "000", "1.5", "2.5", "1.33")


def test_an_artifact_that_is_right_against_float64_and_off_against_eager_fails():
    judgement = check_parity(gives(y=[1.0, 2.0]), [with_oracle([1.0, 3.0], [1.0, 2.0], ElementTolerance(0.75, 0.0))])
    assert (judgement.passed, judgement.outputs["y"].error_over_limit_float64) == (False, 0.0)


def test_an_artifact_that_is_right_against_both_passes_and_both_figures_are_kept():
    cases = [with_oracle([1.0], [1.25], ElementTolerance(1.0, 0.0)), expectation("001", y=[1.0])]
    judgement = check_parity(gives(y=[1.0]), cases)
    assert judgement.passed
    assert (judgement.outputs["y"].error_over_limit, judgement.outputs["y"].error_over_limit_float64) == (0.0, 0.25)
    assert check_parity(gives(y=[1.0]), cases[1:]).outputs["y"].error_over_limit_float64 is None
    assert check_parity(gives(y=[1.0]), cases[::-1]).outputs == judgement.outputs


def test_nan_and_infinity_are_held_against_the_oracle_too():
    limit = ElementTolerance(1.0, 1.0)
    assert check_parity(
        gives(y=[math.nan, math.inf]), [with_oracle([math.nan, math.inf], [math.nan, math.inf], limit)]
    ).passed
    assert not check_parity(gives(y=[math.nan]), [with_oracle([math.nan], [1.0], limit)]).passed


def test_a_shape_that_does_not_follow_is_told_with_the_sizes_of_the_dims(golden):
    case = replace(expectation(y=[1, 2, 3]), sizes={"batch": 3, "length": 5})
    judgement = check_parity(gives(y=[1.0]), [case])
    golden(judgement.reason, "000", "batch=3", "length=5", "[1]", "[3]")
