"""A build of what was built before, into the place where it still lies: nothing but digests to compare.

After every build, what went into its bundle is remembered with where each file lies. While the files, the
versions and the machine are the same, and the bundle is there to the byte, there is nothing to be done,
and nothing is imported to find that out: not even what reads a manifest.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packager import actions, installed
from packager.bundle import restore
from packager.cache import Action, Cache, Entry
from packager.checkpoint.locate import digest, locate
from packager.errors import UserError
from packager.footprint import importable
from packager.hashing import sha256_file


def remember(
    cache: Cache,
    manifest: Path,
    folder_name: str,
    bundle: Action,
    files: Mapping[str, Path],
    folders: Sequence[str],
) -> None:
    """Remember a build: `files` are the inputs of its action that are digests, with where they lie.

    `folders` are those that modules were looked for in. Raises OSError where there is no room.
    """
    content = {
        "inputs": dict(bundle.inputs),
        "files": {name: str(path) for name, path in files.items()},
        "folders": list(folders),
        "folder_name": folder_name,
        "lock": _digest_or_none(lock_of(manifest)),
        "own": actions.own_times(),
    }
    cache.remember(_key(manifest), content)


def unchanged(cache: Cache, manifest: Path, out: Path) -> tuple[str, Entry] | None:
    """The name and the record of the bundle that a build would give, where it is in `out` already; else None.

    A lock must be as it was when it was last found to agree.
    """
    known = cache.recall(_key(manifest))
    if known is None or known["own"] != actions.own_times():
        return None
    inputs: Mapping[str, str] = known["inputs"]
    if _digest_or_none(lock_of(manifest)) != known["lock"]:
        return None
    if not _same(cache, manifest.absolute().parent, known, inputs):
        return None
    entry = cache.find(Action("bundle", inputs), files=False)
    name = str(known["folder_name"])
    if entry is None or not restore.is_there(out / name, entry.files, cache.sha256):
        return None
    return name, entry


def _same(cache: Cache, folder: Path, known: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    try:
        now = {
            **{name: _digest(cache, name, Path(path), inputs) for name, path in known["files"].items()},
            **{f"importable:{path}": importable(folder / path) for path in known["folders"]},
            **{name: installed.tool_version(_name(name)) for name in inputs if name.startswith("tool:")},
            **{name: installed.identity(_name(name), cache.sha256) for name in inputs if name.startswith("package:")},
            **actions.machine(),
            **actions.python(),
        }
    except (OSError, UserError):
        return False  # a file is gone, or cannot be read: the build will tell
    settings = {name for name in inputs if name.startswith("environment:")}
    return settings <= set(now) and all(inputs.get(name) == value for name, value in now.items())


def _name(key: str) -> str:
    return key.partition(":")[2]


def _digest(cache: Cache, name: str, path: Path, inputs: Mapping[str, str]) -> str:
    """A file's digest; a checkpoint may be several, or one of a run's."""
    if name != "checkpoint":
        return cache.sha256(path)
    weights = json.loads(inputs["checkpoint.weights"])
    return digest(locate(path, weights=weights, sha256=cache.sha256), cache.sha256)


def lock_of(manifest: Path) -> Path:
    """Where a manifest's lock stands: package.lock beside package.yaml, other.yml.lock beside other.yml."""
    return manifest.with_suffix(".lock") if manifest.suffix == ".yaml" else manifest.with_name(f"{manifest.name}.lock")


def _digest_or_none(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error.errno}"  # the build will tell


def _key(manifest: Path) -> str:
    """The manifest, in this environment."""
    return "\n".join(("again", str(manifest.absolute()), os.getcwd(), sys.prefix, *sys.path))
