"""A build of what was built before, into the place where it still lies: nothing but digests to compare.

After every build, what went into its bundle is remembered with where each file lies. While the files, the
versions and the machine are the same, and the bundle is there to the byte, there is nothing to be done,
and nothing is imported to find that out: not even what reads a manifest.
"""

from __future__ import annotations

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
from packager.hashing import sha256_file


def remember(
    cache: Cache,
    manifest: Path,
    folder_name: str,
    bundle: Action,
    files: Mapping[str, Path],
    names: Sequence[str],
) -> None:
    """Remember a build: `files` are the inputs of its action that are digests, with where they lie.

    `names` are modules that no file beside the manifest may shadow. Raises OSError where there is no room.
    """
    content = {
        "inputs": dict(bundle.inputs),
        "files": {name: str(path) for name, path in files.items()},
        "names": list(names),
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
        if any(_digest(cache, name, Path(path)) != inputs[name] for name, path in known["files"].items()):
            return False
    except (OSError, UserError):
        return False  # a file is gone, or cannot be read: the build will tell
    versions = {
        name: installed.version(name.partition(":")[2]) for name in inputs if name.startswith(("tool:", "package:"))
    }
    now = {**versions, **actions.machine(), **actions.python()}
    if any(inputs[name] != value for name, value in now.items()):
        return False
    return not any(
        os.path.exists(folder / f"{name}.py") or os.path.exists(folder / name / "__init__.py")
        for name in known["names"]
    )


def _digest(cache: Cache, name: str, path: Path) -> str:
    """A file's digest; a checkpoint may be several."""
    return digest(locate(path), cache.sha256) if name == "checkpoint" else cache.sha256(path)


def lock_of(manifest: Path) -> Path:
    """Where a manifest's lock stands: package.lock beside package.yaml."""
    return manifest.with_suffix(".lock")


def _digest_or_none(path: Path) -> str | None:
    return sha256_file(path) if path.exists() else None


def _key(manifest: Path) -> str:
    """The manifest, in this environment."""
    return "\n".join(("again", str(manifest.absolute()), sys.prefix, *sys.path))
