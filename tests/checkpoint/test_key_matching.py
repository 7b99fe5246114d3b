"""A state dict's keys and shapes against a module's."""

import pytest
import torch
from messages import mentions
from projects import project

from packager import checkpoint
from packager.checkpoint import key_matching
from packager.errors import StateDoesNotFit, WeightsNotFinite, render_error
from packager.model import loader
from packager.project import manifest

SHAPES = {"encoder.weight": (3, 4), "encoder.bias": (3,), "head.weight": (2, 3)}
STATE = {name: torch.full(shape, float(index)) for index, (name, shape) in enumerate(SHAPES.items())}


def prefixed(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


def fitted(state, **settings):
    result = checkpoint.fit(state, SHAPES, **settings)
    assert set(result.state) <= set(SHAPES)
    assert all(torch.equal(result.state[name], STATE[name]) for name in result.state)
    return result


def refused(state, shapes=SHAPES, **settings):
    with pytest.raises(StateDoesNotFit) as caught:
        checkpoint.fit(state, shapes, **settings)
    return caught.value


# -- prefixes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "net.", "network.", "module._orig_mod.", "_orig_mod.module.",
     "model._orig_mod.", "model.module._orig_mod.", "module.module."],
)  # fmt: skip
def test_the_prefixes_of_wrappers_are_stripped(prefix):
    result = fitted(prefixed(prefix))
    assert set(result.state) == set(SHAPES)
    assert (result.missing, result.unexpected) == ((), ())


def test_the_stripped_prefix_is_reported():
    assert fitted(STATE).prefix == ""
    assert fitted(prefixed("module.model.")).prefix == "module.model."


def test_a_checkpoint_of_a_partly_compiled_module_fits():
    state = {"encoder._orig_mod.weight": STATE["encoder.weight"], "encoder._orig_mod.bias": STATE["encoder.bias"]}
    assert set(fitted({**state, "head.weight": STATE["head.weight"]}).state) == set(SHAPES)


def test_a_prefix_that_the_module_has_too_is_kept():
    shapes = {f"model.{name}": shape for name, shape in SHAPES.items()}
    result = checkpoint.fit(prefixed("model."), shapes)
    assert set(result.state) == set(shapes)
    assert result.prefix == ""


def test_a_module_that_wraps_what_was_trained_gets_a_prefix_added():
    shapes = {f"backbone.{name}": shape for name, shape in SHAPES.items()}
    result = checkpoint.fit(prefixed("module."), shapes)
    assert set(result.state) == set(shapes)
    assert result.prefix == "module.+backbone."


def test_metrics_beside_the_prefixed_keys_of_a_lightning_file_are_named_as_unexpected():
    state = {**prefixed("model."), "accuracy.total": torch.zeros(1)}
    result = fitted(state, allow_unexpected=["accuracy.*"])
    assert set(result.state) == set(SHAPES)
    assert result.unexpected == ("accuracy.total",)
    mentions(refused(state).why, "(1)", "accuracy.total")


def test_a_prefix_is_not_stripped_if_two_keys_would_collide():
    state = {**STATE, "module.head.weight": STATE["head.weight"]}
    assert fitted(state, strict=False).unexpected == ("module.head.weight",)


def test_only_the_given_prefix_is_stripped():
    result = fitted(prefixed("trunk."), prefix="trunk.")
    assert set(result.state) == set(SHAPES)
    assert result.prefix == "trunk."
    assert refused(prefixed("module."), prefix="trunk.").code == "state-does-not-fit"


def test_an_empty_prefix_strips_nothing():
    refused(prefixed("module."), prefix="")
    assert set(fitted(STATE, prefix="").state) == set(SHAPES)


# -- what is missing or left over -----------------------------------------------------------


def test_missing_and_unexpected_keys_are_listed_with_the_most_similar_names(golden):
    state = {
        "encoder.weight": STATE["encoder.weight"],
        "encoder.bais": STATE["encoder.bias"],
        "classifier": STATE["head.weight"],
    }
    golden(
        refused(state, where="package.yaml:6: checkpoint"),
        "package.yaml:6: checkpoint",
        *("2", "encoder.bias", "encoder.bais", "head.weight", "classifier"),
        *("checkpoint.prefix", "model.kwargs"),
    )


def test_shapes_that_differ_are_listed_in_a_table(golden):
    state = {**STATE, "encoder.weight": torch.zeros(3, 5), "head.weight": torch.zeros(10, 3)}
    golden(
        render_error(refused(state)),
        "error[state-does-not-fit]",
        "encoder.weight",
        "[3, 4]",
        "[3, 5]",
        "head.weight",
        "[2, 3]",
        "[10, 3]",
        "model.kwargs",
    )


def test_a_shape_that_differs_is_refused_even_without_strict_and_with_every_pattern():
    state = {**STATE, "head.weight": torch.zeros(10, 3)}
    why = refused(state, strict=False, allow_missing=["*"], allow_unexpected=["*"]).why
    mentions(why, "head.weight", "[2, 3]", "[10, 3]")


def test_long_lists_end_in_a_count():
    shapes = {f"layers.{index}.weight": (2,) for index in range(45)}
    why = refused({"other": torch.zeros(1)}, shapes).why
    mentions(why, "(45)")
    mentions(why.splitlines()[21], "25")
    assert len(why.splitlines()) == 24


def test_long_tables_end_in_a_count():
    shapes = {f"layers.{index}.weight": (2,) for index in range(45)}
    why = refused({name: torch.zeros(3) for name in shapes}, shapes).why
    assert why.endswith("  and 25 more")
    assert len(why.splitlines()) == 23


def test_only_missing_or_only_unexpected_keys_hint_at_their_own_pattern(golden):
    missing = refused({name: tensor for name, tensor in STATE.items() if name != "head.weight"})
    golden(missing.hint, "checkpoint.allow_missing")
    unexpected = refused({**STATE, "extra": torch.zeros(1)})
    golden(unexpected.hint, "checkpoint.allow_unexpected")


@pytest.mark.parametrize("in_file", ["", "_orig_mod."])
def test_a_part_that_the_module_compiles_itself_is_found_with_and_without_its_wrapper(in_file):
    shapes = {"encoder._orig_mod.0.weight": (3, 4), "head.weight": (2, 3)}
    state = {f"encoder.{in_file}0.weight": torch.ones(3, 4), "head.weight": torch.zeros(2, 3)}
    result = checkpoint.fit(state, shapes)
    assert {name: tuple(tensor.shape) for name, tensor in result.state.items()} == shapes


def test_a_prefix_that_all_keys_share_is_suggested(golden):
    result = refused(prefixed("net.core."), prefix="")
    golden(result.hint, "checkpoint.prefix", "net.core")


def test_patterns_allow_what_they_match_and_nothing_else(golden):
    state = {"encoder.weight": STATE["encoder.weight"], "head.weight": STATE["head.weight"], "extra.a": torch.zeros(1)}
    result = fitted(state, allow_missing=["*.bias"], allow_unexpected=["extra.?"])
    assert (result.missing, result.unexpected) == (("encoder.bias",), ("extra.a",))
    golden(refused(state, allow_missing=["head.*"], allow_unexpected=["*"]).why, "(1)", "encoder.bias")


def test_patterns_match_case_and_whole_names():
    state = {**STATE, "Extra": torch.zeros(1)}
    refused(state, allow_unexpected=["extra"])
    refused(state, allow_unexpected=["Ext"])
    assert fitted(state, allow_unexpected=["Extra"]).unexpected == ("Extra",)


def test_without_strict_anything_may_be_missing_or_left_over():
    result = fitted({"head.weight": STATE["head.weight"], "extra": torch.zeros(1)}, strict=False)
    assert (result.missing, result.unexpected) == (("encoder.weight", "encoder.bias"), ("extra",))


def test_one_name_of_a_tied_weight_is_enough():
    tied = [frozenset({"encoder.weight", "head.weight"})]
    shapes = {"encoder.weight": (3, 4), "head.weight": (3, 4)}
    for name in shapes:
        result = checkpoint.fit({name: torch.ones(3, 4)}, shapes, tied=tied)
        assert result.missing == ()
    assert "missing" in refused({"other": torch.ones(1)}, shapes, tied=tied).why


# -- in a module ----------------------------------------------------------------------------


def loaded(path):
    with loader.open_model_loader(manifest.load_manifest(path)) as opening:
        return opening()


def test_a_half_precision_checkpoint_takes_the_dtype_of_the_module(tmp_path):
    state = {"layer.weight": torch.full((3, 4), 0.1).half(), "layer.bias": torch.zeros(3, dtype=torch.bfloat16)}
    module = loaded(project(tmp_path, state=state)).module
    assert module.layer.weight.dtype == module.layer.bias.dtype == torch.float32
    assert torch.equal(module.layer.weight, state["layer.weight"].float())


def test_tensors_that_lose_digits_in_the_dtype_of_the_module_are_reported(tmp_path, golden):
    weight = torch.full((3, 4), 0.1, dtype=torch.float64)
    state = {"layer.weight": weight, "layer.bias": torch.zeros(3, dtype=torch.float16)}
    result = loaded(project(tmp_path, state=state))
    assert torch.equal(result.module.layer.weight, weight.float())
    (line,) = result.notes()
    golden(line, "layer.weight", "float64", "float32")


def test_values_beyond_the_dtype_of_the_module_are_refused(tmp_path, golden):
    state = {"layer.weight": torch.full((3, 4), 1e300, dtype=torch.float64), "layer.bias": torch.zeros(3)}
    with pytest.raises(WeightsNotFinite) as caught:
        loaded(project(tmp_path, state=state))
    golden(caught.value.why, "NaN", "layer.weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused_as_weights(tmp_path, dtype, golden):
    state = {"layer.weight": torch.ones(3, 4, dtype=dtype), "layer.bias": torch.zeros(3)}
    with pytest.raises(StateDoesNotFit) as caught:
        loaded(project(tmp_path, state=state))
    name = str(dtype).removeprefix("torch.")
    golden(caught.value.why, "layer.weight", f"({name})")
    golden(caught.value.hint)


def test_a_scalar_counter_of_a_different_integer_dtype_is_converted(tmp_path):
    state = dict(torch.nn.BatchNorm1d(4).state_dict())
    state["num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    source_text = (
        "from torch import nn\nclass Net(nn.BatchNorm1d):\n    def __init__(self):\n        super().__init__(4)\n"
    )
    inputs = {"input": {"dtype": "float32", "shape": ["batch", 4]}}
    module = loaded(project(tmp_path, source_text, inputs=inputs, state=state)).module
    assert module.num_batches_tracked.dtype == torch.int64
    assert module.num_batches_tracked == 7


TIED = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))
"""


@pytest.mark.parametrize("present", ["embed.weight", "head.weight"])
def test_a_tied_weight_that_the_checkpoint_has_under_one_name_is_loaded_under_both(tmp_path, present):
    weight = torch.arange(16.0).reshape(4, 4)
    result = loaded(project(tmp_path, TIED, state={present: weight}))
    assert result.module.embed.weight is result.module.head.weight
    assert torch.equal(result.module.embed.weight, weight)
    assert result.parameters == 16


def test_the_error_of_a_module_points_at_the_manifest(tmp_path, golden):
    path = project(tmp_path, state={"layer.weight": torch.zeros(3, 4), "layer.bais": torch.zeros(3)})
    with pytest.raises(StateDoesNotFit) as caught:
        loaded(path)
    golden(caught.value, f"{path}:6: checkpoint", "layer.bias", "layer.bais", "checkpoint.prefix", "model.kwargs")


def test_wrappers_are_stripped_no_deeper_than_any_training_nests_them():
    """Each level is a copy of all names: a name of ten thousand wrappers would take gigabytes."""
    weight = torch.zeros(1)
    assert checkpoint.fit({"module." * 8 + "weight": weight}, {"weight": (1,)}).state == {"weight": weight}
    with pytest.raises(StateDoesNotFit):
        checkpoint.fit({"module." * 17 + "weight": weight}, {"weight": (1,)})


def test_of_children_that_fit_equally_well_the_first_of_the_module_is_taken():
    shapes = {"b.weight": (1,), "a.weight": (1,)}
    with pytest.raises(StateDoesNotFit) as caught:
        checkpoint.fit({"weight": torch.zeros(1)}, shapes)
    assert "a.weight" in caught.value.why
    assert "b.weight" not in caught.value.why


def test_similar_names_are_looked_for_among_a_limited_number(monkeypatch):
    compared = []

    def compare(_name, names, **_options):
        compared.extend(names)
        return []

    monkeypatch.setattr(key_matching, "get_close_matches", compare)
    names = [f"weight_{number}" for number in range(5000)]
    with pytest.raises(StateDoesNotFit):
        checkpoint.fit(dict.fromkeys(names, torch.zeros(1)), {f"bias_{number}": (1,) for number in range(5000)})
    assert len(compared) == 40 * 1000


def test_a_common_prefix_of_thousands_of_names_is_suggested():
    """Comparing each missing name with each unexpected one took minutes."""
    names = [f"layers.{number}.weight" for number in range(20_000)]
    with pytest.raises(StateDoesNotFit) as caught:
        checkpoint.fit({f"student.{name}": torch.zeros(1) for name in names}, dict.fromkeys(names, (1,)))
    assert "checkpoint.prefix: student." in caught.value.hint
