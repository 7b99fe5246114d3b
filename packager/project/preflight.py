"""Check the files that a manifest names, before anything slow is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from packager.bundle import layout
from packager.bundle.names import describe_path_problem, describe_set_problem
from packager.checkpoint.locate import (
    HUGGINGFACE_CONFIG_FILE,
    LocatedCheckpoint,
    detect_serialized_module,
    locate_files,
)
from packager.checkpoint.remote import urls
from packager.common.progress import StageReporter
from packager.errors import (
    AssetNotFound,
    CheckpointDigestWrong,
    CheckpointNeedsCode,
    DataDoesNotFit,
    EntryNeeded,
    ManifestInvalid,
    Problem,
    did_you_mean,
)
from packager.project.manifest import Project

OUTSIDE_HINT = "copy the file into the manifest's folder, or move the manifest to a folder above both"
_FORBIDDEN_IN_PATHS = re.compile(r"[\0\n\r\\\\]")  # see packager.bundle.fingerprint


@contextmanager
def fetch_checkpoint(project: Project, stages: StageReporter) -> Iterator[Project]:
    """Yield the project with its checkpoint on this machine, which is downloaded if its path is a URL.

    Raises what `packager.checkpoint.remote.fetch.fetch_remote` raises.
    """
    checkpoint = project.manifest.checkpoint
    if not urls.is_url(checkpoint.path):
        yield project
        return
    from packager.checkpoint.remote import fetch

    where, pinned = project.field_location("checkpoint", "path"), project.field_location("checkpoint", "sha256")
    with fetch.fetch_remote(fetch.RemoteCheckpoint(checkpoint.path, checkpoint.sha256, where, pinned), stages) as path:
        yield replace(project, downloaded_checkpoint=path)


def check_project_files(project: Project) -> LocatedCheckpoint:
    """Check the checkpoint, the assets and `parity.data`; return the checkpoint's files, which a build locates once.

    Raises what `locate_checkpoint`, `resolve_assets` and `check_data_file` raise.
    """
    checkpoint = locate_checkpoint(project)
    resolve_assets(project)
    check_data_file(project)
    return checkpoint


def locate_checkpoint(project: Project) -> LocatedCheckpoint:
    """Locate the files of the checkpoint; if the manifest has no entry, check that they identify the module.

    Raises `CheckpointNotFound`, `CheckpointUnreadable`, `CheckpointNeedsCode` or `EntryNeeded`.
    """
    name = project.checkpoint_display_name
    where = project.field_location("checkpoint", "path")
    located = locate_files(project.checkpoint_path, name, where, project.manifest.checkpoint.weights)
    if project.manifest.model.entry is None and all(file.name != HUGGINGFACE_CONFIG_FILE for file in located.files):
        kind = detect_serialized_module(located)
        if kind is None:
            raise EntryNeeded(project.field_location("model"), name)
        if not project.manifest.checkpoint.trust_pickle:
            raise CheckpointNeedsCode(name, where, [f"the program in it ({kind})"])
    return located


def check_checkpoint_digest(project: Project, sha256: str) -> None:
    """Compare the checkpoint's digest with `checkpoint.sha256`, if it is set. Raises `CheckpointDigestWrong`."""
    expected = project.manifest.checkpoint.sha256
    if expected not in (None, sha256):
        where = project.field_location("checkpoint", "sha256")
        raise CheckpointDigestWrong(project.checkpoint_display_name, where, expected or "", sha256)


def resolve_assets(project: Project) -> dict[str, Path]:
    """Return the file of every asset by its path in the bundle's assets/. Raises `AssetNotFound`."""
    files: dict[str, Path] = {}
    for index, asset in enumerate(project.manifest.assets):
        where = project.field_location("assets", index)
        if _FORBIDDEN_IN_PATHS.search(asset):
            raise AssetNotFound(asset, where, "a path in a bundle cannot contain a line break, NUL or a backslash")
        path = project.folder / asset  # not resolved: a link may change its target before the build copies the file
        if not path.is_file():
            raise AssetNotFound(asset, where, f"there is no file {path}")
        if not os.access(path, os.R_OK):
            raise AssetNotFound(asset, where, f"cannot read {path}")
        outside_target = find_target_outside(project, path)
        if outside_target is not None:
            raise AssetNotFound(asset, where, describe_outside(outside_target), OUTSIDE_HINT)
        outside = Path(asset).is_absolute() or ".." in Path(asset).parts
        name = Path(asset).name if outside else Path(asset).as_posix()
        if name in files:
            raise AssetNotFound(asset, where, f"another asset is also named {name}")
        for other in files:
            if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
                raise AssetNotFound(asset, where, f"{name} and {other} conflict: a file cannot also be a folder")
        if problem := describe_path_problem(f"{layout.ASSETS}/{name}"):
            raise AssetNotFound(asset, where, problem)
        files[name] = path
    if problem := describe_set_problem(files):
        raise AssetNotFound(next(reversed(files)), project.field_location("assets"), problem)
    return files


def find_target_outside(project: Project, path: Path) -> Path | None:
    """Return the file that a path leads to, through links too, if it lies outside the manifest's folder, else None."""
    target = path.resolve()
    return None if target.is_relative_to(project.folder.resolve()) else target


def describe_outside(target: Path) -> str:
    """Return why a file cannot be used that `find_target_outside` returned."""
    return f"it leads to {target}, which lies outside the manifest's folder"


def check_data_file(project: Project) -> None:
    """Check that the file that `parity.data` names, if any, is there and readable. Raises `DataDoesNotFit`."""
    if project.manifest.parity.data is None:
        return
    path, where = project.folder / project.manifest.parity.data, project.field_location("parity", "data")
    if not path.is_file():
        hint = "name an .npz or .safetensors file with one array for each input"
        raise DataDoesNotFit(where, f"there is no file {path}", hint)
    if not os.access(path, os.R_OK):
        raise DataDoesNotFit(where, f"cannot read {path}")


def check_providers(project: Project, available: Sequence[str]) -> None:
    """Check that onnxruntime has every execution provider of the manifest. Raises `ManifestInvalid`.

    `available` has the names of all providers that onnxruntime has, installed or not.
    """
    suffix = "ExecutionProvider"
    problems = [
        Problem(
            f"onnxruntime has no provider {name!r}",
            project.field_location("target", "providers", index),
            did_you_mean(name.removesuffix(suffix) + suffix, available),
        )
        for index, name in enumerate(project.manifest.target.providers)
        if name not in available
    ]
    if problems:
        raise ManifestInvalid(str(project.path), problems)
