"""The files that a manifest names: are they there? Asked before anything heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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

_FORBIDDEN_IN_PATHS = re.compile(r"[\0\n\r\\\\]")  # see packager.bundle.fingerprint


@contextmanager
def fetch_checkpoint(project: Project, stages: StageReporter) -> Iterator[Project]:
    """Yields the project with its checkpoint on this machine. Raises what `fetch.at_hand` does."""
    wanted = project.manifest.checkpoint
    if not urls.is_url(wanted.path):
        yield project
        return
    from packager.checkpoint.remote import fetch

    where, pinned = project.field_location("checkpoint", "path"), project.field_location("checkpoint", "sha256")
    with fetch.fetch_remote(fetch.RemoteCheckpoint(wanted.path, wanted.sha256, where, pinned), stages) as path:
        yield replace(project, downloaded_checkpoint=path)


def check_project_files(project: Project) -> LocatedCheckpoint:
    """Check the checkpoint, the assets and `parity.data`; returns the checkpoint's files, which a build locates once.

    Raises what `located`, `assets` and `data` raise.
    """
    checkpoint = locate_checkpoint(project)
    resolve_assets(project)
    check_data_file(project)
    return checkpoint


def locate_checkpoint(project: Project) -> LocatedCheckpoint:
    """The files of the checkpoint, which says what module it belongs to where the manifest does not.

    Raises `CheckpointNotFound`, `CheckpointUnreadable`, `CheckpointNeedsCode` or `EntryNeeded`.
    """
    named = project.checkpoint_display_name
    where = project.field_location("checkpoint", "path")
    found = locate_files(project.checkpoint_path, named, where, project.manifest.checkpoint.weights)
    if project.manifest.model.entry is None and all(file.name != HUGGINGFACE_CONFIG_FILE for file in found.files):
        holds = detect_serialized_module(found)
        if holds is None:
            raise EntryNeeded(project.field_location("model"), named)
        if not project.manifest.checkpoint.trust_pickle:
            raise CheckpointNeedsCode(named, where, [f"the program that it holds ({holds})"])
    return found


def check_checkpoint_digest(project: Project, sha256: str) -> None:
    """Hold the checkpoint's digest against the one the manifest asks for. Raises `CheckpointDigestWrong`."""
    wanted = project.manifest.checkpoint
    if wanted.sha256 not in (None, sha256):
        where = project.field_location("checkpoint", "sha256")
        raise CheckpointDigestWrong(project.checkpoint_display_name, where, wanted.sha256 or "", sha256)


def resolve_assets(project: Project) -> dict[str, Path]:
    """The assets' files by their path in the bundle's assets/. Raises `AssetNotFound`."""
    found: dict[str, Path] = {}
    for index, asset in enumerate(project.manifest.assets):
        where = project.field_location("assets", index)
        if _FORBIDDEN_IN_PATHS.search(asset):
            raise AssetNotFound(asset, where, "a path in a bundle has no line break, no NUL and no backslash")
        path = project.folder / asset  # and not where a link leads now
        if not path.is_file():
            raise AssetNotFound(asset, where, f"there is no file {path}")
        if not os.access(path, os.R_OK):
            raise AssetNotFound(asset, where, f"{path} cannot be read")
        outside = Path(asset).is_absolute() or ".." in Path(asset).parts
        name = Path(asset).name if outside else Path(asset).as_posix()
        if name in found:
            raise AssetNotFound(asset, where, f"another asset is called {name} too")
        for other in found:
            if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
                raise AssetNotFound(asset, where, f"{name} and {other}: one would be the folder of the other")
        found[name] = path
    return found


def check_data_file(project: Project) -> None:
    """Check the file of real inputs, where the manifest names one. Raises `DataDoesNotFit`."""
    if project.manifest.parity.data is None:
        return
    path, where = project.folder / project.manifest.parity.data, project.field_location("parity", "data")
    if not path.is_file():
        raise DataDoesNotFit(where, f"there is no file {path}", "an .npz or .safetensors file with an array per input")
    if not os.access(path, os.R_OK):
        raise DataDoesNotFit(where, f"{path} cannot be read")


def check_providers(project: Project, available: Sequence[str]) -> None:
    """Refuse execution providers that onnxruntime has never heard of. Raises `ManifestInvalid`."""
    kind = "ExecutionProvider"
    problems = [
        Problem(
            f"onnxruntime has no {name!r}",
            project.field_location("target", "providers", index),
            did_you_mean(name.removesuffix(kind) + kind, available),
        )
        for index, name in enumerate(project.manifest.target.providers)
        if name not in available
    ]
    if problems:
        raise ManifestInvalid(str(project.path), problems)
