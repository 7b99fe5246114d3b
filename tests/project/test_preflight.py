"""A manifest may name files in its own folder: a manifest of somebody else's does not reach into the rest."""

import os
import sys

import pytest
from projects import LINEAR, project

from packager.errors import AssetNotFound, EntryNotFound, render_error
from packager.model.importing import resolve_entry
from packager.project import preflight
from packager.project.manifest import load_manifest


@pytest.fixture(autouse=True)
def _forget_modules():
    """Let other tests import modules of these names."""
    yield
    for name in ("model", "other", "link"):
        sys.modules.pop(name, None)


@pytest.fixture
def outside(tmp_path):
    """A folder beside that of the project, with a secret and with code."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    (folder / "model.py").write_text(LINEAR)
    return folder


def make_project(tmp_path, **fields):
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    return load_manifest(project(folder, LINEAR, **fields))


def ways_outside(folder, target):
    """Return paths that lead from the folder to the target: relative, absolute, and through links."""
    (folder / "file").symlink_to(target)
    (folder / "chain").symlink_to("file")
    (folder / "folder").symlink_to(target.parent)
    return [os.path.relpath(target, folder), str(target), "file", "chain", f"folder/{target.name}"]


@pytest.mark.parametrize("way", range(5))
def test_an_asset_outside_the_manifests_folder_is_refused(tmp_path, outside, way, golden):
    (tmp_path / "project").mkdir()
    asset = ways_outside(tmp_path / "project", outside / "secret")[way]
    with pytest.raises(AssetNotFound) as caught:
        preflight.resolve_assets(make_project(tmp_path, assets=[asset]))
    golden(render_error(caught.value), "error[asset-not-found]", outside / "secret")


@pytest.mark.parametrize("way", range(5))
def test_an_entry_outside_the_manifests_folder_is_refused_and_not_run(tmp_path, outside, way, golden):
    (outside / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{LINEAR}")
    (tmp_path / "project").mkdir()
    os.rename(outside / "model.py", outside / "other.py")
    entry = ways_outside(tmp_path / "project", outside / "other.py")[way]
    if not entry.endswith(".py"):
        (tmp_path / "project/link.py").symlink_to(entry)
        entry = "link.py"
    with pytest.raises(EntryNotFound) as caught:
        resolve_entry(make_project(tmp_path, model={"entry": f"{entry}:Net"}))
    golden(render_error(caught.value), "error[entry-not-found]", outside / "other.py")
    assert not (tmp_path / "ran").exists()


def test_files_below_the_manifests_folder_are_found_however_they_are_named(tmp_path):
    folder = tmp_path / "project"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/labels.txt").write_text("a")
    (folder / "link.txt").symlink_to("deep/labels.txt")
    (tmp_path / "shortcut").symlink_to(folder)
    make_project(tmp_path)
    for where in (folder, tmp_path / "shortcut"):
        for asset in ("deep/labels.txt", "deep/../deep/labels.txt", "link.txt", str(folder / "deep/labels.txt")):
            manifest = load_manifest(project(where, LINEAR, assets=[asset]))
            (path,) = preflight.resolve_assets(manifest).values()
            assert path.read_text() == "a"
            assert resolve_entry(manifest).__name__ == "Net"
