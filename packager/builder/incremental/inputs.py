"""The inputs of a build by digest and version, as far as they can be known without running the user's code.

Which files the code consists of is known only after it has run. So the dependencies of the last build are remembered
under the content of the entry's file, and the next build asks whether those files are still the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packager.builder.incremental import environment, keys
from packager.builder.incremental.store import CacheKey
from packager.checkpoint.locate import FileVersion, LocatedCheckpoint, digest_checkpoint
from packager.common.cache import Cache
from packager.errors import InputChanged
from packager.model.code_dependencies import CodeDependencies
from packager.project import preflight
from packager.project.manifest import Project


@dataclass(frozen=True)
class BuildInputs:
    """The dependencies of the user's code, and the inputs by name of every stage that runs it."""

    dependencies: CodeDependencies
    module_inputs: Mapping[str, str]


def find_build_inputs(project: Project, checkpoint: LocatedCheckpoint, cache: Cache) -> BuildInputs | None:
    """Return the inputs of a build; None if the code has never run as it is now.

    Raises `CheckpointDigestWrong`.
    """
    record = cache.load_record(_code_key(project, cache)) or cache.load_record(_code_key_at_location(project, cache))
    if record is None:
        return None
    dependencies = CodeDependencies(
        record["modules"],
        tuple(record["read_files"]),
        tuple(record["searched_folders"]),
        tuple(record["packages"]),
        bool(record["location_dependent"]),
    )
    try:
        digest = digest_checkpoint(checkpoint, cache.file_digest)
    except OSError:
        return None
    preflight.check_checkpoint_digest(project, digest)
    try:
        return BuildInputs(dependencies, keys.collect_module_inputs(project, digest, dependencies, cache.file_digest))
    except OSError:
        return None  # a file of the code is gone: the build will report it


def load_last_inputs(project: Project, cache: Cache) -> Mapping[str, Mapping[str, str]]:
    """Return the inputs of each stage in the last build of this manifest; empty if there was none."""
    record = cache.load_record(_manifest_key(project))
    inputs: Mapping[str, Mapping[str, str]] = {} if record is None else record["actions"]
    return inputs


def remember_inputs(
    project: Project, cache: Cache, dependencies: CodeDependencies, cache_keys: Sequence[CacheKey]
) -> None:
    """Remember the dependencies and the stages' inputs of this build. Raises OSError."""
    code_key = _code_key_at_location if dependencies.location_dependent else _code_key
    cache.save_record(code_key(project, cache), asdict(dependencies))
    cache.save_record(_manifest_key(project), {"actions": {key.stage: dict(key.inputs) for key in cache_keys}})


def get_file_versions(project: Project) -> dict[str, FileVersion]:
    """Return the versions of the assets and of `parity.data`, by the path in the manifest. Raises OSError."""
    manifest = project.manifest
    data = [manifest.parity.data] if manifest.parity.data is not None else []
    return {name: FileVersion.of(project.folder / name) for name in (*manifest.assets, *data)}


def check_unchanged(project: Project, checkpoint: LocatedCheckpoint, versions: Mapping[str, FileVersion]) -> None:
    """Refuse a build during which the checkpoint, an asset or the data changed. Raises `InputChanged`."""
    if checkpoint.changed():
        raise InputChanged(project.checkpoint_display_name)
    try:
        present = get_file_versions(project)
    except OSError:
        raise InputChanged("a file that the manifest names") from None
    for name, version in versions.items():
        if not version.same_file(present[name]):
            raise InputChanged(name)


def _manifest_key(project: Project) -> str:
    return f"manifest {project.path.absolute()}"


def _code_key(project: Project, cache: Cache) -> str:
    """Name the entry together with its file's content, so that projects with the same entry name stay apart."""
    model = project.manifest.model
    path = (model.entry or "").rpartition(":")[0]
    if model.entry is None:
        path = project.checkpoint_display_name if project.downloaded_checkpoint else str(project.checkpoint_path)
    file: Path = project.folder / path
    content = cache.file_digest(file) if path.endswith(".py") and file.is_file() else ""
    text = json.dumps([environment.digest_own_code(), model.entry or path, model.kwargs, content])
    return f"code {hashlib.sha256(text.encode()).hexdigest()}"


def _code_key_at_location(project: Project, cache: Cache) -> str:
    """Name it together with its location, for code that reads files outside the manifest's folder."""
    return "\n".join((_code_key(project, cache), str(project.folder), str(Path.cwd()), *sys.path))
