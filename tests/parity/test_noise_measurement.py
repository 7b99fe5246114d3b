"""The noise floor of each output: measured on the module itself, by test case."""

import re

import numpy as np
import pytest
import torch
from messages import mentions
from projects import LINEAR, RECURRENT

from packager.errors import NoiseTooLarge
from packager.parity import noise_variants as noises
from packager.parity import reference
from packager.parity.cost import ForwardCost
from packager.parity.numerics.compare import compare
from packager.parity.numerics.tolerances import MAX_TOLERANCE_SHARE
from packager.parity.runtime_functions import measure_function_error

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


def test_noise_is_the_distance_to_float64(measured):
    expected, grid, module = measured(DEEP, WIDE)
    noise = expected.noise["output_0"]
    runtime = f"{noises.RUNTIME_FUNCTIONS} Tanh (good to {measure_function_error('Tanh'):.1e})"
    assert list(noise.parts) == [noises.FLOAT64, runtime, noises.ONE_THREAD, noises.ROW_BY_ROW, noises.PLAIN_KERNELS]
    mentions(noise.description, *(f"{name} ({part:.2g})" for name, part in noise.parts.items()))
    largest = max(grid.cases, key=lambda case: case.inputs["x"].size)
    wide = module.double()(torch.from_numpy(largest.inputs["x"]).double()).numpy()
    output = next(case for case in expected.reference_cases if case.name == largest.name).outputs["output_0"]
    relative = np.max(np.abs(output - wide) / (np.abs(wide) + np.sqrt(np.mean(wide**2))))
    assert relative <= noise.relative * 1.01
    assert noise.relative < 1e-5


IMAGES = {"x": {"dtype": "float32", "shape": ["batch", 3, 160, 160], "range": [0, 1]}}
# In dark images a thousand is added and, computed in another way, taken away again.
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
def test_noise_is_measured_on_values_of_every_kind(opened, text, inputs):
    project, model, grid = opened(text, inputs)
    evaluations = reference.measure_noise(project, model, grid, {}, ForwardCost(0, 0.0)).evaluations
    measured = {name for evaluation in evaluations for name in evaluation.outputs}
    kinds = {kind for case in grid.cases for kind in case.value_kinds}
    assert {kind for case in grid.cases if case.name in measured for kind in case.value_kinds} == kinds


def test_a_case_whose_values_have_more_noise_has_a_larger_tolerance(measured):
    expected, grid, _ = measured(DARK, IMAGES)
    rtol = {case.name: case.tolerances["output_0"].rtol for case in expected.reference_cases}
    by_kind = {case.value_description: rtol[case.name] for case in grid.cases}
    assert by_kind["low"] > 20 * by_kind["random"]


def test_of_an_expensive_module_one_small_case_runs_in_float64_and_with_the_runtime_s_functions(measured):
    expected, grid, _ = measured(DARK, IMAGES, cost=ForwardCost(1 << 34, 0.0))
    assert [part.split(" Exp")[0] for part in expected.noise["output_0"].parts] == [
        noises.FLOAT64,
        noises.RUNTIME_FUNCTIONS,
    ]
    wide = [case.name for case in expected.reference_cases if case.float64_outputs]
    assert wide == [min((grid.probe_case, grid.example_case), key=lambda case: case.element_count).name]


def test_noise_is_at_least_a_few_roundings(measured):
    expected, *_ = measured(returning("x * 2"))
    assert expected.noise["output_0"].relative == 4 * np.finfo(np.float32).eps


def test_a_model_that_cancels_has_more_noise(measured):
    expected, *_ = measured(returning("(y + 10000.0) - 10000.0"))
    assert expected.noise["output_0"].relative > 1e-4


def test_the_module_is_left_as_it_was(measured):
    *_, module = measured(DEEP, WIDE)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_recurrent_module_keeps_its_own_weights_in_its_list(opened):
    project, model, grid = opened(RECURRENT)
    reference.measure_noise(project, model, grid, {}, ForwardCost(0, 0.0))
    rnn = model.module.rnn
    assert all(one is two for one, two in zip(rnn._flat_weights, rnn.parameters(), strict=True))


REFUSES = returning("(x.sum() if x.dtype == torch.float32 else 1 / 0) + y")


def test_a_module_that_refuses_float64_is_measured_with_perturbed_parameters_and_that_is_recorded(measured):
    expected, *_ = measured(REFUSES)
    noise = expected.noise["output_0"]
    assert list(noise.parts) == [
        noises.PERTURBED_PARAMETERS,
        noises.ONE_THREAD,
        noises.PLAIN_KERNELS,
    ]  # not row by row: x.sum() depends on all rows
    mentions(noise.description, noises.PERTURBED_PARAMETERS)
    mentions(noise.description, "float64", "ZeroDivisionError")
    assert 4 * np.finfo(np.float32).eps <= noise.relative < 1e-5


def test_parameters_are_perturbed_the_same_way_each_time(measured):
    first, *_ = measured(REFUSES)
    second, *_ = measured(REFUSES)
    assert first.noise == second.noise


def test_a_half_precision_output_has_the_noise_of_half_precision(measured):
    expected, *_ = measured(returning("y.half()"))
    assert expected.noise["output_0"].relative >= 4 * np.finfo(np.float16).eps
    assert expected.reference_cases[0].outputs["output_0"].dtype == np.float16


UNCERTAIN = returning("torch.where(x.abs().amax(1, keepdim=True) < 1e-20, torch.sin(y * 1e9), y)")


def test_a_case_on_which_the_module_is_uncertain_is_left_out_and_told(measured, golden):
    expected, grid, _ = measured(UNCERTAIN)
    left_out = {case.name for case in grid.cases} - {case.name for case in expected.reference_cases}
    vanishing = [case.name for case in grid.cases if "vanishing" in case.value_kinds]
    assert left_out == set(vanishing) and len(vanishing) == 2
    assert [case.name for case in expected.cases] == [case.name for case in expected.reference_cases]
    assert expected.noise["output_0"].relative < 1e-5
    golden(re.sub("by [0-9.]+", "by 1.0", "\n".join(expected.uncompared)))


def test_a_module_too_inexact_for_a_proof_is_refused(measured, golden):
    with pytest.raises(NoiseTooLarge) as caught:
        measured(returning("torch.sin(y * 1e9)"))
    golden(caught.value.message)


def test_an_expensive_module_is_measured_on_another_case_if_it_is_uncertain_on_the_first(measured):
    _, grid, _ = measured(LINEAR)
    first = min(grid.probe_case, grid.example_case, key=lambda case: case.element_count)
    text = returning(f"torch.sin(y * 1e9) if x.shape[0] == {first.sizes['batch']} else y")
    expected, *_ = measured(text, cost=ForwardCost(1 << 34, 0.0))
    assert [note for note in expected.uncompared if note.startswith(f"case {first.name}")]
    assert first.name not in {case.name for case in expected.reference_cases}
    assert expected.noise["output_0"].relative < 1e-5


def test_an_expensive_module_that_is_uncertain_everywhere_is_refused(measured):
    with pytest.raises(NoiseTooLarge):
        measured(returning("torch.sin(y * 1e9)"), cost=ForwardCost(1 << 34, 0.0))


# Two scores of three are tails of a sigmoid: 1e-20, where onnxruntime's Sigmoid is good to 1e-8.
TAILS = returning("torch.sigmoid(y - torch.tensor([0.0, 46.0, 46.0]))")


def test_scores_below_the_accuracy_of_the_runtimes_sigmoid_are_compared_like_larger_ones(measured, golden):
    expected, grid, _ = measured(TAILS)
    assert len(expected.reference_cases) == len(grid.cases)
    tolerances = [case.tolerances["output_0"] for case in expected.reference_cases]
    assert max(tolerance.rtol for tolerance in tolerances) < 1e-4
    assert 1e-9 < max(tolerance.atol for tolerance in tolerances) < 1e-5
    golden(re.sub(r"[0-9.]+e-[0-9]+", "1e-07", "\n".join(expected.uncompared)))


def test_an_error_in_the_scores_that_are_large_enough_is_found(measured):
    expected, *_ = measured(TAILS)
    for case in expected.reference_cases:
        scores = case.outputs["output_0"]
        changed = np.where(scores > 1e-3, scores * np.float32(1.001), scores)
        assert compare(scores, changed, case.tolerances["output_0"]).within_tolerance == (scores <= 1e-3).all()


# Scores of every size from 1e-13 to 1: some are as large as onnxruntime's Sigmoid is inaccurate.
EVERY_SIZE = returning("torch.sigmoid(y[:, :1] + torch.linspace(-30, 6, 64))")


def test_scores_of_every_size_do_not_widen_the_tolerance_of_the_large_ones(measured):
    expected, *_ = measured(EVERY_SIZE)
    for case in expected.reference_cases:
        scores, tolerance = case.outputs["output_0"], case.tolerances["output_0"]
        assert not compare(scores, scores * np.float32(0.999), tolerance).within_tolerance
        assert tolerance.atol < 1e-4


def test_leaving_a_case_out_does_not_let_others_have_tolerances_that_prove_nothing(opened):
    """Three cases of five are below the accuracy of the function; without the first, that is no longer most of them."""
    project, model, grid = opened(LINEAR)
    random = np.random.default_rng(0)
    scores = {
        case.name: {"scores": np.append(random.uniform(1, 2, 6) * 1e-12, random.uniform(0.5, 1, 3)).astype(np.float32)}
        for case in grid.cases
    }
    names = [case.name for case in grid.cases[:5]]
    errors = [np.float32(0.3), np.float32(1e-7), np.float32(1e-7), np.float32(0), np.float32(0)]
    wrong = {name: {"scores": scores[name]["scores"] + error} for name, error in zip(names, errors, strict=True)}
    evaluations = (
        noises.Evaluation(noises.FLOAT64, {name: scores[name] for name in names}),
        noises.Evaluation(f"{noises.RUNTIME_FUNCTIONS} Sigmoid", wrong),
    )
    expected = reference.measure_reference(
        project,
        model,
        grid,
        reference.NoiseMeasurement(evaluations, scores),
        probe=(),
        has_discrete_decisions=False,
    )
    assert max(case.tolerances["scores"].rtol for case in expected.reference_cases) < MAX_TOLERANCE_SHARE
    assert {case.name for case in expected.reference_cases} == {case.name for case in grid.cases} - set(names[:3])


def test_large_elements_do_not_hide_that_the_module_itself_is_uncertain_in_the_others(measured):
    with pytest.raises(NoiseTooLarge):
        measured(returning("torch.where(torch.arange(3) > 0, torch.sin(y * 1e9) * 1e-6, torch.sigmoid(y))"))
