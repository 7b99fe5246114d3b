"""The one way into a bundle that is compared: what it says of itself, and what its files are now.

The digests are those of the files as they lie there. Where they are not what SHA256SUMS lists the bundle is
damaged, which is told and does not end the comparison. Files are read only where they are regular files of
the bundle: what config.json names may be a pipe, or a link that leads out of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.bundle import layout
from packager.bundle.fingerprint import (
    SumsMalformed,
    check_integrity,
    compute_fingerprint,
    list_files,
    parse_sums,
    regular_file_digest,
)
from packager.errors import ModelUnreadable, NotABundle
from packager.runtime.loader import read_config


class RecordUnreadable(Exception):
    """A file of the evidence is not there, or not JSON."""


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle: `side` is A or B, `digests` those of the files now, empty for what is no regular file."""

    side: str
    folder: Path
    config: Mapping[str, Any]
    fingerprint: str
    digests: Mapping[str, str]
    damage: tuple[str, ...]

    def artifact(self, kind: str) -> dict[str, Any] | None:
        """What config.json says of the artifact `onnx` or `torchscript`."""
        found: dict[str, Any] | None = self.config["artifacts"][kind]
        return found

    def onnx_digests(self) -> dict[str, str | None]:
        """The digests of the ONNX model and of weights beside it; empty where there is no such artifact."""
        artifact = self.artifact("onnx")
        if artifact is None:
            return {}
        beside = artifact.get("data") or {"path": f"{artifact['path']}.data"}
        return {path: self.digests.get(path) for path in (artifact["path"], beside["path"])}

    def onnx_path(self) -> Path | None:
        """The ONNX model, if there is one. Raises `ModelUnreadable` where config.json names what is no file of it."""
        artifact = self.artifact("onnx")
        if artifact is None:
            return None
        path: str = artifact["path"]
        if not self.digests.get(path):
            raise ModelUnreadable(str(self.folder / path), f"{layout.CONFIG} names it, and there is no such file")
        return self.folder / path

    def read_record(self, name: str) -> object:
        """The content of a JSON file. Raises `RecordUnreadable`."""
        if not self.digests.get(name):
            raise RecordUnreadable(f"{self.side} has no {name}")
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RecordUnreadable(f"{name} of {self.side} cannot be read: {error}") from None


def open_bundle(path: Path, side: str) -> OpenedBundle:
    """Open a bundle's folder. Raises `NotABundle` or `BundleSchemaUnknown`."""
    config = read_config(path)
    _check_artifacts(path, config)
    try:
        return _read_bundle(path, side, config)
    except OSError as error:
        raise NotABundle(str(path), f"it cannot be read: {error}") from None


def _read_bundle(folder: Path, side: str, config: Mapping[str, Any]) -> OpenedBundle:
    try:
        text = (folder / layout.SUMS).read_bytes().decode()
        sums = parse_sums(text)
    except (UnicodeDecodeError, SumsMalformed) as error:
        digests = {path: regular_file_digest(folder / path) for path in list_files(folder)}
        return OpenedBundle(side, folder, config, "", digests, (f"{layout.SUMS}: {error}",))
    seal = compute_fingerprint(text)
    found = check_integrity(folder, sums)
    kept = {path: sha256 for path, sha256 in sums.items() if path not in found.missing}
    digests = {**kept, **{path: regular_file_digest(folder / path) for path in (*found.changed, *found.extra)}}
    damage = {"missing": list(found.missing), "not listed": list(found.extra), "changed on disk": list(found.changed)}
    written = folder / layout.FINGERPRINT
    if not written.exists():
        damage["missing"].append(layout.FINGERPRINT)
    elif regular_file_digest(written) != hashlib.sha256(f"{seal}\n".encode()).hexdigest():
        damage["changed on disk"].append(layout.FINGERPRINT)
    lines = tuple(f"{what}: {', '.join(paths)}" for what, paths in damage.items() if paths)
    return OpenedBundle(side, folder, config, seal, digests, lines)


def _check_artifacts(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config.json that is malformed where the comparison relies on it."""
    try:
        onnx, script = config["artifacts"]["onnx"], config["artifacts"]["torchscript"]
        parts = [one for one in (onnx, onnx and onnx.get("data"), script) if one is not None]
        whole = all(isinstance(one["path"], str) for one in parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise NotABundle(str(folder), f"{layout.CONFIG} is malformed: {type(error).__name__}: {error}") from None
    if not whole:
        raise NotABundle(str(folder), f"{layout.CONFIG} is malformed: an artifact without a path")
