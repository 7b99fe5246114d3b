"""The module evaluated again: in float64, in pieces, on one thread, and nudged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from messages import carries
from projects import FLOATS, LINEAR, RECURRENT

from packager.errors import DecidedByTies
from packager.parity import noise, reference
from packager.parity.cases import sample_grid
from packager.parity.noise import FLOAT64, ONE_THREAD, PERTURBED_PARAMETERS, PLAIN_KERNELS, ROW_BY_ROW, NoiseCases
from packager.project.manifest import InputSpec, Manifest, Project
from packager.project.yaml_source import YamlDocument


def returning(expression, layer="nn.Linear(4, 3)"):
    return LINEAR.replace("nn.Linear(4, 3)", layer).replace(
        "return self.layer(x)", f"y = self.layer(x)\n        return {expression}"
    )


def evaluated(loaded, source, grid):
    """The evaluations of all cases, by name, and the module's own outputs."""
    known = {case.name: reference.run_case(loaded, source, case) for case in grid.cases}
    found = noise.evaluate_variants(loaded, source, NoiseCases(grid.cases, grid.cases, ()), known)
    return {one.name: one for one in found}, known


# -- the oracle -----------------------------------------------------------------------------


def test_the_oracle_is_the_module_in_float64(opened):
    loaded, source, grid = opened(returning("torch.tanh(y) * 3.0"))
    found, _ = evaluated(loaded, source, grid)
    wide = source.module.double()
    assert list(found[FLOAT64].outputs) == [case.name for case in grid.cases]
    for case in grid.cases:
        own = found[FLOAT64].outputs[case.name]["output_0"]
        assert own.dtype == np.float64
        assert np.array_equal(own, wide(torch.from_numpy(case.inputs["x"]).double()).detach().numpy())


def test_integer_inputs_and_buffers_stay_what_they_are_in_the_oracle(opened):
    text = LINEAR.replace(
        "self.layer = nn.Linear(4, 3)",
        "self.layer = nn.Embedding(9, 3)\n        self.register_buffer('shift', torch.tensor(2))",
    ).replace("self.layer(x)", "(self.layer(x), x + self.shift)")
    loaded, source, grid = opened(text, {"x": {"dtype": "int64", "shape": ["batch", 4], "range": [0, 9]}})
    found, known = evaluated(loaded, source, grid)
    for name, own in found[FLOAT64].outputs.items():
        assert own["output_0"].dtype == np.float64
        assert np.array_equal(own["output_1"], known[name]["output_1"])


REFUSES = returning("y * (1.0 if x.dtype == torch.float32 else 1 / 0)")


def test_where_float64_is_refused_the_parameters_are_moved(opened, golden):
    loaded, source, grid = opened(REFUSES)
    before = {name: one.clone() for name, one in source.module.state_dict().items()}
    found, known = evaluated(loaded, source, grid)
    assert next(iter(found)) == PERTURBED_PARAMETERS and FLOAT64 not in found
    golden(found[PERTURBED_PARAMETERS].note, "float64", "ZeroDivisionError")
    shares = [
        np.abs(found[PERTURBED_PARAMETERS].outputs[name]["output_0"] - own["output_0"]).max()
        / np.abs(own["output_0"]).max()
        for name, own in known.items()
    ]
    assert 0 < max(shares) < 1e-5
    assert all(torch.equal(before[name], one) for name, one in source.module.state_dict().items())


def test_every_parameter_is_moved_by_one_unit_in_the_last_place_and_the_same_way_each_time():
    tensor = torch.linspace(-3, 3, 1000)
    moved = noise._perturb_one_ulp(tensor)
    assert torch.equal(moved, noise._perturb_one_ulp(tensor))
    steps = (moved - tensor).abs() / (tensor.abs() * torch.finfo(torch.float32).eps)
    assert ((steps > 0.4) & (steps < 2.1)).all()
    assert 300 < int((moved > tensor).sum()) < 700


def test_a_module_that_refuses_both_is_not_measured_and_that_is_said(opened, golden):
    text = LINEAR.replace(
        "return self.layer(x)",
        "if x.dtype == torch.float64 or not torch.equal(self.layer.weight, self.first):\n"
        "            raise TypeError('no')\n        return self.layer(x)",
    ).replace("self.layer = nn.Linear(4, 3)", "self.layer = nn.Linear(4, 3)\n        self.first = None")
    loaded, source, grid = opened(text)
    source.module.first = source.module.layer.weight.detach().clone()
    found, _ = evaluated(loaded, source, grid)
    assert found[PERTURBED_PARAMETERS].outputs == {}
    golden(found[PERTURBED_PARAMETERS].note, "float64", "TypeError")


# -- other orders of the same arithmetic ----------------------------------------------------


def test_one_thread_evaluates_the_first_case_and_leaves_the_threads_as_they_were(opened):
    loaded, source, grid = opened(LINEAR)
    torch.set_num_threads(2)
    found, known = evaluated(loaded, source, grid)
    assert torch.get_num_threads() == 2
    assert list(found[ONE_THREAD].outputs) == [grid.cases[0].name]
    np.testing.assert_allclose(
        found[ONE_THREAD].outputs[grid.cases[0].name]["output_0"], known[grid.cases[0].name]["output_0"], rtol=1e-5
    )
    torch.set_num_threads(1)
    try:
        assert ONE_THREAD not in evaluated(loaded, source, grid)[0]
    finally:
        torch.set_num_threads(2)


def test_a_module_that_raises_on_one_thread_leaves_the_threads_as_they_were(opened):
    loaded, source, grid = opened(LINEAR.replace("return", "assert torch.get_num_threads() > 1\n        return"))
    torch.set_num_threads(2)
    with pytest.raises(AssertionError):
        evaluated(loaded, source, grid)
    assert torch.get_num_threads() == 2


def test_the_rows_of_a_batch_are_evaluated_alone_and_put_together(opened):
    loaded, source, grid = opened(returning("{'y': y, 'sum': y.sum(1)}"))
    found, known = evaluated(loaded, source, grid)
    ((name, own),) = found[ROW_BY_ROW].outputs.items()
    assert 2 <= len(own["y"]) <= 8
    for output in ("y", "sum"):
        np.testing.assert_allclose(own[output], known[name][output], rtol=1e-5, atol=1e-6)


def test_torch_s_own_kernels_take_the_place_of_onednn_s_and_give_it_back(opened):
    text = returning("self.layer(x[:, None, :, None])", "nn.Conv2d(1, 3, (3, 1))").replace("y = self.layer(x)", "y = x")
    loaded, source, grid = opened(
        text.replace("return", "self.on.append(torch.backends.mkldnn.enabled)\n        return")
    )
    source.module.on = []
    found, known = evaluated(loaded, source, grid)
    ((name, own),) = found[PLAIN_KERNELS].outputs.items()
    np.testing.assert_allclose(own["output_0"], known[name]["output_0"], rtol=1e-5, atol=1e-6)
    assert source.module.on[-1] is False and all(source.module.on[:-1])
    assert torch.backends.mkldnn.enabled


def test_cases_of_other_kinds_are_evaluated_by_torch_s_own_kernels_alone(opened):
    loaded, source, grid = opened(LINEAR)
    first, *others = grid.cases
    known = {case.name: reference.run_case(loaded, source, case) for case in grid.cases}
    torch.set_num_threads(2)
    found = noise.evaluate_variants(loaded, source, NoiseCases((first,), (), tuple(others)), known)
    names = [case.name for case in grid.cases]
    assert {one.name: list(one.outputs) for one in found} == {
        FLOAT64: names[:1],
        ONE_THREAD: names[:1],
        PLAIN_KERNELS: names,
    }


def test_without_onednn_cases_of_other_kinds_are_evaluated_on_one_thread(opened, monkeypatch):
    loaded, source, grid = opened(LINEAR)
    first, *others = grid.cases
    known = {case.name: reference.run_case(loaded, source, case) for case in grid.cases}
    torch.set_num_threads(2)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    found = noise.evaluate_variants(loaded, source, NoiseCases((first,), (), tuple(others)), known)
    names = [case.name for case in grid.cases]
    assert {one.name: list(one.outputs) for one in found} == {FLOAT64: names[:1], ONE_THREAD: names}


@pytest.mark.parametrize(
    ("text", "inputs", "sections"),
    [
        (LINEAR, {"x": {"dtype": "float32", "shape": [2, 4]}}, {}),
        (LINEAR, FLOATS, {"dims": {"batch": {"min": 2}}}),
        (returning("y.sum(0)[:2]"), FLOATS, {"dims": {"batch": {"min": 1, "max": 3}}}),
    ],
    ids=["no batch", "no batch of one", "no rows"],
)
def test_without_rows_that_stand_alone_nothing_is_evaluated_in_rows(opened, text, inputs, sections):
    loaded, source, grid = opened(text, inputs, **sections)
    rows = evaluated(loaded, source, grid)[0].get(ROW_BY_ROW)
    assert rows is None or [*rows.outputs.values()] == [{}]  # a sum may have as many elements as there are rows


def test_an_output_whose_shape_depends_on_the_other_rows_is_not_evaluated_in_rows(opened):
    loaded, source, grid = opened(returning("{'y': y, 'square': y @ y.T}"))
    found, _ = evaluated(loaded, source, grid)
    (own,) = found[ROW_BY_ROW].outputs.values()
    assert list(own) == ["y"]


def test_rows_that_depend_on_each_other_are_no_noise(opened):
    loaded, source, grid = opened(returning("y - y.mean(0)"))
    floor = reference.measure_noise(loaded, source, grid, {})
    assert ROW_BY_ROW in [one.name for one in floor.evaluations]
    found = reference.measure_reference(loaded, source, grid, floor, probe=(), has_discrete_decisions=False).noise[
        "output_0"
    ]
    assert ROW_BY_ROW not in found.parts
    assert found.relative < 1e-5


@pytest.mark.parametrize("refuses", [False, True])
def test_recurrent_layers_have_their_own_weights_again_also_after_a_refusal(opened, refuses):
    refusal = "out = self.rnn(x[:, None])[0]\n        assert x.dtype == torch.float32\n        return out"
    text = RECURRENT.replace("return self.rnn(x[:, None])[0]", refusal) if refuses else RECURRENT
    loaded, source, grid = opened(text)
    evaluated(loaded, source, grid)
    rnn = source.module.rnn
    assert all(one is two for one, two in zip(rnn._flat_weights, rnn.parameters(), strict=True))
    assert {one.dtype for one in rnn._flat_weights} == {torch.float32}


# -- nudges ---------------------------------------------------------------------------------


def declared(**spec):
    """A project with this one input, x."""
    manifest = Manifest.model_validate(
        {
            "schema": 1, "name": "n", "version": "1.0.0", "model": {"entry": "model.py:Net"},
            "checkpoint": {"path": "best.pt"}, "inputs": {"x": {"shape": [], **spec}},
        }
    )  # fmt: skip
    return Project(Path("package.yaml"), manifest, "0" * 64, YamlDocument({}, {}))


@st.composite
def nudges(draw):
    """A float input, and values within its range."""
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    bounds = st.floats(-1e4, 1e4, width=16)
    low, high = sorted([draw(bounds), draw(bounds)])
    try:
        spec = InputSpec(dtype=dtype, shape=[], range=draw(st.sampled_from([None, [low, high]])))
    except ValueError:
        spec = InputSpec(dtype=dtype, shape=[], range=[-1, 1])
    fill = draw(st.sampled_from(["random", "extremes", "vanishing", "low", "high"]))
    return spec, sample_grid.draws.draw(spec, (16,), fill, np.random.default_rng(draw(st.integers(0, 99))))


@given(nudges())
def test_a_nudge_is_small_and_stays_within_the_range(nudge):
    spec, array = nudge
    found = noise._nudge(declared(dtype=spec.dtype, range=spec.range), "x", array)
    assert found.dtype == array.dtype
    if spec.range is not None:
        assert ((spec.range[0] <= found) & (found < spec.range[1])).all()
    epsilon = float(np.finfo(array.dtype).eps)
    far = np.abs(found.astype(float) - array.astype(float))
    assert (far <= 66 * epsilon * (np.abs(array.astype(float)) + 1)).all()


@pytest.mark.parametrize("limits", [None, [0, 1]])
def test_a_nudge_moves_every_element_it_may_and_not_all_one_way(limits):
    array = np.linspace(0.1, 0.9, 200, dtype=np.float32)
    found = noise._nudge(declared(dtype="float32", range=limits), "x", array)
    assert (found != array).all()
    assert 50 < (found > array).sum() < 150


def test_masks_of_infinities_and_of_the_largest_number_stay_and_data_beyond_the_range_stay_where_they_are():
    most = np.finfo(np.float32).max
    array = np.array([-np.inf, np.inf, np.nan, -most, most, 0.0], np.float32)
    found = noise._nudge(declared(dtype="float32"), "x", array)
    assert np.array_equal(found[:3], array[:3], equal_nan=True) and np.isfinite(found[3:]).all()
    data = np.array([255.0, -7.0, 0.5], np.float32)
    beyond = noise._nudge(declared(dtype="float32", range=[0, 1]), "x", data)
    np.testing.assert_allclose(beyond, data, rtol=1e-4)


def test_integers_are_not_nudged():
    array = np.arange(5)
    assert noise._nudge(declared(dtype="int64", range=[0, 5]), "x", array) is array


def test_a_module_of_integers_is_nudged_by_its_parameters(opened):
    text = LINEAR.replace("nn.Linear(4, 3)", "nn.Embedding(9, 3)")
    loaded, source, grid = opened(text, {"x": {"dtype": "int64", "shape": ["batch", 4], "range": [0, 9]}})
    case = grid.example
    own, other = reference.run_case(loaded, source, case), noise.run_nudged(loaded, source, case)
    assert 0 < np.abs(own["output_0"] - other["output_0"]).max() < 1e-6


# -- decided by ties ------------------------------------------------------------------------

RANKED = {"x": {"dtype": "float32", "shape": ["batch", 8], "range": [0, 1]}}
TOPK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = x * self.scale
        return {}
"""
CHOSEN = {
    "an index": "y.topk(3).indices",
    "a value elsewhere": "torch.zeros_like(y).scatter(1, y.topk(3).indices, 1.0)",
    "what is masked": "y.masked_fill(torch.zeros_like(y).scatter(1, y.topk(3).indices, 1.0) == 0, float('-inf'))",
}


def measured(loaded, source, grid, *, decides=True):
    return reference.measure_reference(
        loaded,
        source,
        grid,
        reference.measure_noise(loaded, source, grid, {}),
        probe=(),
        has_discrete_decisions=decides,
    )


@pytest.mark.parametrize("expression", CHOSEN.values(), ids=CHOSEN)
def test_what_hangs_on_a_tie_is_drawn_anew_and_said(opened, expression, golden):
    loaded, source, grid = opened(TOPK.format(expression), RANKED)
    found = measured(loaded, source, grid)
    tied = {case.name: case.fill for case in grid.cases if case.fill in ("extremes", "low", "high", "vanishing")}
    assert len(tied) == 4
    assert len(found.uncompared) == len(tied)
    for note, (name, fill) in zip(found.uncompared, tied.items(), strict=True):
        golden(note, name, fill)
    assert [case.name for case in found.cases] == [case.name for case in grid.cases]
    assert {case.value_description for case in found.cases if case.name in tied} == {"random"}
    assert [one.name for one in found.reference_cases] == [case.name for case in found.cases]


def test_what_is_drawn_anew_is_another_draw_of_the_same_sizes(opened):
    loaded, source, grid = opened(TOPK.format(CHOSEN["an index"]), RANKED)
    found = measured(loaded, source, grid)
    for case, original in zip(found.cases, grid.cases, strict=True):
        assert case.sizes == original.sizes
        again = sample_grid.redraw_case(loaded, case.name, case.sizes, case.value_kinds)
        assert np.array_equal(again.inputs["x"], case.inputs["x"])


def test_a_module_that_takes_no_decision_is_not_nudged(opened):
    loaded, source, grid = opened(TOPK.format(CHOSEN["an index"]), RANKED)
    found = measured(loaded, source, grid, decides=False)
    assert found.uncompared == ()
    assert found.cases == grid.cases


def test_real_data_with_a_tie_are_left_out_and_said_to_be(opened, tmp_path, golden):
    np.savez(tmp_path / "real.npz", x=np.full((3, 8), 0.5, np.float32))
    loaded, source, grid = opened(TOPK.format(CHOSEN["an index"]), RANKED, parity={"data": "real.npz"})
    found = measured(loaded, source, grid)
    golden(found.uncompared[-1], "(data)", "output_0")
    assert "data" not in [case.name for case in found.cases]


def test_a_module_whose_every_answer_hangs_on_a_tie_is_refused(opened, tmp_path, golden):
    loaded, source, grid = opened(TOPK.format("(y * 1e7).round().long()"), RANKED)
    with pytest.raises(DecidedByTies) as caught:
        measured(loaded, source, grid)
    names = {case.name: case.fill for case in grid.cases}
    last = next(name for name in names if carries(caught.value.why, f"{name} ({names[name]})"))
    golden(
        caught.value,
        *(f"{tmp_path / 'package.yaml'}:1: parity", len(grid.cases), "output_0"),
        case=f"{last} ({names[last]})",
    )
