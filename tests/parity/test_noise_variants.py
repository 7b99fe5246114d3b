"""Evaluations of the module that are equal in mathematics: in float64, in rows, on one thread, by other kernels."""

import numpy as np
import pytest
import torch
from projects import FLOATS, LINEAR, RECURRENT

from packager.parity import noise_variants, reference
from packager.parity.cost import ForwardCost
from packager.parity.noise_cases import NoiseCases
from packager.parity.noise_variants import FLOAT64, ONE_THREAD, PERTURBED_PARAMETERS, PLAIN_KERNELS, ROW_BY_ROW


def returning(expression, layer="nn.Linear(4, 3)"):
    return LINEAR.replace("nn.Linear(4, 3)", layer).replace(
        "return self.layer(x)", f"y = self.layer(x)\n        return {expression}"
    )


def evaluated(loaded, model, grid):
    """Return the evaluations of all cases, by name, and the module's variant outputs."""
    outputs = {case.name: reference.run_case(loaded, model, case) for case in grid.cases}
    evaluations = noise_variants.evaluate_variants(
        loaded, model, NoiseCases(grid.cases, grid.cases[:1], grid.cases, grid.cases[-1:], ()), outputs
    )
    return {evaluation.name: evaluation for evaluation in evaluations}, outputs


# -- float64 --------------------------------------------------------------------------------


def test_float64_is_the_module_in_double_precision(opened):
    loaded, model, grid = opened(returning("torch.tanh(y) * 3.0"))
    evaluations, _ = evaluated(loaded, model, grid)
    wide = model.module.double()
    assert list(evaluations[FLOAT64].outputs) == [case.name for case in grid.cases]
    for case in grid.cases:
        output = evaluations[FLOAT64].outputs[case.name]["output_0"]
        assert output.dtype == np.float64
        assert np.array_equal(output, wide(torch.from_numpy(case.inputs["x"]).double()).detach().numpy())


def test_integer_inputs_and_buffers_stay_integers_in_float64(opened):
    text = LINEAR.replace(
        "self.layer = nn.Linear(4, 3)",
        "self.layer = nn.Embedding(9, 3)\n        self.register_buffer('shift', torch.tensor(2))",
    ).replace("self.layer(x)", "(self.layer(x), x + self.shift)")
    loaded, model, grid = opened(text, {"x": {"dtype": "int64", "shape": ["batch", 4], "range": [0, 9]}})
    evaluations, outputs = evaluated(loaded, model, grid)
    for name, variant in evaluations[FLOAT64].outputs.items():
        assert variant["output_0"].dtype == np.float64
        assert np.array_equal(variant["output_1"], outputs[name]["output_1"])


REFUSES = returning("y * (1.0 if x.dtype == torch.float32 else 1 / 0)")


def test_if_float64_is_refused_the_parameters_are_perturbed(opened, golden):
    loaded, model, grid = opened(REFUSES)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    evaluations, outputs = evaluated(loaded, model, grid)
    assert next(iter(evaluations)) == PERTURBED_PARAMETERS and FLOAT64 not in evaluations
    golden(evaluations[PERTURBED_PARAMETERS].note, "float64", "ZeroDivisionError")
    shares = [
        np.abs(evaluations[PERTURBED_PARAMETERS].outputs[name]["output_0"] - variant["output_0"]).max()
        / np.abs(variant["output_0"]).max()
        for name, variant in outputs.items()
    ]
    assert 0 < max(shares) < 1e-5
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_every_parameter_is_perturbed_by_one_unit_in_the_last_place_and_the_same_way_each_time():
    tensor = torch.linspace(-3, 3, 1000)
    moved = noise_variants._perturb_one_ulp(tensor)
    assert torch.equal(moved, noise_variants._perturb_one_ulp(tensor))
    steps = (moved - tensor).abs() / (tensor.abs() * torch.finfo(torch.float32).eps)
    assert ((steps > 0.4) & (steps < 2.1)).all()
    assert 300 < int((moved > tensor).sum()) < 700


def test_a_module_that_refuses_both_is_not_measured_and_that_is_recorded(opened, golden):
    text = LINEAR.replace(
        "return self.layer(x)",
        "if x.dtype == torch.float64 or not torch.equal(self.layer.weight, self.first):\n"
        "            raise TypeError('no')\n        return self.layer(x)",
    ).replace("self.layer = nn.Linear(4, 3)", "self.layer = nn.Linear(4, 3)\n        self.first = None")
    loaded, model, grid = opened(text)
    model.module.first = model.module.layer.weight.detach().clone()
    evaluations, _ = evaluated(loaded, model, grid)
    assert evaluations[PERTURBED_PARAMETERS].outputs == {}
    golden(evaluations[PERTURBED_PARAMETERS].note, "float64", "TypeError")


# -- other orders of the same arithmetic ----------------------------------------------------


def test_one_thread_evaluates_the_first_case_and_leaves_the_threads_as_they_were(opened):
    loaded, model, grid = opened(LINEAR)
    torch.set_num_threads(2)
    evaluations, outputs = evaluated(loaded, model, grid)
    assert torch.get_num_threads() == 2
    assert list(evaluations[ONE_THREAD].outputs) == [grid.cases[0].name]
    np.testing.assert_allclose(
        evaluations[ONE_THREAD].outputs[grid.cases[0].name]["output_0"],
        outputs[grid.cases[0].name]["output_0"],
        rtol=1e-5,
    )
    torch.set_num_threads(1)
    try:
        assert ONE_THREAD not in evaluated(loaded, model, grid)[0]
    finally:
        torch.set_num_threads(2)


def test_a_module_that_raises_on_one_thread_leaves_the_threads_as_they_were(opened):
    loaded, model, grid = opened(LINEAR.replace("return", "assert torch.get_num_threads() > 1\n        return"))
    torch.set_num_threads(2)
    evaluations, _ = evaluated(loaded, model, grid)
    assert ONE_THREAD not in evaluations and PLAIN_KERNELS in evaluations
    assert torch.get_num_threads() == 2


def test_the_rows_of_a_batch_are_evaluated_alone_and_concatenated(opened):
    loaded, model, grid = opened(returning("{'y': y, 'sum': y.sum(1)}"))
    evaluations, outputs = evaluated(loaded, model, grid)
    ((name, variant),) = evaluations[ROW_BY_ROW].outputs.items()
    assert 2 <= len(variant["y"]) <= 8
    for output in ("y", "sum"):
        np.testing.assert_allclose(variant[output], outputs[name][output], rtol=1e-5, atol=1e-6)


def test_torch_s_own_kernels_replace_those_of_onednn_and_are_switched_off_again(opened):
    text = returning("self.layer(x[:, None, :, None])", "nn.Conv2d(1, 3, (3, 1))").replace("y = self.layer(x)", "y = x")
    loaded, model, grid = opened(
        text.replace("return", "self.on.append(torch.backends.mkldnn.enabled)\n        return")
    )
    model.module.on = []
    evaluations, outputs = evaluated(loaded, model, grid)
    ((name, variant),) = evaluations[PLAIN_KERNELS].outputs.items()
    np.testing.assert_allclose(variant["output_0"], outputs[name]["output_0"], rtol=1e-5, atol=1e-6)
    assert model.module.on[-1] is False and all(model.module.on[:-1])
    assert torch.backends.mkldnn.enabled


def test_cases_of_other_kinds_are_evaluated_by_torch_s_own_kernels_alone(opened):
    loaded, model, grid = opened(LINEAR)
    first, *others = grid.cases
    outputs = {case.name: reference.run_case(loaded, model, case) for case in grid.cases}
    torch.set_num_threads(2)
    evaluations = noise_variants.evaluate_variants(
        loaded, model, NoiseCases((first,), (first,), (), (first,), tuple(others)), outputs
    )
    names = [case.name for case in grid.cases]
    assert {evaluation.name: list(evaluation.outputs) for evaluation in evaluations} == {
        FLOAT64: names[:1],
        ONE_THREAD: names[:1],
        PLAIN_KERNELS: names,
    }


def test_without_onednn_cases_of_other_kinds_are_evaluated_on_one_thread(opened, monkeypatch):
    loaded, model, grid = opened(LINEAR)
    first, *others = grid.cases
    outputs = {case.name: reference.run_case(loaded, model, case) for case in grid.cases}
    torch.set_num_threads(2)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    evaluations = noise_variants.evaluate_variants(
        loaded, model, NoiseCases((first,), (first,), (), (first,), tuple(others)), outputs
    )
    names = [case.name for case in grid.cases]
    assert {evaluation.name: list(evaluation.outputs) for evaluation in evaluations} == {
        FLOAT64: names[:1],
        ONE_THREAD: names,
    }


@pytest.mark.parametrize(
    ("text", "inputs", "sections"),
    [
        (LINEAR, {"x": {"dtype": "float32", "shape": [2, 4]}}, {}),
        (LINEAR, FLOATS, {"dims": {"batch": {"min": 2}}}),
        (returning("y.sum(0)[:2]"), FLOATS, {"dims": {"batch": {"min": 1, "max": 3}}}),
    ],
    ids=["no batch", "no batch of one", "no rows"],
)
def test_without_rows_that_can_stand_alone_nothing_is_evaluated_row_by_row(opened, text, inputs, sections):
    loaded, model, grid = opened(text, inputs, **sections)
    rows = evaluated(loaded, model, grid)[0].get(ROW_BY_ROW)
    assert rows is None or [*rows.outputs.values()] == [{}]  # a sum may have as many elements as there are rows


def test_an_output_whose_shape_depends_on_the_other_rows_is_not_evaluated_row_by_row(opened):
    loaded, model, grid = opened(returning("{'y': y, 'square': y @ y.T}"))
    evaluations, _ = evaluated(loaded, model, grid)
    (variant,) = evaluations[ROW_BY_ROW].outputs.values()
    assert list(variant) == ["y"]


def test_rows_that_depend_on_each_other_are_no_noise(opened):
    loaded, model, grid = opened(returning("y - y.mean(0)"))
    measurement = reference.measure_noise(loaded, model, grid, {}, ForwardCost(0, 0.0))
    assert ROW_BY_ROW in [evaluation.name for evaluation in measurement.evaluations]
    evaluations = reference.measure_reference(
        loaded, model, grid, measurement, probe=(), has_discrete_decisions=False
    ).noise["output_0"]
    assert ROW_BY_ROW not in evaluations.parts
    assert evaluations.relative < 1e-5


@pytest.mark.parametrize("refuses", [False, True])
def test_recurrent_layers_have_their_own_weights_again_even_after_an_exception(opened, refuses):
    refusal = "out = self.rnn(x[:, None])[0]\n        assert x.dtype == torch.float32\n        return out"
    text = RECURRENT.replace("return self.rnn(x[:, None])[0]", refusal) if refuses else RECURRENT
    loaded, model, grid = opened(text)
    evaluated(loaded, model, grid)
    rnn = model.module.rnn
    assert all(one is two for one, two in zip(rnn._flat_weights, rnn.parameters(), strict=True))
    assert {weight.dtype for weight in rnn._flat_weights} == {torch.float32}
