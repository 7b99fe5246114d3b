"""Coverage: the channels of the weights that no output of any test case depends on."""

import numpy as np
import pytest
import torch
from messages import mentions
from projects import LINEAR

from packager.parity import coverage, reference
from packager.parity.cost import ForwardCost
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase
from packager.parity.results import ChannelCoverage, UnexercisedChannels

FREE = ForwardCost(0, 0.0)


def returning(layers, expression, lines=()):
    """Return the text of a module with these layers, whose forward returns an expression of x."""
    made = "\n        ".join([*layers])
    body = "\n        ".join([*lines, f"return {expression}"])
    return LINEAR.replace("self.layer = nn.Linear(4, 3)", made).replace("return self.layer(x)", body)


def measured(loaded, model, grid):
    return coverage.measure_coverage(loaded, model, grid.cases, FREE)


# -- unexercised channels --------------------------------------------------------------------


def test_if_every_channel_is_exercised_none_is_named(opened):
    found = measured(*opened(LINEAR))
    assert (found.channels, found.exercised, dict(found.silent)) == (6, 6, {})
    assert coverage.describe_coverage(found) == ""


DEAD = returning(
    ["self.first = nn.Linear(4, 3)", "self.second = nn.Linear(3, 2)",
     "self.first.bias.data = torch.tensor([0.0, -1e6, 0.0])"],
    "self.second(torch.relu(self.first(x)))",
)  # fmt: skip


def test_a_channel_behind_a_relu_that_never_opens_is_named(opened, golden):
    found = measured(*opened(DEAD))
    assert found.silent == {
        "first.bias": UnexercisedChannels(1, 3, (1,)),
        "first.weight": UnexercisedChannels(1, 3, (1,)),
    }
    assert (found.channels, found.exercised) == (3 + 3 + 2 + 2, 8)
    golden(coverage.describe_coverage(found), "2", "10", "first.bias", "1", "3", "first.weight")


IDS = {"x": {"dtype": "int64", "shape": ["batch", 4], "range": [0, 9]}}


def test_rows_of_an_embedding_that_no_case_looks_up_are_named(opened):
    found = measured(*opened(returning(["self.table = nn.Embedding(12, 3)"], "self.table(x)"), IDS))
    assert found.silent == {"table.weight": UnexercisedChannels(3, 12, (9, 10, 11))}


def test_the_padding_row_of_an_embedding_is_not_named_if_it_is_looked_up(opened):
    loaded, model, grid = opened(returning(["self.table = nn.Embedding(9, 3, padding_idx=0)"], "self.table(x)"), IDS)
    assert measured(loaded, model, grid).silent == {}
    assert model.module.table.padding_idx == 0


def test_an_unused_parameter_is_named(opened):
    layers = ["self.layer = nn.Linear(4, 3)", "self.unused = nn.Parameter(torch.ones(5))"]
    assert measured(*opened(returning(layers, "self.layer(x)"))).silent == {
        "unused": UnexercisedChannels(5, 5, (0, 1, 2, 3, 4))
    }


def test_only_the_first_of_many_channels_are_listed(opened):
    layers = ["self.layer = nn.Linear(4, 3)", "self.unused = nn.Parameter(torch.ones(500))"]
    found = measured(*opened(returning(layers, "self.layer(x)"))).silent["unused"]
    assert (found.count, found.of, found.first) == (500, 500, tuple(range(20)))


def test_buffers_count_if_gradients_reach_them(opened):
    layers = ["self.layer = nn.Linear(4, 3)", "self.register_buffer('scale', torch.ones(5))",
              "self.register_buffer('mask', torch.tril(torch.ones(3, 3)))"]  # fmt: skip
    text = returning(layers, "self.layer(x).masked_fill(self.mask[0] == 2, 0.0) * self.scale[:3]")
    found = measured(*opened(text))
    assert found.silent == {"scale": UnexercisedChannels(2, 5, (3, 4))}
    assert found.channels == 3 + 3 + 5


def test_a_module_with_batch_normalization_is_measured(opened):
    text = returning(["self.layer = nn.Linear(4, 3)", "self.norm = nn.BatchNorm1d(3)"], "self.norm(self.layer(x))")
    found = measured(*opened(text))
    assert (found.channels, found.exercised) == (3 + 3 + 3 + 3, 12)


def test_empty_parameters_and_scalars_have_no_channels(opened):
    layers = ["self.layer = nn.Linear(4, 3)", "self.none = nn.Parameter(torch.zeros(0, 2))",
              "self.scale = nn.Parameter(torch.tensor(2.0))"]  # fmt: skip
    found = measured(*opened(returning(layers, "self.layer(x) * self.scale + self.none.sum()")))
    assert (found.channels, found.silent) == (6, {})


# -- coverage not measured ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "facts"),
    [
        ("self.layer(x).argmax(1)", ()),
        ("self.layer(x).detach()", ()),
        ("self.layer(x) / 0", ()),
        ("torch.from_numpy(self.layer(x).numpy())", ("RuntimeError",)),
    ],
    ids=["indices", "detached", "infinite", "numpy"],
)
def test_a_module_without_gradients_is_not_measured_and_that_is_reported(opened, expression, facts, golden):
    found = measured(*opened(returning(["self.layer = nn.Linear(4, 3)"], expression)))
    assert found == ChannelCoverage(0, 0, {}, found.measured)
    golden(found.measured, *facts)
    mentions(coverage.describe_coverage(found), found.measured)


GRU = ["self.rnn = nn.GRU(4, 3, batch_first=True)"]


@pytest.mark.parametrize("expression", ["y", "torch.from_numpy(y.numpy())"], ids=["measured", "refused"])
def test_recurrent_layers_have_their_own_weights_again(opened, expression):
    loaded, model, grid = opened(returning(GRU, expression, ["y = self.rnn(x[:, None])[0]"]))
    measured(loaded, model, coverage.add_extra_cases(loaded, model, grid, FREE))
    rnn = model.module.rnn
    assert all(one is two for one, two in zip(rnn._flat_weights, rnn.parameters(), strict=True))


def test_the_module_is_left_unchanged(opened):
    loaded, model, grid = opened(DEAD)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    coverage.add_extra_cases(loaded, model, grid, FREE)
    measured(loaded, model, grid)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert all(parameter.grad is None for parameter in model.module.parameters())


# -- extra cases   --------------------------------------------------------------------------


def test_a_small_module_always_gets_eight_extra_cases(opened):
    loaded, model, grid = opened(LINEAR)
    found = coverage.add_extra_cases(loaded, model, grid, FREE)
    assert found.cases[: len(grid.cases)] == grid.cases
    extra = found.cases[len(grid.cases) :]
    assert [case.name for case in extra] == [str(1000 + number) for number in range(8)]
    assert {case.sizes["batch"] for case in extra} == {32}
    assert [case.value_description for case in extra] == ["random", "long-tailed", "random", "large"] * 2


def test_more_cases_are_added_while_they_exercise_new_channels(opened):
    inputs = {"x": {"dtype": "int64", "shape": ["batch"], "range": [0, 300]}}
    loaded, model, grid = opened(returning(["self.table = nn.Embedding(300, 2)"], "self.table(x)"), inputs)
    found = coverage.add_extra_cases(loaded, model, grid, FREE)
    assert len(grid.cases) + 8 < len(found.cases)
    assert coverage.measure_coverage(loaded, model, grid.cases, FREE).silent["table.weight"].count > 50
    assert coverage.measure_coverage(loaded, model, found.cases, FREE).silent == {}


def test_no_more_cases_are_added_if_they_exercise_nothing_new(opened):
    loaded, model, grid = opened(DEAD)
    assert len(coverage.add_extra_cases(loaded, model, grid, FREE).cases) == len(grid.cases) + 8


def test_a_module_without_gradients_gets_extra_cases_too(opened):
    loaded, model, grid = opened(returning(["self.layer = nn.Linear(4, 3)"], "self.layer(x).detach()"))
    assert len(coverage.add_extra_cases(loaded, model, grid, FREE).cases) == len(grid.cases) + 8
    loaded, model, grid = opened(returning(["self.layer = nn.Linear(4, 3)"], "torch.tensor(self.layer(x).numpy())"))
    assert len(coverage.add_extra_cases(loaded, model, grid, FREE).cases) == len(grid.cases) + 8


def test_expensive_modules_get_no_extra_cases(opened):
    loaded, model, grid = opened(LINEAR)
    assert coverage.add_extra_cases(loaded, model, grid, ForwardCost(1 << 27, 0.0)) is grid
    assert len(coverage.add_extra_cases(loaded, model, grid, ForwardCost(1 << 20, 0.0)).cases) > len(grid.cases)


def test_an_expensive_module_runs_backwards_on_one_case(opened, golden):
    layers = ["self.layer = nn.Linear(4, 3)", "self.unused = nn.Parameter(torch.ones(5))"]
    loaded, model, grid = opened(returning(layers, "self.layer(x).sum(1)"))
    golden(
        coverage.measure_coverage(loaded, model, grid.cases, ForwardCost(1 << 40, 0.0)).measured, "1", len(grid.cases)
    )


def test_more_effort_runs_backwards_on_more_cases(opened):
    layers = ["self.layer = nn.Linear(4, 3)", "self.unused = nn.Parameter(torch.ones(5))"]
    counts = []
    for effort in ("quick", "standard", "thorough"):
        loaded, model, grid = opened(returning(layers, "self.layer(x).sum(1)"), parity={"effort": effort})
        measured = coverage.measure_coverage(loaded, model, grid.cases, ForwardCost(1 << 31, 0.0)).measured
        counts.append(int(measured.split()[2]))
    assert counts == [1, 2, len(grid.cases)]


def test_extra_cases_have_sizes_and_kinds_that_fit_the_inputs(opened):
    inputs = {**IDS, "mask": {"dtype": "bool", "shape": ["batch", 4]}}
    text = returning(["self.table = nn.Embedding(9, 3)"], "self.table(x) * mask[..., None]").replace("x):", "x, mask):")
    loaded, model, grid = opened(text, inputs, dims={"batch": {"max": 5}})
    extra = coverage.add_extra_cases(loaded, model, grid, FREE).cases[len(grid.cases) :]
    assert {case.sizes["batch"] for case in extra} == {5}
    assert {case.value_description for case in extra} == {"random", "extremes", "padded"}


# -- the outputs' own channels --------------------------------------------------------------


def giving(*arrays):
    arrays = [np.asarray(array, np.float32) for array in arrays]
    return [
        ReferenceCase(str(number), {}, {"y": array}, {"y": ElementTolerance(0, 0)})
        for number, array in enumerate(arrays)
    ]


@pytest.mark.parametrize(
    ("arrays", "counts"),
    [
        ([[[1, 5], [2, 5]], [[3, 5]]], {"y": 1}),
        ([[[1, 5], [2, 5]], [[3, 6]]], {}),
        ([[[7, 7]], [[7, 7]]], {"y": 2}),
        ([[[7, 7]]], {}),
        ([[1, 2], [1, 2, 3]], {}),
        ([7, 7], {}),
        ([np.zeros((0, 2)), np.zeros((0, 2))], {}),
    ],
    ids=["one", "none", "all", "a single row", "a size that varies", "scalars", "empty"],
)
def test_output_channels_with_the_same_value_in_all_cases_are_counted(arrays, counts):
    assert coverage.count_constant_channels(giving(*arrays)) == counts


def test_a_masked_channel_is_constant_in_the_output_and_unexercised_in_the_weights(opened):
    loaded, model, grid = opened(LINEAR.replace("(x)\n", "(x) * torch.tensor([1.0, 0.0, 1.0])\n"))
    noise = reference.measure_noise(loaded, model, grid, {}, FREE)
    found = reference.measure_reference(loaded, model, grid, noise, probe=(), has_discrete_decisions=False)
    assert coverage.count_constant_channels(found.reference_cases) == {"output_0": 1}
    assert coverage.measure_coverage(loaded, model, found.cases, FREE).silent["layer.bias"] == UnexercisedChannels(
        1, 3, (1,)
    )


def test_a_module_of_many_parameters_runs_backwards_on_fewer_cases(opened):
    layers = ["self.table = nn.Embedding(1 << 20, 64)", "self.layer = nn.Linear(4, 3)"]
    loaded, model, grid = opened(returning(layers, "self.layer(x)"))
    assert measured(loaded, model, grid).measured.split()[2] == "7"
    loaded, model, grid = opened(returning(layers, "self.layer(x)"), parity={"effort": "quick"})
    assert measured(loaded, model, grid).measured.split()[2] == "1"


# -- weights that nothing shows -------------------------------------------------------------

MASKED = LINEAR.replace("def forward(self, x)", "def forward(self, x, mask)").replace("(x)\n", "(x) * mask[:, None]\n")
MASKED_INPUTS = {
    "x": {"dtype": "float32", "shape": ["batch", 4]},
    "mask": {"dtype": "int64", "shape": ["batch"], "range": [0, 1]},
}


def test_weights_behind_a_mask_of_zeros_are_not_shown(opened):
    loaded, model, grid = opened(MASKED, MASKED_INPUTS)
    assert not coverage.show_weights(loaded, model, grid.cases, widen=True)
    wider = {**MASKED_INPUTS, "mask": {**MASKED_INPUTS["mask"], "range": [0, 2]}}
    loaded, model, grid = opened(MASKED, wider)
    assert coverage.show_weights(loaded, model, grid.cases, widen=True)


@pytest.mark.parametrize("expression", ["self.layer(x) * 1e-30 * 1e-30", "torch.round(self.layer(x) * 10)"])
def test_weights_that_underflow_or_are_rounded_are_shown_without_a_gradient(opened, expression):
    loaded, model, grid = opened(returning(["self.layer = nn.Linear(4, 3)"], expression))
    found = measured(loaded, model, grid)
    assert (found.channels, found.exercised) == (6, 0)
    assert coverage.show_weights(loaded, model, grid.cases, widen=True)
