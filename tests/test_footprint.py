"""What the user's code consists of: what it imports, what it reads, and what would replace it."""

import importlib
import os
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projects import LINEAR, project

from packager import footprint, manifest, source
from packager.footprint import Footprint
from packager.hashing import sha256_file

NAMES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("wxyz"), max_size=3)
FOOTPRINTS = st.builds(
    Footprint,
    NAMES,
    st.lists(st.sampled_from("pqr"), unique=True).map(lambda one: tuple(sorted(one))),
    NAMES,
    st.lists(st.sampled_from("stu"), unique=True).map(lambda one: tuple(sorted(one))),
)


def seen(path):
    """The footprint of a project's code, loaded once."""
    found = manifest.load(path)
    checkpoint = found.folder / found.manifest.checkpoint.path
    with footprint.watched(found.folder, "model", [checkpoint]) as used, source.opened(found) as opening:
        opening()
        return used()


def test_the_entry_and_what_it_imports_from_beside_it_are_the_code(tmp_path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch/__init__.py").touch()
    (tmp_path / "arch/nets.py").write_text(LINEAR)
    state = {"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}
    path = project(tmp_path, "from arch.nets import Net\n", state=state)
    found = seen(path)
    assert found.modules == {"arch": "arch/__init__.py", "arch.nets": "arch/nets.py", "model": "model.py"}
    assert found.data == ()


def test_a_file_named_like_an_imported_module_is_the_code_too(tmp_path):
    (tmp_path / "json.py").write_text(LINEAR)
    path = project(tmp_path, LINEAR)
    path.write_text(path.read_text().replace("model.py:Net", "json.py:Net"))
    assert seen(path).modules == {"json": "json.py"}


def test_an_entry_of_an_installed_package_is_its_version_and_no_file(tmp_path):
    text = "import torch\n\n\nclass Net(torch.nn.Linear):\n    pass\n"
    path = project(tmp_path, text, kwargs={"in_features": 4, "out_features": 3})
    path.write_text(path.read_text().replace("model.py:Net", "torch.nn:Linear").replace("  x:", "  input:"))
    assert seen(path).modules == {}


def test_a_file_that_the_code_reads_is_part_of_it(tmp_path):
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/net.json").write_text("{}")
    outside = tmp_path.parent / "shared.txt"
    outside.write_text("shared")
    text = (
        f"from pathlib import Path\nopen({str(outside)!r}).close()\n"
        "Path(__file__).with_name('settings').joinpath('net.json').read_text()\n" + LINEAR
    )
    found = seen(project(tmp_path, text))
    assert set(found.data) == {"settings/net.json", str(outside)}
    assert found.own_files() == {"model": "model.py", "settings/net.json": "settings/net.json"}


def test_a_file_that_the_code_writes_for_itself_is_not(tmp_path):
    scratch = tmp_path.parent / "scratch.txt"
    text = f"open({str(scratch)!r}, 'w').write('1')\nopen({str(scratch)!r}).read()\n" + LINEAR
    assert seen(project(tmp_path, text)).data == ()


@pytest.mark.parametrize("before", [True, False])
def test_a_package_that_the_code_uses_is_there_with_its_version_whoever_imported_it_first(tmp_path, before):
    path = project(tmp_path, "import json\nfrom iniconfig import IniConfig\n" + LINEAR)
    for name in [name for name in sys.modules if name.partition(".")[0] == "iniconfig"]:
        del sys.modules[name]
    if before:
        importlib.import_module("iniconfig")
    found = seen(path)
    assert set(found.packages) == {"iniconfig"}
    assert found.packages["iniconfig"][0].isdigit()
    assert {"iniconfig", "torch", "json"} <= set(found.names)


def test_a_file_that_was_there_already_shadows_nothing_new(tmp_path):
    (tmp_path / "random.py").write_text("VALUE = 4\n")
    found = seen(project(tmp_path, "import json, secrets\n" + LINEAR))
    assert not found.shadowed(tmp_path)
    (tmp_path / "secrets.py").touch()
    assert found.shadowed(tmp_path)


def test_what_decides_is_told_by_content(tmp_path):
    path = project(tmp_path, LINEAR)
    found = seen(path)
    before = found.inputs(tmp_path, sha256_file)
    assert before == {"code:model": sha256_file(tmp_path / "model.py")}
    (tmp_path / "model.py").write_text(LINEAR + "# changed\n")
    assert found.inputs(tmp_path, sha256_file) != before
    (tmp_path / "model.py").unlink()
    with pytest.raises(FileNotFoundError):
        found.inputs(tmp_path, sha256_file)


@pytest.mark.parametrize("name", ["iniconfig.py", "iniconfig/__init__.py"])
def test_a_new_file_that_would_be_imported_in_the_place_of_a_package_is_seen(tmp_path, name):
    found = Footprint({}, (), {}, ("iniconfig",))
    assert not found.shadowed(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert found.shadowed(tmp_path)


@given(FOOTPRINTS, FOOTPRINTS)
def test_joining_loses_nothing(one, other):
    both = one.joined(other)
    for part in ("modules", "packages"):
        assert set(getattr(both, part)) == {*getattr(one, part), *getattr(other, part)}
    for part in ("data", "names"):
        assert set(getattr(both, part)) == {*getattr(one, part), *getattr(other, part)}
    assert one.joined(one) == one


def test_nothing_is_heard_when_nobody_listens(tmp_path):
    (tmp_path / "file").write_text("")
    with footprint.watched(tmp_path, "model", []) as used:
        pass
    (tmp_path / "file").read_text()
    assert os.path.exists(tmp_path / "file")
    assert used().data == ()
