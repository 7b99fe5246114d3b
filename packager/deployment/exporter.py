"""Export a bundle: check its seal, ask the target for its files, and write them in one step.

An export has a record, packager-export.json, with the bundle's fingerprint and the SHA-256 of every file. It shows
that a folder is an earlier export, and whether anything was added or changed by hand; an untouched one is replaced. It
has no time and no path of this machine: the same bundle gives the same bytes with the same version of packager.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from packager.bundle.fingerprint import check_fingerprint_syntax, list_files, regular_file_digest
from packager.bundle.names import describe_set_problem
from packager.bundle.writer import stage_folder, translate_os_errors
from packager.common.strict_json import parse_strict_json
from packager.deployment.bentoml import write_bentoml
from packager.deployment.docker import write_docker
from packager.deployment.huggingface import write_huggingface
from packager.deployment.kserve import write_kserve
from packager.deployment.ray_serve import write_ray_serve
from packager.deployment.source import BundleSource, Deployment, Files, FromBundle, open_source
from packager.deployment.triton import write_triton
from packager.errors import DeploymentUnsupported, FingerprintWrong, OutputRefused, ProgramNotTrusted
from packager.runtime.trust import trusts_program

RECORD = "packager-export.json"
"""The name of the record in an export's folder."""

_KSERVE = "kserve"
_TARGETS: Mapping[str, Callable[[BundleSource], Deployment]] = {
    "triton": write_triton,
    "bentoml": write_bentoml,
    "ray-serve": write_ray_serve,
    "docker": write_docker,
    "huggingface": write_huggingface,
}
_CHOOSE_FOLDER, _MOVE_OR_FORCE = "choose another folder", "move it away, or use --force"


@dataclass(frozen=True)
class ExportResult:
    """The outcome of an export: the folder, the fingerprint, the paths of all files below the folder, and notes."""

    folder: str
    target: str
    fingerprint: str
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return the object that `package export --json` prints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def export_bundle(
    bundle: Path,
    target: str,
    folder: Path,
    *,
    force: bool = False,
    fingerprint: str | None = None,
    trust_program: bool = False,
    storage_uri: str | None = None,
    image: str | None = None,
) -> ExportResult:
    """Write the layout of `target` into `folder`, for the bundle in a folder or an archive.

    - `target`: triton, kserve, bentoml, ray-serve, docker or huggingface.
    - `folder`: it must not exist, or be an untouched earlier export, unless `force`.
    - `fingerprint`: the one that the bundle must have; None exports any bundle.
    - `trust_program`: export a bundle that has no ONNX model, but a program; so does `fingerprint`.
    - `storage_uri`, `image`: for kserve; they exclude each other.

    Raises `DeploymentUnsupported` if the target cannot take the bundle, `OutputRefused` if the folder cannot be
    written, `FingerprintMalformed`, `FingerprintWrong`, `ProgramNotTrusted`, and what `open_source` raises.
    """
    check_fingerprint_syntax(fingerprint)
    folder_path = Path(os.path.abspath(folder))  # noqa: PTH100 (`..` is removed, and links are kept)
    with open_source(bundle) as source:
        if fingerprint is not None and fingerprint != source.fingerprint:
            raise FingerprintWrong(str(bundle), fingerprint, source.fingerprint)
        _check_folder(bundle, folder_path, force=force)
        deployment = write_kserve(source, storage_uri, image) if target == _KSERVE else _TARGETS[target](source)
        trusted = trusts_program(fingerprint=fingerprint, signer=None, trust_program=trust_program)
        if source.config["artifacts"]["onnx"] is None and not trusted:
            program = source.config["artifacts"]["torchscript"] or source.config["artifacts"]["torch-export"]
            raise ProgramNotTrusted(str(bundle), program["path"], "the bundle has no ONNX model")
        if RECORD in deployment.files:
            raise DeploymentUnsupported(source.title, target, f"it has an asset with the name {RECORD}")
        if problem := describe_set_problem(sorted(deployment.files)):
            raise DeploymentUnsupported(source.title, target, problem)
        try:
            with translate_os_errors(folder_path), stage_folder(folder_path.parent, folder_path.name) as staging:
                _write_files(source, target, deployment.files, staging / "bundle")
        except OutputRefused as error:
            hint = str(error.hint).replace(" with -o", "")
            raise OutputRefused(str(folder), str(error.why), hint, what="the export") from error
    files = tuple(sorted([*deployment.files, RECORD], key=str.encode))
    return ExportResult(str(folder), target, source.fingerprint, files, deployment.notes)


def _check_folder(bundle: Path, folder: Path, *, force: bool) -> None:
    """Raise `OutputRefused` if the export would damage the bundle, or replace something other than an export."""
    resolved, origin = folder.resolve(), bundle.resolve()
    if resolved == origin or resolved in origin.parents or origin in resolved.parents:
        raise OutputRefused(str(folder), f"the bundle is at {bundle}", _CHOOSE_FOLDER, what="the export")
    if not os.path.lexists(folder) or force:
        return
    why = _find_foreign(folder)
    if why is not None:
        raise OutputRefused(str(folder), why, _MOVE_OR_FORCE, what="the export")


def _find_foreign(folder: Path) -> str | None:
    """Say what in an existing folder was not written by an export; None if nothing."""
    record = folder / RECORD
    if folder.is_symlink() or not folder.is_dir() or record.is_symlink() or not record.is_file():
        return "it exists and is not an export"
    try:
        digests = parse_strict_json(record.read_bytes())["files"]
        present = [path for path in list_files(folder) if path != RECORD]
        foreign = [path for path in present if digests.get(path) != regular_file_digest(folder / path)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"its {RECORD} cannot be read"
    return f"added or changed since the export: {', '.join(foreign)}" if foreign else None


def _write_files(source: BundleSource, target: str, files: Files, folder: Path) -> None:
    """Write the files of an export, and its record."""
    digests = {}
    for path in sorted(files, key=str.encode):
        content = files[path]
        if isinstance(content, FromBundle):
            digests[path] = source.copy(content.path, folder / path)
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        digests[path] = hashlib.sha256(content).hexdigest()
    record = {
        "schema": 1,
        "target": target,
        "name": source.name,
        "version": source.version,
        "fingerprint": source.fingerprint,
        "files": digests,
    }
    (folder / RECORD).write_bytes((json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
