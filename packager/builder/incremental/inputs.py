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
from packager.checkpoint.locate import LocatedCheckpoint, digest
from packager.common.cache_store import Action, Cache
from packager.model.code_dependencies import Footprint
from packager.project import preflight
from packager.project.manifest import Project


@dataclass(frozen=True)
class Identity:
    """The footprint of the code, and the inputs of a stage that runs it, by name."""

    used: Footprint
    source: Mapping[str, str]


def known(project: Project, located: LocatedCheckpoint, cache: Cache) -> Identity | None:
    """What goes into a build of this project; None where its code was never run as it is now.

    Raises `CheckpointDigestWrong`.
    """
    record = cache.recall(_code_key(project, cache)) or cache.recall(_code_key_at_location(project, cache))
    if record is None:
        return None
    used = Footprint(
        record["modules"],
        tuple(record["data"]),
        tuple(record["folders"]),
        tuple(record["packages"]),
        bool(record["placed"]),
    )
    try:
        checkpoint = digest(located, cache.sha256)
    except OSError:
        return None
    preflight.pin(project, checkpoint)
    try:
        return Identity(used, keys.source(project, checkpoint, used, cache.sha256))
    except OSError:
        return None  # some of it is gone: the build will tell


def last(project: Project, cache: Cache) -> Mapping[str, Mapping[str, str]]:
    """The inputs of each stage of the last build of this manifest; empty where there was none."""
    record = cache.recall(_manifest_key(project))
    found: Mapping[str, Mapping[str, str]] = {} if record is None else record["actions"]
    return found


def remember(project: Project, cache: Cache, used: Footprint, done: Sequence[Action]) -> None:
    """Remember the footprint and the inputs of this build. Raises OSError where there is no room."""
    plain: dict[str, Any] = asdict(used)
    cache.remember(_code_key_at_location(project, cache) if used.placed else _code_key(project, cache), plain)
    cache.remember(_manifest_key(project), {"actions": {one.stage: dict(one.inputs) for one in done}})


def _manifest_key(project: Project) -> str:
    return f"manifest {project.path.absolute()}"


def _code_key(project: Project, cache: Cache) -> str:
    """The entry with the content of its file: two projects with the same entry do not forget each other."""
    model = project.manifest.model
    place = (model.entry or "").rpartition(":")[0]
    if model.entry is None:
        place = project.checkpoint_shown if project.fetched else str(project.checkpoint)
    path: Path = project.folder / place
    content = cache.sha256(path) if place.endswith(".py") and path.is_file() else ""
    text = json.dumps([keys.own(), model.entry or place, model.kwargs, content])
    return f"code {hashlib.sha256(text.encode()).hexdigest()}"


def _code_key_at_location(project: Project, cache: Cache) -> str:
    """The same, in this place: for code that reads what lies outside the manifest's folder."""
    return "\n".join((_code_key(project, cache), str(project.folder), os.getcwd(), *sys.path))
