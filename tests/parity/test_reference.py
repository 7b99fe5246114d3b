"""The module on every case, and what its own arithmetic costs it."""

import numpy as np
import pytest
import torch
from messages import mentions
from projects import FLOATS, LINEAR, RECURRENT, project

from packager.errors import ForwardFailed, NoiseTooLarge, NotRepeatable, OutputsUnsupported, render_error
from packager.model import loader
from packager.parity import noise as noises
from packager.parity import reference
from packager.parity.cases import sample_grid
from packager.parity.numerics.tolerances import NOISE_MULTIPLE, estimate_scales
from packager.project import manifest

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


@pytest.fixture
def measured(tmp_path):
    """What measures a project: text of its module and settings → (reference, grid, module)."""

    def measure(text, inputs=FLOATS, decides=False, **sections):
        loaded = manifest.load_manifest(project(tmp_path, text, inputs=inputs, **sections))
        with loader.open_model_loader(loaded) as opening:
            opened = opening()
            grid = sample_grid.build_grid(loaded)
            floor = reference.measure_noise(loaded, opened, grid, {})
            return (
                reference.measure_reference(loaded, opened, grid, floor, probe=(), has_discrete_decisions=decides),
                grid,
                opened.module,
            )

    return measure


def returning(expression):
    return LINEAR.replace("return self.layer(x)", f"y = self.layer(x)\n        return {expression}")


# -- noise ----------------------------------------------------------------------------------


def test_noise_is_the_distance_to_float64(measured):
    expected, grid, module = measured(DEEP, WIDE)
    noise = expected.noise["output_0"]
    assert list(noise.parts) == [noises.FLOAT64, noises.ONE_THREAD, noises.ROW_BY_ROW, noises.PLAIN_KERNELS]
    mentions(noise.measured, *(f"{name} ({part:.2g})" for name, part in noise.parts.items()))
    largest = max(grid.cases, key=lambda case: case.inputs["x"].size)
    wide = module.double()(torch.from_numpy(largest.inputs["x"]).double()).numpy()
    found = next(one for one in expected.expectations if one.case == largest.name).outputs["output_0"]
    relative = np.max(np.abs(found - wide) / (np.abs(wide) + np.sqrt(np.mean(wide**2))))
    assert relative <= noise.relative * 1.01
    assert noise.relative < 1e-5


IMAGES = {"x": {"dtype": "float32", "shape": ["batch", 3, 160, 160], "range": [0, 1]}}
# A thousand is added where all is dark, and what is in mathematics the same thousand taken away.
DARK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 16, 16)
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        features = self.stem(x).mean((2, 3))
        dark = 1e3 * torch.exp(-20 * x.mean((1, 2, 3)))
        ones = torch.ones_like(x[:, :, :16, :16]) / 16
        level = self.stem(ones) - self.stem.bias[:, None, None]
        exact = (self.stem.weight / 16).sum((1, 2, 3))
        return self.head(features + dark[:, None] * (level[:, :, 0, 0] - exact))
"""


@pytest.mark.parametrize(("text", "inputs"), [(DARK, IMAGES), (DEEP, WIDE)], ids=["large inputs", "small inputs"])
def test_noise_is_measured_on_values_of_every_kind(tmp_path, text, inputs):
    loaded = manifest.load_manifest(project(tmp_path, text, inputs=inputs))
    with loader.open_model_loader(loaded) as opening:
        grid = sample_grid.build_grid(loaded)
        evaluations = reference.measure_noise(loaded, opening(), grid, {}).evaluations
    measured = {name for one in evaluations for name in one.outputs}
    kinds = {kind for case in grid.cases for kind in case.value_kinds}
    assert {kind for case in grid.cases if case.name in measured for kind in case.value_kinds} == kinds


def test_a_case_whose_values_make_more_noise_is_allowed_more(measured):
    expected, grid, _ = measured(DARK, IMAGES)
    allowed = {one.case: one.limits["output_0"].rtol for one in expected.expectations}
    by_fill = {case.fill: allowed[case.name] for case in grid.cases}
    assert by_fill["low"] > 20 * by_fill["random"]


def test_of_large_inputs_one_small_case_runs_in_float64(measured):
    expected, grid, _ = measured(DARK, IMAGES)
    wide = [one.case for one in expected.expectations if one.oracle]
    assert wide == [min((grid.contrast, grid.example), key=lambda case: case.elements).name]


def test_noise_is_at_least_a_few_roundings(measured):
    expected, *_ = measured(returning("x * 2"))
    assert expected.noise["output_0"].relative == 4 * np.finfo(np.float32).eps


def test_a_model_that_cancels_has_more_noise(measured):
    expected, *_ = measured(returning("(y + 10000.0) - 10000.0"))
    assert expected.noise["output_0"].relative > 1e-4


def test_the_module_is_left_as_it_was(measured):
    *_, module = measured(DEEP, WIDE)
    assert {one.dtype for one in module.parameters()} == {torch.float32}


def test_a_recurrent_module_keeps_its_own_weights_in_its_list(tmp_path):
    loaded = manifest.load_manifest(project(tmp_path, RECURRENT))
    with loader.open_model_loader(loaded) as opening:
        opened = opening()
        reference.measure_noise(loaded, opened, sample_grid.build_grid(loaded), {})
        rnn = opened.module.rnn
        assert all(one is two for one, two in zip(rnn._flat_weights, rnn.parameters(), strict=True))


REFUSES = returning("(x.sum() if x.dtype == torch.float32 else 1 / 0) + y")


def test_a_module_that_refuses_float64_is_measured_with_moved_parameters_and_says_so(measured):
    expected, *_ = measured(REFUSES)
    noise = expected.noise["output_0"]
    assert list(noise.parts) == [
        noises.PERTURBED_PARAMETERS,
        noises.ONE_THREAD,
        noises.PLAIN_KERNELS,
    ]  # not by rows: x.sum() is of all of them
    mentions(noise.measured, noises.PERTURBED_PARAMETERS)
    mentions(noise.measured, "float64", "ZeroDivisionError")
    assert 4 * np.finfo(np.float32).eps <= noise.relative < 1e-5


def test_moved_parameters_are_moved_the_same_way_each_time(tmp_path, measured):
    first, *_ = measured(REFUSES)
    second, *_ = measured(REFUSES)
    assert first.noise == second.noise


def test_a_half_precision_output_has_the_noise_of_half_precision(measured):
    expected, *_ = measured(returning("y.half()"))
    assert expected.noise["output_0"].relative >= 4 * np.finfo(np.float16).eps
    assert expected.expectations[0].outputs["output_0"].dtype == np.float16


# -- limits ---------------------------------------------------------------------------------


def test_the_limit_is_a_multiple_of_the_noise_on_the_scale_of_the_case(measured):
    expected, *_ = measured(DEEP, WIDE)
    noise = expected.noise["output_0"]
    small = estimate_scales([one.outputs["output_0"] for one in expected.expectations])
    limits = [one.limits["output_0"] for one in expected.expectations]
    assert [one.atol for one in limits] == [one.rtol * scale for one, scale in zip(limits, small, strict=True)]
    assert min(one.rtol for one in limits) == NOISE_MULTIPLE * noise.typical
    assert max(one.rtol for one in limits) == NOISE_MULTIPLE * noise.relative


def test_a_case_of_zeros_is_judged_on_the_scale_of_the_others(measured):
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 4], "range": [0, 1]}}
    expected, grid, _ = measured(returning("x * 1.0"), inputs)
    low = next(case.name for case in grid.cases if case.fill == "low")
    one = next(one for one in expected.expectations if one.case == low)
    assert not one.outputs["output_0"].any()
    limit = one.limits["output_0"]
    assert 0 < limit.atol < limit.rtol / 2


def test_integers_and_booleans_are_exact(measured):
    expected, *_ = measured(returning("(y.argmax(1), y > 0, y)"))
    assert list(expected.noise) == ["output_2"]
    for one in expected.expectations:
        assert (one.limits["output_0"].atol, one.limits["output_0"].rtol) == (0.0, 0.0)
        assert (one.limits["output_1"].atol, one.limits["output_1"].rtol) == (0.0, 0.0)
        assert one.limits["output_2"].rtol > 0


def test_an_explicit_tolerance_is_taken_as_it_is_and_nothing_is_measured(measured):
    expected, *_ = measured(returning("(y, y.argmax(1))"), parity={"tolerance": {"atol": 0.25, "rtol": 0.5}})
    assert expected.noise == {}
    for one in expected.expectations:
        assert (one.limits["output_0"].atol, one.limits["output_0"].rtol) == (0.25, 0.5)
        assert (one.limits["output_1"].atol, one.limits["output_1"].rtol) == (0.0, 0.0)


def test_nan_and_infinity_do_not_spoil_the_limits(measured):
    expected, *_ = measured(returning("torch.stack([y[:, 0], y[:, 1] / 0, y[:, 2].abs().neg().sqrt()], 1)"))
    for one in expected.expectations:
        assert np.isfinite(one.limits["output_0"].atol)
        assert one.limits["output_0"].atol > 0


# -- the oracle -----------------------------------------------------------------------------


def test_the_expectations_have_the_float64_outputs_of_the_cases_that_were_run_so(measured):
    expected, grid, module = measured(returning("{'y': y, 'best': y.argmax(1)}"))
    wide = module.double()
    held = [one for one in expected.expectations if one.oracle]
    assert grid.example.name in [one.case for one in held]
    for one in held:
        assert list(one.oracle) == ["y"]
        found = wide(torch.from_numpy(one.inputs["x"]).double())["y"].detach().numpy()
        assert np.array_equal(one.oracle["y"], found)


def test_where_one_side_alone_is_finite_the_oracle_is_the_module_itself(measured):
    expected, *_ = measured(returning("torch.cat([torch.exp(y * 0 + 100.0), y], 1)"))  # overflows in float32 alone
    for one in expected.expectations:
        if one.oracle:
            assert np.isinf(one.outputs["output_0"][:, :3]).all()
            assert np.isinf(one.oracle["output_0"][:, :3]).all()


@pytest.mark.parametrize("sections", [{"parity": {"tolerance": {"atol": 1, "rtol": 1}}}, {}], ids=["explicit", "auto"])
def test_without_a_run_in_float64_there_is_no_oracle(measured, sections):
    expected, *_ = measured(REFUSES if not sections else LINEAR, **sections)
    assert all(one.oracle == {} for one in expected.expectations)


# -- the expected outputs -------------------------------------------------------------------


def test_the_expected_outputs_are_the_modules_own(measured):
    expected, grid, module = measured(LINEAR)
    assert expected.names == ("output_0",)
    assert [one.case for one in expected.expectations] == [case.name for case in grid.cases]
    for case, one in zip(grid.cases, expected.expectations, strict=True):
        assert np.array_equal(one.outputs["output_0"], module(torch.from_numpy(case.inputs["x"])).numpy())


def test_a_module_that_writes_into_its_input_does_not_change_the_case(measured):
    expected, grid, _ = measured(returning("y + x.zero_().sum()"))
    assert all(case.inputs["x"].any() for case in grid.cases)
    assert all(one.inputs["x"].any() for one in expected.expectations)


def test_a_forward_that_fails_shows_the_users_last_line(tmp_path, measured, golden):
    text = returning("self.layer(y)")
    with pytest.raises(ForwardFailed) as caught:
        measured(text)
    lines = render_error(caught.value).splitlines()
    golden(lines[0], "error[forward-failed]", "forward()", "000 (x: float32[2, 4])")
    assert lines[1] == f" --> {tmp_path / 'package.yaml'}:8: inputs"
    assert lines[2].strip() == "model.py:13 in forward"
    assert lines[3].strip() == "return self.layer(y)"
    mentions(lines[4].strip(), "RuntimeError", "mat1", "mat2")


def test_a_forward_that_ends_the_process_failed(measured):
    with pytest.raises(ForwardFailed) as caught:
        measured(returning("exit(0)"))
    assert caught.value.why.endswith("SystemExit: 0")


@pytest.mark.parametrize(
    "expression", ["y + torch.rand_like(y)", "y + self.__dict__.setdefault('calls', iter(range(99))).__next__()"]
)
def test_a_module_that_gives_something_else_at_each_call_is_refused(measured, expression, golden):
    with pytest.raises(NotRepeatable) as caught:
        measured(returning(expression))
    golden(caught.value.message, "forward()")


def test_a_module_too_inexact_for_any_proof_is_refused(measured, golden):
    with pytest.raises(NoiseTooLarge) as caught:
        measured(returning("torch.sin(y * 1e9)"))
    golden(caught.value.message)


@pytest.mark.parametrize(
    ("expression", "facts"),
    [
        ("7", ()),
        ("{'y': y, 'n': 7}", ()),
        ("{'y': y, 'n': y.numpy()}", ()),
        ("()", ()),
        ("y.bfloat16()", ("output_0", "torch.bfloat16", "torch.strided", "numpy")),
        ("y.to_sparse()", ("output_0", "torch.float32", "torch.sparse_coo", "numpy")),
    ],
)
def test_outputs_that_are_no_arrays_are_refused(measured, expression, facts, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning(expression))
    golden(caught.value.why, *facts)


def test_complex_outputs_are_measured_or_refused_and_no_bug(measured):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning("torch.complex(y, y)"))
    assert "complex64" in caught.value.why


def test_an_output_named_like_an_input_is_refused(measured, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning("{'x': y}"))
    golden(caught.value.why, "x", "forward()")


def test_names_that_forward_does_not_return_are_refused(measured, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning("{'a': y, 'b': y}"), outputs=["c"])
    golden(caught.value.why, "forward()")
