"""The inputs of the last build of the same code, found again without running the code."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from packager.builder.incremental import inputs
from packager.builder.incremental.store import CacheKey
from packager.checkpoint.locate import locate_files
from packager.common.cache import Cache
from packager.common.hashing import sha256_file
from packager.errors import CheckpointDigestWrong, InputChanged
from packager.model.code_dependencies import CodeDependencies
from packager.project.manifest import load_manifest

MANIFEST = {
    "schema": 1,
    "name": "net",
    "version": "1.0.0",
    "model": {"entry": "model.py:Net"},
    "checkpoint": {"path": "best.pt"},
    "inputs": {"x": {"dtype": "float32", "shape": ["batch", 4]}},
    "parity": {"data": "real.npz"},
    "assets": ["labels.txt"],
}
DEPENDENCIES = CodeDependencies({"model": "model.py"}, ("factor.txt",), (".",), (), False)
KEYS = [CacheKey("reference", {"a": "1"}), CacheKey("bundle", {"a": "1", "b": "2"})]


@dataclass(frozen=True)
class Folder:
    """A project whose files are there, and a cache."""

    path: Path
    cache: Cache

    def project(self, **sections):
        """Write and load the manifest, with some of its sections changed."""
        (self.path / "package.yaml").write_text(json.dumps({**MANIFEST, **sections}))
        return load_manifest(self.path / "package.yaml")

    def checkpoint(self):
        return locate_files(self.path / "best.pt")

    def remember(self, dependencies=DEPENDENCIES):
        inputs.remember_inputs(self.project(), self.cache, dependencies, KEYS)

    def find(self, **sections):
        return inputs.find_build_inputs(self.project(**sections), self.checkpoint(), self.cache)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    for name in ("model.py", "factor.txt", "best.pt", "real.npz", "labels.txt"):
        (path / name).write_text(name)
    return Folder(path, Cache(tmp_path / "cache"))


# -- what the last build depended on ----------------------------------------------------------


def test_code_that_has_never_run_has_no_known_inputs(folder):
    assert folder.find() is None


def test_the_dependencies_of_the_last_build_are_found_with_the_digests_of_now(folder):
    folder.remember()
    (folder.path / "factor.txt").write_text("changed")
    build_inputs = folder.find()
    values = build_inputs.module_inputs
    assert build_inputs.dependencies == DEPENDENCIES
    assert values["checkpoint"] == sha256_file(folder.path / "best.pt")
    assert values["code:model"] == sha256_file(folder.path / "model.py")
    assert values["read:factor.txt"] == sha256_file(folder.path / "factor.txt")
    assert values["importable:."] == "model.py"


@pytest.mark.parametrize("section", [{"description": "Different"}, {"export": {"opset": 18}}], ids=str)
def test_a_field_that_the_code_does_not_see_leaves_its_dependencies_known(folder, section):
    folder.remember()
    assert folder.find(**section).dependencies == DEPENDENCIES


@pytest.mark.parametrize(
    "section", [{"model": {"entry": "model.py:Other"}}, {"model": {**MANIFEST["model"], "kwargs": {"a": 1}}}], ids=str
)
def test_a_different_entry_or_its_arguments_may_have_different_dependencies(folder, section):
    folder.remember()
    assert folder.find(**section) is None


def test_a_changed_entry_file_may_have_different_dependencies(folder):
    folder.remember()
    (folder.path / "model.py").write_text("changed")
    assert folder.find() is None


def test_a_copy_of_the_project_has_the_same_dependencies(folder):
    folder.remember()
    copy = replace(folder, path=folder.path.rename(folder.path.with_name("copy")))
    assert copy.find().dependencies == DEPENDENCIES


def test_code_that_depends_on_its_location_has_known_dependencies_only_there(folder, monkeypatch, tmp_path):
    folder.remember(replace(DEPENDENCIES, location_dependent=True))
    assert folder.find().dependencies.location_dependent
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert folder.find() is None
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert folder.find() is None
    copy = replace(folder, path=folder.path.rename(folder.path.with_name("copy")))
    assert copy.find() is None


@pytest.mark.parametrize("name", ["factor.txt", "best.pt"])
def test_a_missing_file_is_left_to_the_build_to_report(folder, name):
    folder.remember()
    project, checkpoint = folder.project(), folder.checkpoint()
    (folder.path / name).unlink()
    assert inputs.find_build_inputs(project, checkpoint, folder.cache) is None


def test_a_checkpoint_with_a_different_digest_than_the_pin_is_refused(folder):
    folder.remember()
    with pytest.raises(CheckpointDigestWrong):
        folder.find(checkpoint={"path": "best.pt", "sha256": "0" * 64})


def test_the_inputs_of_every_stage_are_remembered_by_manifest(folder):
    assert inputs.load_last_inputs(folder.project(), folder.cache) == {}
    folder.remember()
    expected = {"reference": {"a": "1"}, "bundle": {"a": "1", "b": "2"}}
    assert inputs.load_last_inputs(folder.project(description="Different"), folder.cache) == expected
    other = folder.path / "other.yaml"
    other.write_text(json.dumps(MANIFEST))
    assert inputs.load_last_inputs(load_manifest(other), folder.cache) == {}


# -- what changed during a build --------------------------------------------------------------


def replace_file(path):
    path.with_name("new").write_text(path.read_text())
    path.with_name("new").replace(path)


def append_to_file(path):
    path.write_text(path.read_text() + "!")


def set_other_time(path):
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", [replace_file, append_to_file, set_other_time])
@pytest.mark.parametrize("name", ["best.pt", "real.npz", "labels.txt"])
def test_a_file_that_changed_during_the_build_is_refused_by_name(folder, name, change):
    project, checkpoint = folder.project(), folder.checkpoint()
    versions = inputs.get_file_versions(project)
    assert versions.keys() == {"real.npz", "labels.txt"}
    inputs.check_unchanged(project, checkpoint, versions)
    change(folder.path / name)
    with pytest.raises(InputChanged, match=name):
        inputs.check_unchanged(project, checkpoint, versions)


def test_a_file_that_is_gone_after_the_build_is_refused(folder):
    project, checkpoint = folder.project(), folder.checkpoint()
    versions = inputs.get_file_versions(project)
    (folder.path / "labels.txt").unlink()
    with pytest.raises(InputChanged):
        inputs.check_unchanged(project, checkpoint, versions)


def test_a_change_of_other_files_is_no_concern(folder):
    project, checkpoint = folder.project(), folder.checkpoint()
    versions = inputs.get_file_versions(project)
    (folder.path / "factor.txt").write_text("changed")
    inputs.check_unchanged(project, checkpoint, versions)
