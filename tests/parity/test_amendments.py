"""What a second measurement changes: wider tolerances, cases left out, and nothing else."""

from functools import partial

import numpy as np
import pytest

from packager.parity.amendments import amend_case, amend_reference, check_again, describe_uncertain_case, get_scale
from packager.parity.cases.sample_grid import InputCase
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.tolerances import derive_tolerance
from packager.parity.numerics.verdict import ReferenceCase, check_parity
from packager.parity.results import OutputNoise, Reference

FLOOR, SCALE = 1e-6, 0.5
TOLERANCE = derive_tolerance(FLOOR, SCALE, np.dtype(np.float32))


def expect(name, size=4):
    """Return a case whose outputs are ones."""
    inputs = {"x": np.full(size, int(name), np.float32)}
    return ReferenceCase(name, inputs, {"y": np.ones(size, np.float32)}, {"y": TOLERANCE})


def artifact_with(errors):
    """Return a check of an artifact that is off by `errors`, by the number of the case."""

    def run(inputs):
        return {"y": np.ones_like(inputs["x"]) + np.float32(errors.get(int(inputs["x"][0]), 0.0))}

    return partial(check_parity, run)


def recheck(cases, errors, noise):
    """Check an artifact twice; returns the verdict and the cases that were measured again."""
    check, asked = artifact_with(errors), []

    def remeasure(case):
        asked.append(case.name)
        return {"y": {"float64": noise[int(case.name)]}}

    failed = check(cases)
    assert not failed.passed
    return check_again(failed, cases, check, remeasure), asked


CASES = [expect("0", 9), expect("1", 3), expect("2", 6)]


def test_a_case_gets_the_tolerance_of_its_own_noise():
    parity, asked = recheck(CASES, {1: 1e-4}, {1: 2e-5})
    assert parity.passed and asked == ["1"]
    assert parity.remeasured == {"1": {"y": {"float64": 2e-5}}}


def test_an_artifact_that_is_further_off_than_the_noise_is_wrong():
    parity, asked = recheck(CASES, {1: 1e-3}, {1: 2e-5})
    assert not parity.passed and asked == ["1"]
    assert parity.remeasured == {"1": {"y": {"float64": 2e-5}}} and parity.worst.case == "1"


def test_the_cheapest_case_is_measured_first_and_the_others_only_if_it_passes():
    assert recheck(CASES, {0: 1e-3, 1: 1e-3, 2: 1e-3}, {0: 1e-3, 1: 0.0, 2: 1e-3})[1] == ["1"]
    assert recheck(CASES, {0: 1e-3, 1: 1e-3, 2: 1e-3}, {0: 1e-3, 1: 1e-3, 2: 0.0})[1] == ["1", "2"]


def test_a_case_that_proves_nothing_is_left_out():
    parity, _ = recheck(CASES, {1: 5.0}, {1: 0.1})
    assert parity.passed
    assert parity.outputs["y"].max_abs == 0.0


def test_more_than_half_of_the_cases_are_never_left_out():
    parity, _ = recheck(CASES, {1: 5.0, 2: 5.0}, {1: 0.1, 2: 0.1})
    assert not parity.passed


@pytest.mark.parametrize("actual", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_never_noise(actual):
    parity, asked = recheck(CASES, {1: actual}, {1: 1e-3})
    assert not parity.passed and asked == ["1"]


def test_a_wrong_shape_is_not_measured_again():
    def run(inputs):
        return {"y": np.ones(2, np.float32)}

    failed = check_parity(run, CASES)
    assert failed.failed_cases == ()
    assert check_again(failed, CASES, partial(check_parity, run), None) is failed


def test_a_tolerance_never_becomes_smaller():
    assert amend_case(expect("0"), {"y": {"float64": FLOOR / 2}}).tolerances == {"y": TOLERANCE}
    wider = amend_case(expect("0"), {"y": {"float64": FLOOR / 2, "one thread": 3 * FLOOR}}).tolerances["y"]
    assert wider.rtol == pytest.approx(3 * TOLERANCE.rtol) and wider.atol == pytest.approx(3 * TOLERANCE.atol)
    assert get_scale(wider) == pytest.approx(SCALE)


def test_integers_keep_their_exact_tolerance():
    exact = ReferenceCase("0", {}, {"n": np.zeros(2, np.int64)}, {"n": ElementTolerance(0.0, 0.0)})
    assert amend_case(exact, {"n": {}}).tolerances == {"n": ElementTolerance(0.0, 0.0)}


def test_a_reference_is_amended_by_what_was_measured_again(golden):
    reference = Reference(
        tuple(CASES),
        {"y": OutputNoise(FLOOR, FLOOR, {"float64": FLOOR})},
        ("y",),
        tuple(InputCase(case.name, {}, ("low",), case.inputs) for case in CASES),
    )
    amended = amend_reference(reference, {"0": {"y": {"float64": 2e-5}}, "2": {"y": {"one thread": 0.5}}})
    assert [case.name for case in amended.reference_cases] == [case.name for case in amended.cases] == ["0", "1"]
    assert amended.reference_cases[0].tolerances["y"].rtol == pytest.approx(8 * 2e-5)
    assert amended.reference_cases[1].tolerances["y"] == TOLERANCE
    assert amended.noise["y"] == OutputNoise(2e-5, FLOOR, {"float64": 2e-5})
    golden("\n".join(amended.uncompared))
    assert amend_reference(reference, {}) == reference


def test_a_case_that_is_a_number_in_one_evaluation_alone_is_left_out_and_said():
    assert amend_case(CASES[0], {"y": {"another way": float("inf")}}) is None
    assert (
        describe_uncertain_case("0", "low", {"y": {"another way": float("inf")}})
        == "case 0 (low): the module's own arithmetic is uncertain there; y is zero, NaN or infinite in only one "
        "of two evaluations: as it is, or another way"
    )
