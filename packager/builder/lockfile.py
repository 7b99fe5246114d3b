"""package.lock: what a bundle was made of and what came out, so that a release fails where anything drifted.

It stands beside the manifest, under its name, and is written by `package build --lock`. Every later build
compares itself with it and says what differs; with `--locked` a difference, or no lock, is refused.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from packager.builder.incremental.up_to_date import lockfile_path
from packager.bundle import layout
from packager.errors import LockDrifted, LockInvalid, LockMissing, LockSchemaUnknown, LockUnwritable


class Lockfile(BaseModel):
    """The digests and versions of one build; `code` is by module name or path, `artifacts` by path in the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    version: str
    checkpoint: str
    code: dict[str, str]
    toolchain: dict[str, str]
    artifacts: dict[str, str]
    fingerprint: str


def make_lockfile(
    source: Mapping[str, str], config: Mapping[str, object], sums: Mapping[str, str], fingerprint: str
) -> Lockfile:
    """The lock of a finished bundle: the inputs of its source, its config.json, the digests of its files."""
    toolchain: dict[str, str] = {**dict(config["source"]["toolchain"])}  # type: ignore[index]  # config.json is JSON
    toolchain["python"] = source["python"]
    versions = {name.partition(":")[2]: one for name, one in source.items() if name.startswith("package:")}
    packages = {name: one.partition(" ")[0] for name, one in versions.items()}
    return Lockfile(
        name=str(config["name"]),
        version=str(config["version"]),
        checkpoint=source["checkpoint"],
        code={
            name.partition(":")[2]: one
            for name, one in sorted(source.items())
            if name.startswith(("code:", "read:")) and not os.path.isabs(name.partition(":")[2])
        },
        toolchain=dict(sorted({**packages, **toolchain}.items())),
        artifacts={path: sha256 for path, sha256 in sorted(sums.items()) if not layout.is_machine_dependent(path)},
        fingerprint=fingerprint,
    )


def read_lockfile(path: Path) -> Lockfile | None:
    """The lock, or None where there is none. Raises `LockInvalid` or `LockSchemaUnknown`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise LockInvalid(str(path), str(error)) from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if isinstance(schema, int) and schema > 1:
        raise LockSchemaUnknown(str(path), schema)
    try:
        return Lockfile.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise LockInvalid(str(path), f"{'.'.join(str(one) for one in first['loc'])}: {first['msg']}") from None


def write_lockfile(path: Path, lock: Lockfile) -> None:
    """Write the lock in one step. Raises `LockUnwritable`."""
    try:
        _write_atomically(path, json.dumps(lock.model_dump(by_alias=True), indent=2) + "\n")
    except OSError as error:
        raise LockUnwritable(str(path), str(error.strerror)) from None


def _write_atomically(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def list_differences(locked: Lockfile, now: Lockfile) -> list[str]:
    """What differs, in words, what goes in before what comes out."""
    found = [
        f"{name}: {before} → {after}"
        for name, before, after in (
            ("name", locked.name, now.name),
            ("version", locked.version, now.version),
            ("checkpoint", locked.checkpoint, now.checkpoint),
        )
        if before != after
    ]
    for kind, before, after in (
        ("code", locked.code, now.code),
        ("toolchain", locked.toolchain, now.toolchain),
        ("artifact", locked.artifacts, now.artifacts),
    ):
        found += [
            f"{kind} {name}: {before.get(name, 'none')} → {after.get(name, 'none')}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    if locked.fingerprint != now.fingerprint:
        found.append(f"fingerprint: {locked.fingerprint} → {now.fingerprint}")
    return found


def check_lockfile_present(manifest: Path, *, required: bool) -> None:
    """Before any work: refuse a lock that cannot be read, and one that is required and is not there."""
    path = lockfile_path(manifest)
    if read_lockfile(path) is None and required:
        raise LockMissing(str(path))


def check_lockfile(path: Path, now: Lockfile, *, required: bool) -> list[str]:
    """What differs from the lock; nothing where there is none, unless it is required.

    Raises `LockMissing`, `LockDrifted` where it is required and differs, and what `read` raises.
    """
    locked = read_lockfile(path)
    if locked is None and required:
        raise LockMissing(str(path))
    differences = [] if locked is None else list_differences(locked, now)
    if differences and required:
        raise LockDrifted(str(path), differences)
    return differences
