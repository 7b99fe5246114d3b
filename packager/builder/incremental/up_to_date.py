"""A build of what was built before, into the place where it still lies: nothing but digests to compare.

After every build, what went into its bundle is remembered with where each file lies. While the files, the
versions and the machine are the same, and the bundle is there to the byte, there is nothing to be done,
and nothing is imported to find that out: not even what reads a manifest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from packager.builder.incremental import keys
from packager.bundle import restore
from packager.common.cache_store import Cache, CacheEntry, CacheKey
from packager.common.hashing import sha256_file
from packager.errors import UserError


def remember_build(cache: Cache, manifest: Path, folder_name: str, bundle: CacheKey, files: Mapping[str, Path]) -> None:
    """Remember a build: `files` are the inputs of its action that are digests, with where they lie.

    Raises OSError where there is no room.
    """
    content = {
        "inputs": dict(bundle.inputs),
        "files": {name: str(path) for name, path in files.items()},
        "folder_name": folder_name,
        "lock": _digest_lockfile(lockfile_path(manifest)),
        "own": keys.digest_own_mtimes(),
    }
    cache.save_record(_record_key(manifest), content)


def find_up_to_date(cache: Cache, manifest: Path, out: Path) -> tuple[str, CacheEntry] | None:
    """The name and the record of the bundle that a build would give, where it is in `out` already; else None.

    A lock must be as it was when it was last found to agree.
    """
    known = cache.load_record(_record_key(manifest))
    if known is None or known["own"] != keys.digest_own_mtimes():
        return None
    paths = {name: Path(path) for name, path in known["files"].items()}
    inputs = keys.RecordedInputs(known["inputs"], paths, manifest.absolute().parent)
    if _digest_lockfile(lockfile_path(manifest)) != known["lock"]:
        return None
    try:
        if not keys.unchanged(inputs, cache.file_digest):
            return None
    except (OSError, UserError):
        return None  # a file is gone, or cannot be read: the build will tell
    entry = cache.look_up(CacheKey("bundle", inputs.values), files=False)
    name = str(known["folder_name"])
    if entry is None or not restore.is_restored(out / name, entry.files, cache.file_digest):
        return None
    return name, entry


def lockfile_path(manifest: Path) -> Path:
    """Where a manifest's lock stands: package.lock beside package.yaml, other.yml.lock beside other.yml."""
    return manifest.with_suffix(".lock") if manifest.suffix == ".yaml" else manifest.with_name(f"{manifest.name}.lock")


def _digest_lockfile(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error.errno}"  # the build will tell


def _record_key(manifest: Path) -> str:
    """The manifest, in this environment."""
    return "\n".join(("again", str(manifest.absolute()), os.getcwd(), sys.prefix, *sys.path))
