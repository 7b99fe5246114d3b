"""package.lock: the digests of a bundle's inputs and outputs, so that a release fails if any of them drifted.

`package build --lock` writes it beside the manifest, under the manifest's name. Every later build compares itself with
it and reports the differences; with `--locked`, a difference or a missing lockfile is an error.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from packager.builder.incremental import environment
from packager.builder.incremental.keys import FileHasher
from packager.builder.incremental.up_to_date import lockfile_path
from packager.bundle import layout
from packager.common import installed_distributions
from packager.common.strict_json import read_strict_json
from packager.errors import LockDrifted, LockInvalid, LockMissing, LockSchemaUnknown, LockUnwritable
from packager.project.manifest import Project

_MAX_VALUES = 30_000  # a line for each file of the code and of the bundle
_CODE_KINDS = ("code:", "read:")


class Lockfile(BaseModel):
    """The digests and versions of one build; `code` is by module name or path, `artifacts` by path in the bundle.

    `manifest` is None in a lockfile that was written before it had this field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    version: str
    manifest: str | None = None
    checkpoint: str
    code: dict[str, str]
    toolchain: dict[str, str]
    artifacts: dict[str, str]
    fingerprint: str


def make_lockfile(
    module_inputs: Mapping[str, str], config: Mapping[str, Any], digests: Mapping[str, str], fingerprint: str
) -> Lockfile:
    """Return the lockfile of a bundle, from its module's inputs, its config.json and its files' digests."""
    code = {name.partition(":")[2]: digest for name, digest in module_inputs.items() if name.startswith(_CODE_KINDS)}
    packages = {
        name.partition(":")[2]: identity.partition(" ")[0]
        for name, identity in module_inputs.items()
        if name.startswith("package:")
    }
    toolchain = {**packages, **config["source"]["toolchain"], "python": module_inputs["python"]}
    return Lockfile(
        name=str(config["name"]),
        version=str(config["version"]),
        manifest=str(config["source"]["manifest_sha256"]),
        checkpoint=module_inputs["checkpoint"],
        code={path: digest for path, digest in sorted(code.items()) if not Path(path).is_absolute()},
        toolchain=dict(sorted(toolchain.items())),
        artifacts={path: digest for path, digest in sorted(digests.items()) if not layout.is_machine_dependent(path)},
        fingerprint=fingerprint,
    )


def read_lockfile(path: Path) -> Lockfile | None:
    """Read a lockfile; None if there is none. Raises `LockInvalid` or `LockSchemaUnknown`."""
    try:
        content = read_strict_json(path, _MAX_VALUES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise LockInvalid(str(path), str(error)) from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > 1:
        raise LockSchemaUnknown(str(path), schema)
    try:
        return Lockfile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise LockInvalid(str(path), f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def write_lockfile(path: Path, lock: Lockfile) -> None:
    """Write a lockfile atomically. Raises `LockUnwritable`."""
    try:
        _write_atomically(path, json.dumps(lock.model_dump(by_alias=True), indent=2) + "\n")
    except OSError as error:
        raise LockUnwritable(str(path), str(error.strerror)) from None


def _write_atomically(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def list_differences(locked: Lockfile, present: Lockfile) -> list[str]:
    """Return a line for each difference, inputs before outputs."""
    fields = ["name", "version", *(["manifest"] if locked.manifest is not None else []), "checkpoint"]
    rows = [(name, getattr(locked, name), getattr(present, name)) for name in fields]
    for kind, before, after in (
        ("code", locked.code, present.code),
        ("toolchain", locked.toolchain, present.toolchain),
        ("artifact", locked.artifacts, present.artifacts),
    ):
        names = sorted({*before, *after})
        rows += [(f"{kind} {name}", before.get(name, "none"), after.get(name, "none")) for name in names]
    rows.append(("fingerprint", locked.fingerprint, present.fingerprint))
    return [f"{name}: {before or 'none'} → {after or 'none'}" for name, before, after in rows if before != after]


def check_inputs(manifest: Path, project: Project, checkpoint_sha256: str, sha256: FileHasher) -> None:
    """Compare a lockfile with the inputs that are known before the user's code has run. Raises `LockDrifted`.

    These are the manifest, the checkpoint, the versions of the toolchain, and the files of the code that the lockfile
    names and that lie where they would be imported from; the build compares the rest. Raises OSError, too.
    """
    path = lockfile_path(manifest)
    locked = read_lockfile(path)
    if locked is None:
        raise LockMissing(str(path))
    code = {name: _find_code_file(project, name) for name in locked.code}
    python = environment.collect_python_version()["python"]
    present = {
        "name": project.manifest.name,
        "version": project.manifest.version,
        "manifest": project.sha256,
        "checkpoint": checkpoint_sha256,
        "code": {**locked.code, **{name: sha256(file) for name, file in code.items() if file is not None}},
        "toolchain": {
            name: python if name == "python" else installed_distributions.tool_version(name)
            for name in locked.toolchain
        },
    }
    differences = list_differences(locked, locked.model_copy(update=present))
    if differences:
        raise LockDrifted(str(path), differences)


def _find_code_file(project: Project, name: str) -> Path | None:
    """Find the file of a module, or one that the code reads, by its name in a lockfile; None if it is not certain."""
    entry, module = (project.manifest.model.entry or "").rpartition(":")[0], name.replace(".", "/")
    paths = [entry] if entry.endswith(".py") and Path(entry).stem == name else []
    candidates = (project.folder / path for path in (*paths, name, f"{module}.py", f"{module}/__init__.py"))
    return next((path for path in candidates if path.is_file()), None)


def describe_pins(lock: Lockfile) -> str:
    """Return everything that a lockfile pins, in words."""
    counts = [
        _count(lock.code, "code file", "code files"),
        _count(lock.toolchain, "version of the toolchain", "versions of the toolchain"),
        _count(lock.artifacts, "artifact", "artifacts"),
    ]
    return f"the manifest, the checkpoint, {', '.join(counts)} and the fingerprint"


def _count(items: Mapping[str, str], singular: str, plural: str) -> str:
    return f"{len(items)} {singular if len(items) == 1 else plural}"


def check_lockfile_present(manifest: Path, *, required: bool) -> None:
    """Refuse a lockfile that is unreadable, or required and missing. Raises `LockInvalid` or `LockMissing`."""
    path = lockfile_path(manifest)
    if read_lockfile(path) is None and required:
        raise LockMissing(str(path))


def check_lockfile(path: Path, present: Lockfile, *, required: bool) -> list[str]:
    """Return the differences of a build from its lockfile; empty if there is no lockfile.

    Raises `LockMissing` or `LockDrifted` if the lockfile is required, and whatever `read_lockfile` raises.
    """
    locked = read_lockfile(path)
    if locked is None and required:
        raise LockMissing(str(path))
    differences = [] if locked is None else list_differences(locked, present)
    if differences and required:
        raise LockDrifted(str(path), differences)
    return differences
