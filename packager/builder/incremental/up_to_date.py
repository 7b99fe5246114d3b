"""The check whether a build has anything to do: the inputs of the last one, evaluated again, and the bundle in place.

After every build, the inputs of its bundle's key are recorded with the paths of their files. While all of them are the
same and the bundle is in place to the byte, there is nothing to do, and nothing heavy is imported to find that out: not
even what reads a manifest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.builder.incremental import keys
from packager.builder.incremental.bundle_entry import CheckedBundle, check_bundle_entry
from packager.builder.incremental.environment import collect_machine, collect_python_version, digest_own_mtimes
from packager.builder.incremental.keys import FileHasher
from packager.builder.incremental.store import CacheKey, look_up
from packager.bundle import layout
from packager.bundle.restore import is_restored
from packager.checkpoint.locate import digest_checkpoint, locate_files
from packager.common import installed_distributions
from packager.common.cache import Cache
from packager.common.hashing import sha256_file
from packager.errors import UserError
from packager.model.code_dependencies import list_importable

_FILE_KINDS = ("code", "read", "asset", "parity.data", "manifest")
_ENVIRONMENT_KINDS = ("python", "machine", "cores", "environment")


@dataclass(frozen=True)
class RecordedInputs:
    """The inputs of a bundle's key by name, as they were when it was built.

    `files` are the paths of the inputs that are digests of files; `folder` is the manifest's, absolute. The kind of an
    input is the part of its name before the colon.
    """

    values: Mapping[str, str]
    files: Mapping[str, Path]
    folder: Path


def remember_build(cache: Cache, manifest: Path, name: str, bundle_key: CacheKey, files: Mapping[str, Path]) -> None:
    """Record a finished build; `files` are the paths of the key's inputs that are digests. Raises OSError."""
    content = {
        "inputs": dict(bundle_key.inputs),
        "files": {name: str(path) for name, path in files.items()},
        "folder_name": name,
        "lock": _digest_if_present(lockfile_path(manifest)),
        "own": digest_own_mtimes(),
    }
    cache.save_record(_record_key(manifest), content)


@dataclass(frozen=True)
class BundleInPlace:
    """A bundle that a build would make again: its folder name, what it is, and the rows of the closing table."""

    name: str
    bundle: CheckedBundle
    summary: Mapping[str, str]


def find_up_to_date(cache: Cache, manifest: Path, out: Path) -> BundleInPlace | None:
    """Return the bundle that lies in `out` and that a build would make again.

    None if anything has changed, or is unknown. The lockfile must be the one that last agreed with the build.
    """
    record = cache.load_record(_record_key(manifest))
    if record is None or record["own"] != digest_own_mtimes():
        return None
    if _digest_if_present(lockfile_path(manifest)) != record["lock"]:
        return None
    paths = {name: Path(path) for name, path in record["files"].items()}
    inputs = RecordedInputs(record["inputs"], paths, manifest.absolute().parent)
    try:
        if not are_unchanged(inputs, cache.file_digest):
            return None
    except (OSError, UserError):
        return None  # a file is gone or unreadable: the build will report it
    key, name = CacheKey("bundle", inputs.values), str(record["folder_name"])
    entry = look_up(cache, key, files=False)
    if entry is None or not is_restored(out / name, entry.files, cache.file_digest):
        return None
    bundle = check_bundle_entry(key, entry, out / name / layout.CONFIG)
    return None if bundle is None else BundleInPlace(name, bundle, entry.record["summary"])


def are_unchanged(recorded: RecordedInputs, sha256: FileHasher) -> bool:
    """Return whether every input still has its value, and no template or CPU setting has been added.

    An input of an unknown kind counts as changed. The caller compares packager's own code. Raises OSError and
    `UserError` for an input that cannot be read.
    """
    present = {name: _evaluate(name, recorded, sha256) for name in recorded.values}
    templates = {name: sha256(path) for name, path in keys.list_templates().items()}
    return {**present, **templates, **collect_machine()} == dict(recorded.values)


def _evaluate(name: str, recorded: RecordedInputs, sha256: FileHasher) -> str | None:
    """Return the present value of an input; None if its kind is unknown."""
    kind, _, subject = name.partition(":")
    if kind in _FILE_KINDS:
        return sha256(recorded.files[name]) if name in recorded.files else None
    if name == "checkpoint":
        return _evaluate_checkpoint(recorded, sha256)
    if kind == "importable":
        return list_importable(recorded.folder / subject)
    if kind == "package":
        return installed_distributions.distribution_identity(subject, sha256)
    if kind == "tool":
        return installed_distributions.tool_version(subject)
    if kind in _ENVIRONMENT_KINDS:
        return {**collect_python_version(), **collect_machine()}.get(name)
    follows = name == "packager" or _is_manifest_field(name, recorded.values)
    return recorded.values[name] if follows else None


def _evaluate_checkpoint(recorded: RecordedInputs, sha256: FileHasher) -> str | None:
    """Return the digest of the checkpoint's files, or the pin of one that only a server has."""
    fields = json.loads(recorded.values.get("manifest.checkpoint", "{}"))
    path = recorded.files.get("checkpoint")
    if path is None:
        pin: str | None = fields.get("sha256")
        return pin
    return digest_checkpoint(locate_files(path, weights=fields.get("weights", "auto"), sha256=sha256), sha256)


def _is_manifest_field(name: str, values: Mapping[str, str]) -> bool:
    """Return whether an input is a field of the manifest, which cannot change while the manifest's digest does not."""
    section, _, field = name.partition(".")
    fields = json.loads(values.get(f"manifest.{section}", "null"))
    return "manifest" in values and (section == "manifest" or (isinstance(fields, dict) and field in fields))


def lockfile_path(manifest: Path) -> Path:
    """Return the path of a manifest's lockfile: package.lock beside package.yaml, other.yml.lock beside other.yml."""
    return manifest.with_suffix(".lock") if manifest.suffix == ".yaml" else manifest.with_name(f"{manifest.name}.lock")


def _digest_if_present(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error.errno}"  # the build will report it


def _record_key(manifest: Path) -> str:
    """Name a manifest together with the environment that its code is imported in."""
    return "\n".join(("again", str(manifest.absolute()), str(Path.cwd()), sys.prefix, *sys.path))
