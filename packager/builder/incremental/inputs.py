"""What goes into a build, by digest and version, as far as it can be told without running the user's code.

What the code consists of is only known once it has run; so the last build's footprint is remembered, by
the content of the entry's file, and is the question that is asked of the files as they are now.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packager.builder.incremental import keys
from packager.checkpoint.locate import LocatedCheckpoint, digest_checkpoint
from packager.common.cache_store import Cache, CacheKey
from packager.model.code_dependencies import CodeDependencies
from packager.project import preflight
from packager.project.manifest import Project


@dataclass(frozen=True)
class BuildInputs:
    """The footprint of the code, and the inputs of a stage that runs it, by name."""

    dependencies: CodeDependencies
    module_inputs: Mapping[str, str]


def find_build_inputs(project: Project, located: LocatedCheckpoint, cache: Cache) -> BuildInputs | None:
    """What goes into a build of this project; None where its code was never run as it is now.

    Raises `CheckpointDigestWrong`.
    """
    record = cache.load_record(_code_key(project, cache)) or cache.load_record(_code_key_at_location(project, cache))
    if record is None:
        return None
    used = CodeDependencies(
        record["modules"],
        tuple(record["read_files"]),
        tuple(record["searched_folders"]),
        tuple(record["packages"]),
        bool(record["location_dependent"]),
    )
    try:
        checkpoint = digest_checkpoint(located, cache.file_digest)
    except OSError:
        return None
    preflight.check_checkpoint_digest(project, checkpoint)
    try:
        return BuildInputs(used, keys.collect_module_inputs(project, checkpoint, used, cache.file_digest))
    except OSError:
        return None  # some of it is gone: the build will tell


def load_last_inputs(project: Project, cache: Cache) -> Mapping[str, Mapping[str, str]]:
    """The inputs of each stage of the last build of this manifest; empty where there was none."""
    record = cache.load_record(_manifest_key(project))
    found: Mapping[str, Mapping[str, str]] = {} if record is None else record["actions"]
    return found


def remember_inputs(project: Project, cache: Cache, dependencies: CodeDependencies, keys: Sequence[CacheKey]) -> None:
    """Remember the footprint and the inputs of this build. Raises OSError where there is no room."""
    plain: dict[str, Any] = asdict(dependencies)
    cache.save_record(
        _code_key_at_location(project, cache) if dependencies.location_dependent else _code_key(project, cache), plain
    )
    cache.save_record(_manifest_key(project), {"actions": {one.stage: dict(one.inputs) for one in keys}})


def _manifest_key(project: Project) -> str:
    return f"manifest {project.path.absolute()}"


def _code_key(project: Project, cache: Cache) -> str:
    """The entry with the content of its file: two projects with the same entry do not forget each other."""
    model = project.manifest.model
    place = (model.entry or "").rpartition(":")[0]
    if model.entry is None:
        place = project.checkpoint_display_name if project.downloaded_checkpoint else str(project.checkpoint_path)
    path: Path = project.folder / place
    content = cache.file_digest(path) if place.endswith(".py") and path.is_file() else ""
    text = json.dumps([keys.digest_own_code(), model.entry or place, model.kwargs, content])
    return f"code {hashlib.sha256(text.encode()).hexdigest()}"


def _code_key_at_location(project: Project, cache: Cache) -> str:
    """The same, in this place: for code that reads what lies outside the manifest's folder."""
    return "\n".join((_code_key(project, cache), str(project.folder), os.getcwd(), *sys.path))
