"""What the user's code depends on: what it imports, what it reads, and which new file would replace either."""

import importlib
import subprocess
import sys
import tempfile
import textwrap
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projects import LINEAR, project

from packager.common.hashing import sha256_file
from packager.model import loader
from packager.model.code_dependencies import CodeDependencies, find_imported, track_dependencies
from packager.project import manifest

STATE = {"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}
NAMES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("wxyz"), max_size=3)
SOME = st.lists(st.sampled_from("pqr"), unique=True).map(lambda names: tuple(sorted(names)))
DEPENDENCIES = st.builds(CodeDependencies, NAMES, SOME, SOME, SOME, st.booleans())


HELPER = """
import importlib.util
import os
import sys
import tempfile

TEXT = "def scale(x):\\n    return 2 * x\\n"
BY_NAME = os.path.join(tempfile.gettempdir(), "generated.py")


def generated():
    if "generated" not in sys.modules:
{write}
        spec = importlib.util.spec_from_file_location("generated", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["generated"] = module
        spec.loader.exec_module(module)
{after}
    return sys.modules["generated"]
"""

RANDOM = """
with tempfile.NamedTemporaryFile("w", prefix="generated_", suffix=".py", delete=False) as file:
    file.write(TEXT)
path = file.name
"""  # as PyTorch Geometric does

GENERATORS = {
    "random name": (RANDOM, ""),
    "random name, deleted": (RANDOM, "os.unlink(path)"),
    "random name, in place of another": (RANDOM + "os.replace(path, BY_NAME)\npath = BY_NAME", ""),
    "random folder on the path": (
        "folder = tempfile.mkdtemp()\npath = os.path.join(folder, 'generated.py')\n"
        "open(path, 'w').write(TEXT)\nsys.path.insert(0, folder)",
        "",
    ),
    "each time": ("path = BY_NAME\nopen(path, 'w').write(TEXT)", ""),
    "once": ("path = BY_NAME\nif not os.path.exists(path):\n    open(path, 'w').write(TEXT)", ""),
}
"""How a library writes a module while it runs, and what it does after importing it."""


def generating(folder, generator):
    """A project whose module calls a function that a helper generates as the module is called."""
    folder.mkdir()
    write, after = (textwrap.indent(part.strip("\n"), "        ") for part in generator)
    (folder / "helper.py").write_text(HELPER.format(write=write, after=after))
    text = "from helper import generated\n" + LINEAR.replace("self.layer(x)", "generated().scale(self.layer(x))")
    return project(folder, text, state=STATE)


def collect(path):
    """Return the dependencies of a project's code, loaded and called once."""
    written = manifest.load_manifest(path)
    checkpoint = written.folder / written.manifest.checkpoint.path
    with (
        track_dependencies(written.folder, "model", [checkpoint]) as tracker,
        loader.open_model_loader(written) as load,
    ):
        load().module(torch.zeros(1, 4))
        assert tracker.list_changed() == []
        return tracker.collect()


def test_the_entry_and_what_it_imports_from_beside_it_are_the_code(tmp_path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch/__init__.py").touch()
    (tmp_path / "arch/nets.py").write_text(LINEAR)
    path = project(tmp_path, "from arch.nets import Net\n", state=STATE)
    dependencies = collect(path)
    assert dependencies.modules == {"arch": "arch/__init__.py", "arch.nets": "arch/nets.py", "model": "model.py"}
    assert dependencies.read_files == ()


def test_a_file_named_like_an_imported_module_is_the_code_too(tmp_path):
    (tmp_path / "json.py").write_text(LINEAR)
    path = project(tmp_path, LINEAR)
    path.write_text(path.read_text().replace("model.py:Net", "json.py:Net"))
    assert collect(path).modules == {"json": "json.py"}


def test_an_entry_of_an_installed_package_counts_by_its_version_and_not_as_a_file(tmp_path):
    text = "import torch\n\n\nclass Net(torch.nn.Linear):\n    pass\n"
    path = project(tmp_path, text, kwargs={"in_features": 4, "out_features": 3})
    path.write_text(path.read_text().replace("model.py:Net", "torch.nn:Linear").replace("  x:", "  input:"))
    assert collect(path).modules == {}


LAZY = """
import sys
import types


class Lazy(types.ModuleType):
    def __getattr__(self, name):
        raise ImportError("the target of a lazy import is not installed")


class Slotted:
    __slots__ = ()


lazy = sys.modules["library.optional"] = Lazy("library.optional")
sys.modules["library.slotted"] = Slotted()
"""


def test_a_lazy_module_of_a_library_is_not_asked_for_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    assert collect(project(tmp_path, LAZY + LINEAR, state=STATE)).modules == {"model": "model.py"}


def test_a_file_that_the_code_reads_is_part_of_it(tmp_path):
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/net.json").write_text("{}")
    outside = tmp_path.parent / "shared.txt"
    outside.write_text("shared")
    text = (
        f"from pathlib import Path\nopen({str(outside)!r}).close()\n"
        "Path(__file__).with_name('settings').joinpath('net.json').read_text()\n" + LINEAR
    )
    dependencies = collect(project(tmp_path, text))
    assert set(dependencies.read_files) == {"settings/net.json", str(outside)}
    assert dependencies.list_project_files() == {"model": "model.py", "settings/net.json": "settings/net.json"}


def test_a_file_that_the_code_writes_for_itself_is_not(tmp_path):
    scratch = tmp_path.parent / "scratch.txt"
    text = f"open({str(scratch)!r}, 'w').write('1')\nopen({str(scratch)!r}).read()\n" + LINEAR
    assert collect(project(tmp_path, text)).read_files == ()


@pytest.mark.parametrize("write", GENERATORS.values(), ids=GENERATORS)
def test_a_module_that_the_code_generates_in_the_temporary_folder_is_not_an_input(tmp_path, monkeypatch, write):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = generating(tmp_path / "project", write)
    dependencies = collect(path)
    assert dependencies == CodeDependencies({"helper": "helper.py", "model": "model.py"}, (), (".",), (), False)


def test_a_module_generated_by_an_earlier_run_counts_by_its_content_and_not_as_code(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = generating(tmp_path / "project", GENERATORS["once"])
    first, second = collect(path), collect(path)
    assert second.list_project_files() == first.list_project_files() == {"helper": "helper.py", "model": "model.py"}
    assert (second.read_files, second.searched_folders) == ((f"{temporary}/generated.py",), (".",))
    (temporary / "another.py").touch()
    before = second.collect_inputs(path.parent, sha256_file)
    (temporary / "generated.py").write_text("def scale(x):\n    return 3 * x\n")
    after = second.collect_inputs(path.parent, sha256_file)
    assert {name for name in before if before[name] != after[name]} == {f"read:{temporary}/generated.py"}


def test_a_file_in_the_temporary_folder_that_the_code_only_reads_is_an_input(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (temporary / "scale.txt").write_text("2")
    text = f"try:\n    open({str(temporary / 'scale.txt')!r}, 'x')\nexcept FileExistsError:\n"
    path = project(tmp_path / "project", text + f"    open({str(temporary / 'scale.txt')!r}).read()\n" + LINEAR)
    assert collect(path).read_files == (f"{temporary}/scale.txt",)


def test_a_library_in_the_temporary_folder_is_code_if_the_search_path_leads_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "library").mkdir()
    (tmp_path / "library/nets.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "library")])
    dependencies = collect(project(tmp_path / "project", "import nets\n" + LINEAR, state=STATE))
    assert dependencies.modules == {"model": "model.py", "nets": f"{tmp_path}/library/nets.py"}


@pytest.mark.parametrize("before", [True, False])
def test_a_package_that_the_code_uses_counts_by_its_version_even_if_it_was_imported_earlier(tmp_path, before):
    path = project(tmp_path, "import json\nfrom iniconfig import IniConfig\n" + LINEAR)
    for name in [name for name in sys.modules if name.partition(".")[0] == "iniconfig"]:
        del sys.modules[name]
    if before:
        importlib.import_module("iniconfig")
    dependencies = collect(path)
    assert dependencies.packages == ("iniconfig",)
    version, _, record = dependencies.collect_inputs(tmp_path, sha256_file)["package:iniconfig"].partition(" ")
    assert version[0].isdigit()
    assert len(record) == 12


def test_a_module_that_imports_another_when_it_is_asked_for_a_name_is_left_alone(monkeypatch):
    class Lazy(ModuleType):
        def __getattr__(self, name):
            raise ImportError(name)

    monkeypatch.setitem(sys.modules, "lazy_integration", Lazy("lazy_integration"))
    assert "lazy_integration" not in find_imported({})


def test_inputs_are_compared_by_content(tmp_path):
    path = project(tmp_path, LINEAR)
    dependencies = collect(path)
    before = dependencies.collect_inputs(tmp_path, sha256_file)
    assert before == {"code:model": sha256_file(tmp_path / "model.py"), "importable:.": "model.py"}
    (tmp_path / "model.py").write_text(LINEAR + "# changed\n")
    assert dependencies.collect_inputs(tmp_path, sha256_file) != before
    (tmp_path / "model.py").unlink()
    with pytest.raises(FileNotFoundError):
        dependencies.collect_inputs(tmp_path, sha256_file)


@pytest.mark.parametrize("name", ["fast.py", "helper/__init__.py", "ns/__init__.py", "ns/more.py"])
def test_a_new_file_that_could_be_imported_in_the_place_of_another_is_collect(tmp_path, name):
    (tmp_path / "helper.py").touch()
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns/mod.py").touch()
    text = "import helper, ns.mod\ntry:\n    import fast\nexcept ImportError:\n    pass\n" + LINEAR
    dependencies = collect(project(tmp_path, text, state=STATE))
    before = dependencies.collect_inputs(tmp_path, sha256_file)
    (tmp_path / "dist").mkdir()  # nothing can be imported from it
    assert dependencies.collect_inputs(tmp_path, sha256_file) == before
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert dependencies.collect_inputs(tmp_path, sha256_file) != before


def test_files_outside_the_folder_and_relative_paths_make_the_dependencies_depend_on_the_location(
    tmp_path, monkeypatch
):
    assert not collect(project(tmp_path / "a", LINEAR)).location_dependent
    (tmp_path / "shared.txt").touch()
    reads = "from pathlib import Path\nPath(__file__).parent.parent.joinpath('shared.txt').read_text()\n"
    assert collect(project(tmp_path / "b", reads + LINEAR)).location_dependent
    monkeypatch.chdir(tmp_path)
    assert collect(project(tmp_path / "c", "open('shared.txt').close()\n" + LINEAR)).location_dependent


def test_a_link_that_leads_elsewhere_later_is_collect(tmp_path):
    for number in "12":
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}/helper.py").write_text(f"S = {number}\n")
    folder = tmp_path / "p"
    path = project(folder, "import helper\n" + LINEAR, state=STATE)
    (folder / "helper.py").symlink_to(tmp_path / "v1/helper.py")
    dependencies = collect(path)
    before = dependencies.collect_inputs(folder, sha256_file)
    (folder / "helper.py").unlink()
    (folder / "helper.py").symlink_to(tmp_path / "v2/helper.py")
    assert dependencies.collect_inputs(folder, sha256_file) != before


def test_a_file_that_another_process_changes_after_it_was_read_is_listed(tmp_path):
    (tmp_path / "factor.txt").write_text("2")
    path = project(tmp_path, "open(__file__.replace('model.py', 'factor.txt')).close()\n" + LINEAR)
    written = manifest.load_manifest(path)
    with track_dependencies(written.folder, "model", []) as tracker, loader.open_model_loader(written) as load:
        load()
        assert tracker.list_changed() == []
        subprocess.run(["cp", "-p", tmp_path / "package.yaml", tmp_path / "factor.txt"], check=True)
        assert tracker.list_changed() == ["factor.txt"]


@given(DEPENDENCIES, DEPENDENCIES)
def test_merging_loses_nothing(dependencies, other):
    both = dependencies.merge(other)
    for part in ("modules", "read_files", "searched_folders", "packages"):
        assert set(getattr(both, part)) == {*getattr(dependencies, part), *getattr(other, part)}
    assert both.location_dependent == (dependencies.location_dependent or other.location_dependent)
    assert dependencies.merge(dependencies) == dependencies
