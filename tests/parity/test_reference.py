"""The reference: the module's own outputs for every test case, and how far an artifact may be from them."""

import numpy as np
import pytest
import torch
from projects import LINEAR

from packager.errors import OutputsUnsupported
from packager.parity.numerics.tolerances import NOISE_MULTIPLE, estimate_scales

DEEP = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)])

    def forward(self, x):
        return self.layers(x)
"""
WIDE = {"x": {"dtype": "float32", "shape": ["batch", 64]}}


def returning(expression):
    return LINEAR.replace("return self.layer(x)", f"y = self.layer(x)\n        return {expression}")


# -- the expected outputs -------------------------------------------------------------------


def test_the_expected_outputs_are_the_modules_own(measured):
    expected, grid, module = measured(LINEAR)
    assert expected.names == ("output_0",)
    assert [case.name for case in expected.reference_cases] == [case.name for case in grid.cases]
    for case, reference_case in zip(grid.cases, expected.reference_cases, strict=True):
        assert np.array_equal(reference_case.outputs["output_0"], module(torch.from_numpy(case.inputs["x"])).numpy())


def test_a_module_that_writes_to_its_input_does_not_change_the_case(measured):
    expected, grid, _ = measured(returning("y + x.zero_().sum()"))
    assert all(case.inputs["x"].any() for case in grid.cases)
    assert all(case.inputs["x"].any() for case in expected.reference_cases)


def test_an_output_named_like_an_input_is_refused(measured, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning("{'x': y}"))
    golden(caught.value.why, "x", "forward()")


# -- tolerances -----------------------------------------------------------------------------


def test_the_tolerance_is_a_multiple_of_the_noise_on_the_scale_of_the_case(measured):
    expected, *_ = measured(DEEP, WIDE)
    noise = expected.noise["output_0"]
    scales = estimate_scales([case.outputs["output_0"] for case in expected.reference_cases])
    tolerances = [case.tolerances["output_0"] for case in expected.reference_cases]
    assert [tolerance.atol for tolerance in tolerances] == [
        tolerance.rtol * scale for tolerance, scale in zip(tolerances, scales, strict=True)
    ]
    assert min(tolerance.rtol for tolerance in tolerances) == NOISE_MULTIPLE * noise.typical
    assert max(tolerance.rtol for tolerance in tolerances) == NOISE_MULTIPLE * noise.relative


def test_a_case_of_zeros_is_judged_on_the_scale_of_the_others(measured):
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 4], "range": [0, 1]}}
    expected, grid, _ = measured(returning("x * 1.0"), inputs)
    low = next(case.name for case in grid.cases if case.value_kinds == ("low",))
    zeros = next(case for case in expected.reference_cases if case.name == low)
    assert not zeros.outputs["output_0"].any()
    tolerance = zeros.tolerances["output_0"]
    assert 0 < tolerance.atol < tolerance.rtol / 2


def test_integers_and_booleans_are_exact(measured):
    expected, *_ = measured(returning("(y.argmax(1), y > 0, y)"))
    assert list(expected.noise) == ["output_2"]
    for case in expected.reference_cases:
        assert (case.tolerances["output_0"].atol, case.tolerances["output_0"].rtol) == (0.0, 0.0)
        assert (case.tolerances["output_1"].atol, case.tolerances["output_1"].rtol) == (0.0, 0.0)
        assert case.tolerances["output_2"].rtol > 0


def test_an_explicit_tolerance_is_used_as_it_is_and_no_noise_is_measured(measured):
    expected, *_ = measured(returning("(y, y.argmax(1))"), parity={"tolerance": {"atol": 0.25, "rtol": 0.5}})
    assert expected.noise == {}
    for case in expected.reference_cases:
        assert (case.tolerances["output_0"].atol, case.tolerances["output_0"].rtol) == (0.25, 0.5)
        assert (case.tolerances["output_1"].atol, case.tolerances["output_1"].rtol) == (0.0, 0.0)


def test_nan_and_infinity_leave_the_tolerances_finite(measured):
    expected, *_ = measured(returning("torch.stack([y[:, 0], y[:, 1] / 0, y[:, 2].abs().neg().sqrt()], 1)"))
    for case in expected.reference_cases:
        assert np.isfinite(case.tolerances["output_0"].atol)
        assert case.tolerances["output_0"].atol > 0


# -- float64 outputs ------------------------------------------------------------------------

REFUSES = returning("(x.sum() if x.dtype == torch.float32 else 1 / 0) + y")


def test_cases_that_ran_in_float64_have_its_outputs(measured):
    expected, grid, module = measured(returning("{'y': y, 'best': y.argmax(1)}"))
    wide = module.double()
    in_float64 = [case for case in expected.reference_cases if case.float64_outputs]
    assert grid.example_case.name in [case.name for case in in_float64]
    for case in in_float64:
        assert list(case.float64_outputs) == ["y"]
        output = wide(torch.from_numpy(case.inputs["x"]).double())["y"].detach().numpy()
        assert np.array_equal(case.float64_outputs["y"], output)


def test_where_only_one_side_is_finite_the_float64_output_is_the_modules_own(measured):
    expected, *_ = measured(returning("torch.cat([torch.exp(y * 0 + 100.0), y], 1)"))  # overflows in float32 alone
    for case in expected.reference_cases:
        if case.float64_outputs:
            assert np.isinf(case.outputs["output_0"][:, :3]).all()
            assert np.isinf(case.float64_outputs["output_0"][:, :3]).all()


@pytest.mark.parametrize("sections", [{"parity": {"tolerance": {"atol": 1, "rtol": 1}}}, {}], ids=["explicit", "auto"])
def test_without_a_run_in_float64_there_are_no_float64_outputs(measured, sections):
    expected, *_ = measured(REFUSES if not sections else LINEAR, **sections)
    assert all(case.float64_outputs == {} for case in expected.reference_cases)
