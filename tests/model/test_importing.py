"""Importing the user's code: which entries work, and what is said about one that does not."""

import os
import sys

import pytest
import torch
from loading import load, refused, zero_project
from projects import LINEAR, project

from packager.errors import EntryImportFailed, EntryNotFound, EntryNotModule, render_error
from packager.model import loader
from packager.project import manifest


@pytest.mark.parametrize(
    "entry", ["model.py:Net", "model:Net", "model.py:Space.Inner", "model.py:make", "./model.py:Net"]
)
def test_an_entry_is_a_class_or_a_function_in_a_file_or_a_module(tmp_path, entry):
    text = LINEAR + "\n\nclass Space:\n    Inner = Net\n\n\ndef make():\n    return Net()\n"
    model = load(zero_project(tmp_path, text, entry=entry))
    assert isinstance(model.module, torch.nn.Module)
    assert model.parameters == 15


def test_a_file_in_a_folder_and_a_module_in_a_package_work(tmp_path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "__init__.py").touch()
    (tmp_path / "arch" / "nets.py").write_text(LINEAR)
    assert load(zero_project(tmp_path, "", entry="arch/nets.py:Net")).parameters == 15
    assert load(zero_project(tmp_path, "", entry="arch.nets:Net")).parameters == 15


def test_an_entry_may_come_from_an_installed_package(tmp_path):
    inputs = {"input": {"dtype": "float32", "shape": ["batch", 4]}}
    state = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    kwargs = {"in_features": 4, "out_features": 3}
    path = project(tmp_path, "", state=state, entry="torch.nn:Linear", kwargs=kwargs, inputs=inputs)
    model = load(path)
    assert isinstance(model.module, torch.nn.Linear)


def test_two_projects_with_the_same_file_names_get_their_own_code(tmp_path):
    for name, factor in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pieces.py").write_text(f"FACTOR = {factor}\n")
    text = LINEAR.replace("import torch\n", "import torch\nimport pieces\n").replace(
        "self.layer(x)", "pieces.FACTOR * self.layer(x)"
    )
    modules = [load(zero_project(tmp_path / name, text)).module for name in ("a", "b")]
    state = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}
    for module, factor in zip(modules, (2, 3), strict=True):
        module.load_state_dict(state)
        assert module(torch.ones(1, 4)).tolist() == [[4.0 * factor] * 3]


def test_the_interpreter_is_left_as_it_was(tmp_path):
    (tmp_path / "pieces.py").write_text("")
    path = zero_project(tmp_path, "import pieces\n" + LINEAR)
    load(path)  # whatever torch imports when it is first used
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
    path = zero_project(tmp_path, "", entry="json.py:Net")
    assert isinstance(load(path).module, torch.nn.Module)
    assert sys.modules["json"] is json


def test_a_file_named_like_an_imported_module_leaves_it_where_it_cannot_be_imported(tmp_path):
    import json

    (tmp_path / "json.py").write_text("1 / 0\n")
    refused(zero_project(tmp_path, "", entry="json.py:Net"), EntryImportFailed)
    assert sys.modules["json"] is json


def test_a_missing_file_names_the_nearest(tmp_path, golden):
    path = zero_project(tmp_path, LINEAR, entry="modle.py:Net")
    golden(
        render_error(refused(path, EntryNotFound)),
        "error[entry-not-found]",
        "model.entry",
        "modle.py:Net",
        f"{path}:5: model.entry",
        tmp_path / "modle.py",
        "model.py",
    )


def test_a_missing_attribute_names_the_nearest(tmp_path, golden):
    path = zero_project(tmp_path, LINEAR, entry="model.py:Nett")
    error = refused(path, EntryNotFound)
    golden(error.why, "model.py", "Nett")
    golden(error.hint, "Net")


def test_a_missing_module_is_reported(tmp_path, golden):
    error = refused(zero_project(tmp_path, LINEAR, entry="no_such_package.nets:Net"), EntryNotFound)
    assert error.hint is None
    golden(error.why, "no_such_package.nets")


def test_an_import_that_fails_shows_the_users_last_line(tmp_path, golden):
    (tmp_path / "pieces.py").write_text("\n\nfrom os import not_there\n")
    path = zero_project(tmp_path, "import pieces\n" + LINEAR)
    golden(
        render_error(refused(path, EntryImportFailed)),
        "error[entry-import-failed]",
        "model.py:Net",
        f"{path}:5: model.entry",
        "pieces.py:3",
        "not_there",
        "ImportError",
        "os",
        stdlib_file=os.__file__,
    )


@pytest.mark.parametrize("entry", ["model.py:Net", "model:Net"])
def test_a_missing_dependency_is_a_failed_import(tmp_path, entry, golden):
    why = refused(zero_project(tmp_path, "import not_installed\n", entry=entry), EntryImportFailed).why
    golden(why, "model.py:1", "not_installed", "ModuleNotFoundError")


@pytest.mark.parametrize("entry", ["model.py:Net", "model:Net"])
def test_a_file_that_exits_when_it_is_imported_is_a_failed_import(tmp_path, entry):
    why = refused(
        zero_project(tmp_path, "import sys\n" + LINEAR + "\n\nsys.exit(0)\n", entry=entry), EntryImportFailed
    ).why
    assert why.endswith("in <module>\n  sys.exit(0)\nSystemExit: 0")


def test_a_syntax_error_names_the_line(tmp_path, golden):
    why = refused(zero_project(tmp_path, "x = 1\nclass Net(:\n"), EntryImportFailed).why
    golden(why, "model.py:2", "Net(", "SyntaxError")


@pytest.mark.parametrize(
    ("text", "entry", "facts"),
    [
        ("Net = 7", "Net", ()),
        ("from torch import nn\nNet = nn.Linear(4, 3)", "Net", ()),
        ("def make():\n    return 7", "make", ("model.py:make",)),
        ("class Net:\n    pass", "Net", ("model.py:Net",)),
    ],
)
def test_an_entry_that_is_not_a_module_is_refused(tmp_path, text, entry, facts, golden):
    golden(refused(zero_project(tmp_path, text, entry=f"model.py:{entry}"), EntryNotModule).why, *facts)
