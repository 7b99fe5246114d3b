"""Manifest + checkpoint → the eager module."""

import os
import sys

import numpy as np
import pytest
import torch
from messages import mentions
from projects import FLOATS, LINEAR, project

import packager
from packager.errors import (
    EntryImportFailed,
    EntryNotFound,
    EntryNotModule,
    InputsDoNotFit,
    ModelArgumentsWrong,
    ModelConstructionFailed,
    StateDoesNotFit,
    WeightsNotFound,
    render_error,
)
from packager.model import loader
from packager.project import manifest

HEAD = "import torch\nfrom torch import nn\n\n\n"


def loaded(path):
    with loader.open_model_loader(manifest.load_manifest(path)) as opening:
        return opening()


def refused(path, kind):
    before, search = set(sys.modules), list(sys.path)
    with pytest.raises(kind) as caught:
        loaded(path)
    assert sys.path == search
    assert not {name for name in set(sys.modules) - before if name in ("model", "pieces", "arch")}
    return caught.value


def bare(tmp_path, text, **settings):
    """A project whose module is never built: the checkpoint is another's."""
    return project(tmp_path, text, state={"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}, **settings)


# -- entries that work ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", ["model.py:Net", "model:Net", "model.py:Space.Inner", "model.py:make", "./model.py:Net"]
)
def test_an_entry_is_a_class_or_a_function_in_a_file_or_a_module(tmp_path, entry):
    text = LINEAR + "\n\nclass Space:\n    Inner = Net\n\n\ndef make():\n    return Net()\n"
    found = loaded(bare(tmp_path, text, entry=entry))
    assert isinstance(found.module, torch.nn.Module)
    assert found.parameters == 15


@pytest.mark.parametrize("prefix", ["", "layer._orig_mod."])
@pytest.mark.parametrize(
    "change",
    [
        ("self.layer = nn.Linear(4, 3)", "self.layer = torch.compile(nn.Linear(4, 3))"),
        ("self.layer = nn.Linear(4, 3)", "self.layer = nn.Linear(4, 3); self.layer.compile()"),
        ("class Net(", "def Net():\n    return torch.compile(Inner())\n\n\nclass Inner("),
        ("class Net(", "def Net():\n    return nn.DataParallel(Inner())\n\n\nclass Inner("),
        ("self.layer = nn.Linear(4, 3)", "self.layer = nn.DataParallel(nn.Linear(4, 3))"),
        ("class Net(", "def Net():\n    return nn.DataParallel(torch.compile(Inner()))\n\n\nclass Inner("),
    ],
    ids=["a part", "in place", "the whole", "parallel", "a parallel part", "both"],
)
def test_a_module_that_wraps_itself_or_a_part_is_taken_as_it_was_before(tmp_path, change, prefix):
    text = LINEAR.replace(*change)
    assert text != LINEAR
    head = prefix or "layer."
    state = {f"{head}weight": torch.ones(3, 4), f"{head}bias": torch.zeros(3)}
    found = loaded(project(tmp_path, text, state=state))
    assert list(found.module.state_dict()) == ["layer.weight", "layer.bias"]
    x = torch.ones(2, 4)
    traced = torch.jit.trace(found.module, (x,), check_trace=False)
    assert torch.equal(traced(x), torch.full((2, 3), 4.0))


def test_a_compiled_part_that_has_two_names_is_unwrapped_under_both(tmp_path):
    text = LINEAR.replace("nn.Linear(4, 3)", "torch.compile(nn.Linear(4, 3))\n        self.again = self.layer")
    state = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}
    module = loaded(project(tmp_path, text, state=state)).module
    assert type(module.layer) is torch.nn.Linear and module.again is module.layer


SCRIPTED = (
    LINEAR
    + """

def scripted():
    return torch.jit.script(Net())


def traced():
    return torch.jit.trace(Net().eval(), torch.zeros(2, 4))


def frozen():
    return torch.jit.freeze(scripted().eval())
"""
)


@pytest.mark.parametrize("entry", ["model.py:scripted", "model.py:traced"])
def test_an_entry_that_returns_a_script_module_gets_the_weights_of_the_checkpoint(tmp_path, entry):
    path = bare(tmp_path, SCRIPTED, entry=entry)
    found = loaded(path)
    assert found.parameters == 15
    assert torch.equal(found.module(torch.ones(2, 4)), torch.zeros(2, 3))
    bundle = packager.load(packager.build(path, tmp_path / "out").bundle)
    assert not bundle.run({"x": np.ones((2, 4), np.float32)})["output_0"].any()


def test_a_script_module_without_weights_of_its_own_is_refused(tmp_path, golden):
    error = refused(bare(tmp_path, SCRIPTED, entry="model.py:frozen"), StateDoesNotFit)
    golden(error.why, "model.py:frozen", "ScriptModule")
    golden(error.hint, "torch.jit.freeze()")


def test_a_file_in_a_folder_and_a_module_in_a_package_work(tmp_path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "__init__.py").touch()
    (tmp_path / "arch" / "nets.py").write_text(LINEAR)
    assert loaded(bare(tmp_path, "", entry="arch/nets.py:Net")).parameters == 15
    assert loaded(bare(tmp_path, "", entry="arch.nets:Net")).parameters == 15


def test_an_entry_may_come_from_an_installed_package(tmp_path):
    inputs = {"input": {"dtype": "float32", "shape": ["batch", 4]}}
    state = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    kwargs = {"in_features": 4, "out_features": 3}
    path = project(tmp_path, "", state=state, entry="torch.nn:Linear", kwargs=kwargs, inputs=inputs)
    found = loaded(path)
    assert isinstance(found.module, torch.nn.Linear)


def test_two_projects_with_the_same_file_names_get_their_own_code(tmp_path):
    for name, factor in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pieces.py").write_text(f"FACTOR = {factor}\n")
    text = LINEAR.replace("import torch\n", "import torch\nimport pieces\n").replace(
        "self.layer(x)", "pieces.FACTOR * self.layer(x)"
    )
    modules = [loaded(bare(tmp_path / name, text)).module for name in ("a", "b")]
    state = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}
    for module, factor in zip(modules, (2, 3), strict=True):
        module.load_state_dict(state)
        assert module(torch.ones(1, 4)).tolist() == [[4.0 * factor] * 3]


def test_the_interpreter_is_left_as_it_was(tmp_path):
    (tmp_path / "pieces.py").write_text("")
    path = bare(tmp_path, "import pieces\n" + LINEAR)
    loaded(path)  # whatever torch imports when it is first used
    modules, search = set(sys.modules), list(sys.path)
    state = torch.random.get_rng_state()
    with loader.open_model_loader(manifest.load_manifest(path)) as opening:
        opening()
        assert "pieces" in sys.modules
        assert sys.path[0] == str(tmp_path)
    assert set(sys.modules) == modules
    assert sys.path == search
    assert torch.nn.Module.register_parameter.__module__ == "torch.nn.modules.module"
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_file_named_like_an_imported_module_does_not_replace_it(tmp_path):
    import json

    (tmp_path / "json.py").write_text(LINEAR)
    path = bare(tmp_path, "", entry="json.py:Net")
    assert isinstance(loaded(path).module, torch.nn.Module)
    assert sys.modules["json"] is json


def test_a_file_named_like_an_imported_module_leaves_it_where_it_cannot_be_imported(tmp_path):
    import json

    (tmp_path / "json.py").write_text("1 / 0\n")
    refused(bare(tmp_path, "", entry="json.py:Net"), EntryImportFailed)
    assert sys.modules["json"] is json


# -- entries that do not --------------------------------------------------------------------


def test_a_file_that_is_not_there_names_the_nearest(tmp_path, golden):
    path = bare(tmp_path, LINEAR, entry="modle.py:Net")
    golden(
        render_error(refused(path, EntryNotFound)),
        "error[entry-not-found]",
        "model.entry",
        "modle.py:Net",
        f"{path}:5: model.entry",
        tmp_path / "modle.py",
        "model.py",
    )


def test_a_name_that_is_not_there_names_the_nearest(tmp_path, golden):
    path = bare(tmp_path, LINEAR, entry="model.py:Nett")
    error = refused(path, EntryNotFound)
    golden(error.why, "model.py", "Nett")
    golden(error.hint, "Net")


def test_a_module_that_is_not_there_says_so_and_how_a_file_is_written(tmp_path, golden):
    error = refused(bare(tmp_path, LINEAR, entry="no_such_package.nets:Net"), EntryNotFound)
    assert error.hint is None
    golden(error.why, "no_such_package.nets")


def test_an_import_that_fails_shows_the_users_last_line(tmp_path, golden):
    (tmp_path / "pieces.py").write_text("\n\nfrom os import not_there\n")
    path = bare(tmp_path, "import pieces\n" + LINEAR)
    golden(
        render_error(refused(path, EntryImportFailed)),
        "error[entry-import-failed]",
        "model.py:Net",
        f"{path}:5: model.entry",
        "pieces.py:3",
        "not_there",
        "ImportError",
        "os",
        f"({os.__file__})",
    )


@pytest.mark.parametrize("entry", ["model.py:Net", "model:Net"])
def test_a_missing_dependency_is_a_failed_import(tmp_path, entry, golden):
    why = refused(bare(tmp_path, "import not_installed\n", entry=entry), EntryImportFailed).why
    golden(why, "model.py:1", "not_installed", "ModuleNotFoundError")


@pytest.mark.parametrize("entry", ["model.py:Net", "model:Net"])
def test_a_file_that_ends_the_process_when_it_is_imported_is_a_failed_import(tmp_path, entry):
    why = refused(bare(tmp_path, "import sys\n" + LINEAR + "\n\nsys.exit(0)\n", entry=entry), EntryImportFailed).why
    assert why.endswith("in <module>\n  sys.exit(0)\nSystemExit: 0")


def test_a_constructor_that_ends_the_process_failed(tmp_path):
    text = LINEAR.replace("super().__init__()", "raise SystemExit('bye')")
    why = refused(bare(tmp_path, text), ModelConstructionFailed).why
    assert why.endswith("SystemExit: bye")


def test_a_syntax_error_names_the_line(tmp_path, golden):
    why = refused(bare(tmp_path, "x = 1\nclass Net(:\n"), EntryImportFailed).why
    golden(why, "model.py:2", "Net(", "SyntaxError")


def test_weights_that_are_not_there_are_looked_for_in_the_field_that_asks_for_them(tmp_path):
    path = project(tmp_path, checkpoint={"path": "best.pt", "weights": "ema"})
    assert refused(path, WeightsNotFound).where.endswith(": checkpoint.weights")


@pytest.mark.parametrize(
    ("text", "entry", "facts"),
    [
        ("Net = 7", "Net", ()),
        ("from torch import nn\nNet = nn.Linear(4, 3)", "Net", ()),
        ("def make():\n    return 7", "make", ("model.py:make",)),
        ("class Net:\n    pass", "Net", ("model.py:Net",)),
    ],
)
def test_an_entry_that_is_no_module_is_refused(tmp_path, text, entry, facts, golden):
    golden(refused(bare(tmp_path, text, entry=f"model.py:{entry}"), EntryNotModule).why, *facts)


# -- kwargs and construction ----------------------------------------------------------------

SIZED = HEAD + (
    "class Net(nn.Module):\n"
    "    def __init__(self, size, depth=1):\n"
    "        super().__init__()\n"
    "        if size < 0:\n"
    "            raise ValueError('size must be positive')\n"
    "        self.layer = nn.Linear(4, size)\n"
)


def test_kwargs_that_the_entry_does_not_take_name_the_nearest(tmp_path, golden):
    path = bare(tmp_path, SIZED, kwargs={"size": 3, "dept": 2})
    golden(
        render_error(refused(path, ModelArgumentsWrong)),
        "error[model-arguments]",
        "model.py:Net",
        f"{path}:6: model.kwargs",
        "dept",
        "depth",
    )


def test_kwargs_that_are_missing_are_named(tmp_path, golden):
    error = refused(bare(tmp_path, SIZED), ModelArgumentsWrong)
    golden(error.why, "size")
    golden(error.hint)
    assert error.where.endswith("package.yaml:5: model.entry")


def test_a_constructor_that_fails_shows_the_users_last_line(tmp_path, golden):
    path = bare(tmp_path, SIZED, kwargs={"size": -3})
    golden(
        render_error(refused(path, ModelConstructionFailed)),
        "error[model-construction-failed]",
        "model.py:Net",
        f"{path}:5: model.entry",
        "model.py:9",
        "__init__",
        "ValueError('size",
        "ValueError",
    )


def test_a_constructor_that_fails_in_torch_shows_the_users_line(tmp_path):
    error = refused(bare(tmp_path, SIZED, kwargs={"size": "three"}), ModelConstructionFailed)
    mentions(error.why, "model.py:8", "__init__", "0", "TypeError")


# -- the module is what a plain build gives -------------------------------------------------

LEFTOVERS = (
    HEAD
    + '''
class Net(nn.Module):
    """Everything that is not in a checkpoint and has a value all the same."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("position", torch.arange(3.0), persistent=False)
        self.register_buffer("noise", torch.randn(3), persistent=False)
        self.register_buffer("count", torch.tensor(5))
        self.plain = torch.linspace(0, 1, 3)

    def forward(self, x):
        return self.layer(x) + self.position + self.noise + self.plain
'''
)


def plainly_built(text):
    namespace = {"__name__": "model"}
    exec(compile(text, "model.py", "exec"), namespace)
    return namespace["Net"]()


# Without random buffers, which alone are reason enough to build plainly.
FIXED = LEFTOVERS.replace('        self.register_buffer("noise", torch.randn(3), persistent=False)\n', "")
FIXED = FIXED.replace(" + self.noise", "")


@pytest.mark.parametrize("text", [FIXED, FIXED.replace("        torch.manual_seed(3)\n", "")])
def test_buffers_that_are_not_in_the_checkpoint_keep_the_values_of_a_plain_build(tmp_path, text):
    plain = plainly_built(text)
    module = loaded(project(tmp_path, text, state=plain.state_dict())).module
    assert torch.equal(module.position, torch.arange(3.0))
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_seeded_random_buffers_are_those_of_a_plain_build(tmp_path):
    plain = plainly_built(LEFTOVERS)
    module = loaded(project(tmp_path, LEFTOVERS)).module
    assert torch.equal(module.noise, plain.noise)
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_a_parameter_that_may_be_missing_keeps_its_initial_value(tmp_path):
    path = project(
        tmp_path, LEFTOVERS, state={"layer.weight": torch.zeros(3, 4), "count": torch.tensor(5)},
        checkpoint={"path": "best.pt", "allow_missing": ["layer.bias"]},
    )  # fmt: skip
    found = loaded(path)
    assert torch.equal(found.module.layer.bias, plainly_built(LEFTOVERS).layer.bias)
    assert torch.equal(found.module.layer.weight, torch.zeros(3, 4))
    assert found.key_match.missing == ("layer.bias",)


def test_a_buffer_that_may_be_missing_keeps_its_initial_value(tmp_path):
    path = project(
        tmp_path, LEFTOVERS, state={"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)},
        checkpoint={"path": "best.pt", "allow_missing": ["count"]},
    )  # fmt: skip
    assert loaded(path).module.count == 5


def test_a_buffer_computed_from_a_parameter_has_its_value(tmp_path):
    text = FIXED.replace("torch.arange(3.0)", "self.layer.weight.detach().abs().sum(1)")
    plain = plainly_built(text)
    path = project(tmp_path, text, state={**plain.state_dict(), "layer.bias": torch.zeros(3)})
    assert torch.equal(loaded(path).module.position, plain.position)


def test_an_attribute_computed_from_a_parameter_has_its_value(tmp_path):
    text = FIXED.replace("        torch.manual_seed(3)\n", "")
    text = text.replace("torch.linspace(0, 1, 3)", "torch.full_like(self.layer.bias.detach(), 0.5)")
    plain = plainly_built(text)
    module = loaded(project(tmp_path, text, state=plain.state_dict())).module
    assert torch.equal(module.plain, plain.plain)
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_a_number_computed_from_a_parameter_has_its_value(tmp_path):
    text = FIXED.replace("torch.linspace(0, 1, 3)", "float(self.layer.weight.abs().sum())")
    plain = plainly_built(text)
    assert loaded(project(tmp_path, text, state=plain.state_dict())).module.plain == plain.plain


def test_a_constructor_that_writes_into_its_parameters_works(tmp_path):
    lines = (
        "nn.init.orthogonal_(self.layer.weight)",
        "with torch.no_grad():",
        "    self.layer.bias[0] = 7",
        "self.plain =",
    )
    text = FIXED.replace("self.plain =", "\n        ".join(lines))
    plain = plainly_built(text)
    module = loaded(project(tmp_path, text, state=plain.state_dict())).module
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_tied_parameters_stay_tied(tmp_path):
    text = HEAD + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "        self.head.weight = self.embed.weight\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.embed(x))\n"
    )
    module = loaded(project(tmp_path, text)).module
    assert module.head.weight is module.embed.weight
    assert len(list(module.parameters())) == 3


def test_the_module_is_in_eval_mode_on_the_cpu_without_gradients(tmp_path):
    text = LINEAR.replace(
        "self.layer = nn.Linear(4, 3)", "self.layer = nn.Linear(4, 3)\n        self.drop = nn.Dropout()"
    )
    module = loaded(project(tmp_path, text)).module
    assert not any(one.training for one in module.modules())
    assert not any(one.requires_grad for one in module.parameters())
    assert {str(one.device) for one in module.parameters()} == {"cpu"}


# -- inputs ---------------------------------------------------------------------------------

TWO = LINEAR.replace("forward(self, x)", "forward(self, x, scale, shift=0.0)").replace(
    "self.layer(x)", "self.layer(x) * scale + shift"
)


def inputs(*names):
    return dict.fromkeys(names, FLOATS["x"])


@pytest.mark.parametrize("names", [("x", "scale"), ("x", "scale", "shift"), ("a", "b"), ("x", "other")])
def test_inputs_are_given_in_order_and_the_names_are_free(tmp_path, names):
    assert loaded(bare(tmp_path, TWO, inputs=inputs(*names))).parameters == 15


def test_too_many_inputs_are_refused(tmp_path, golden):
    path = bare(tmp_path, TWO, inputs=inputs("x", "scale", "shift", "more"))
    golden(
        render_error(refused(path, InputsDoNotFit)),
        "error[inputs-do-not-fit]",
        "forward()",
        f"{path}:8: inputs",
        "4",
        "scale",
        "shift",
        "more",
    )


def test_too_few_inputs_are_refused(tmp_path, golden):
    error = refused(bare(tmp_path, TWO, inputs=inputs("x")), InputsDoNotFit)
    golden(error.why, "forward()")
    golden(error.hint)


def test_a_parameter_that_is_given_by_name_only_is_no_input(tmp_path, golden):
    text = LINEAR.replace("forward(self, x)", "forward(self, x, *, scale)")
    error = refused(bare(tmp_path, text), InputsDoNotFit)
    golden(error.why, "forward()", "scale")
    loaded(bare(tmp_path / "optional", text.replace("*, scale", "*, scale=1.0")))


@pytest.mark.parametrize(
    "parameters", ["x, **kwargs", "x, *rest, **kwargs", "x, /, *, scale=1.0, **kwargs", "*x, **more"]
)
def test_keyword_arguments_that_need_no_value_are_no_inputs(tmp_path, parameters):
    text = LINEAR.replace("forward(self, x)", f"forward(self, {parameters})").replace(
        "layer(x)", "layer(torch.zeros(4))"
    )
    assert loaded(bare(tmp_path, text)).parameters == 15


@pytest.mark.parametrize(
    ("parameters", "names", "why"),
    [
        ("x, **kwargs", ["x", "y"], "forward() takes: x\nthe manifest gives 2: x, y"),
        ("x, **kwargs", ["x", "kwargs"], "forward() takes: x\nthe manifest gives 2: x, kwargs"),
        ("x, *, scale=1.0, **kwargs", ["x", "scale"], "forward() takes: x\nthe manifest gives 2: x, scale"),
        ("x, y, /, *rest, **kwargs", ["x"], "forward() takes: x, y\nwithout an input: y"),
        ("x, y, **kwargs", ["y", "x"], "forward() takes: x, y\ny is input 1 of the manifest and parameter 2"),
        ("x, *rest, scale, **kwargs", ["x"], "forward() takes scale by name only"),
    ],
)
def test_keyword_arguments_take_no_input(tmp_path, parameters, names, why):
    text = LINEAR.replace("forward(self, x)", f"forward(self, {parameters})")
    assert refused(bare(tmp_path, text, inputs=inputs(*names)), InputsDoNotFit).why == why


def test_what_is_compiled_is_run_as_it_was_written_while_the_module_is_open(tmp_path):
    text = LINEAR.replace("    def forward", "    @torch.compile(backend=refuse)\n    def forward")
    text = text.replace("class Net", "def refuse(graph, inputs):\n    raise AssertionError('compiled')\n\n\nclass Net")
    path = project(tmp_path, text, state={"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)})
    with loader.open_model_loader(manifest.load_manifest(path)) as opening:
        module = opening().module
        assert torch.equal(module(torch.ones(1, 4)), torch.full((1, 3), 4.0))
    with pytest.raises(Exception, match="compiled"):  # the caller's process is as it was
        module(torch.ones(5, 4))


def test_inputs_in_another_order_are_refused(tmp_path, golden):
    error = refused(bare(tmp_path, TWO, inputs=inputs("scale", "x")), InputsDoNotFit)
    golden(error.why, "forward()", "1", "2", "scale")
    assert error.where.endswith("inputs.scale")


def test_a_forward_that_takes_any_number_takes_any_number(tmp_path):
    text = LINEAR.replace("forward(self, x)", "forward(self, *x)").replace("self.layer(x)", "self.layer(sum(x))")
    assert loaded(bare(tmp_path, text, inputs=inputs("a", "b", "c"))).parameters == 15


def test_a_module_whose_shapes_are_not_known_yet_is_refused(tmp_path, golden):
    text = "import torch\n\n\nclass Net(torch.nn.LazyLinear):\n    def __init__(self):\n        super().__init__(3)\n"
    path = project(tmp_path, text, state={"weight": torch.ones(3, 4), "bias": torch.ones(3)})
    error = refused(path, StateDoesNotFit)
    golden(error.why, "bias")
