"""Open a bundle for a comparison: its config.json, and the digests of its files as they are now.

If the digests differ from SHA256SUMS, the bundle is damaged; the damage is reported and the comparison goes on.
Only regular files of the bundle are read: config.json may name a pipe, or a link that leads out of the bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.bundle import layout
from packager.bundle.config import read_config
from packager.bundle.files import open_bundle as open_files
from packager.bundle.fingerprint import SumsMalformed, check_integrity, list_files, read_sums, regular_file_digest
from packager.common.strict_json import read_strict_json
from packager.errors import ModelUnreadable, NotABundle


class RecordUnreadable(Exception):
    """A file of the evidence is missing, or is not JSON."""


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle to compare.

    `side` is A or B; `digests` are SHA-256 in hex by path, computed from the files, "" for anything but a regular
    file; `damage` lists in lines how the files differ from SHA256SUMS.
    """

    side: str
    folder: Path
    config: Mapping[str, Any]
    fingerprint: str
    digests: Mapping[str, str]
    damage: tuple[str, ...]

    def artifact(self, kind: str) -> dict[str, Any] | None:
        """Return the entry of config.json for the artifact `onnx`, `torchscript` or `torch-export`, or None."""
        artifact: dict[str, Any] | None = self.config["artifacts"].get(kind)
        return artifact

    def onnx_digests(self) -> dict[str, str | None]:
        """Return the digests by path of the ONNX model and of its external weights; empty without an ONNX model."""
        artifact = self.artifact("onnx")
        if artifact is None:
            return {}
        data = artifact.get("data") or {"path": f"{artifact['path']}_data"}
        return {path: self.digests.get(path) for path in (artifact["path"], data["path"])}

    def onnx_path(self) -> Path | None:
        """Return the path of the ONNX model, or None. Raises `ModelUnreadable` if it is not a file of the bundle."""
        artifact = self.artifact("onnx")
        if artifact is None:
            return None
        path: str = artifact["path"]
        if not self.digests.get(path):
            raise ModelUnreadable(str(self.folder / path), f"{layout.CONFIG} names it, and the file does not exist")
        return self.folder / path

    def read_record(self, name: str) -> object:
        """Read a JSON file of the evidence. Raises `RecordUnreadable`."""
        if not self.digests.get(name):
            raise RecordUnreadable(f"{self.side} has no {name}")
        try:
            record: object = read_strict_json(self.folder / name)
            return record
        except (OSError, ValueError, RecursionError) as error:
            raise RecordUnreadable(f"{name} of {self.side} cannot be read: {error}") from None


def open_bundle(path: Path, side: str) -> OpenedBundle:
    """Open the bundle in the folder `path`. Raises what `read_config` raises."""
    with open_files(path) as files:
        config = read_config(files)
    try:
        return _read_bundle(path, side, config)
    except OSError as error:
        raise NotABundle(str(path), f"it cannot be read: {error}") from None


def _read_bundle(folder: Path, side: str, config: Mapping[str, Any]) -> OpenedBundle:
    try:
        fingerprint, sums = read_sums(folder)
    except SumsMalformed as error:
        digests = {path: regular_file_digest(folder / path) for path in list_files(folder)}
        return OpenedBundle(side, folder, config, "", digests, (f"{layout.SUMS}: {error}",))
    integrity = check_integrity(folder, sums)
    digests = {path: sha256 for path, sha256 in sums.items() if path not in integrity.missing}
    digests.update({path: regular_file_digest(folder / path) for path in (*integrity.changed, *integrity.extra)})
    missing, changed = list(integrity.missing), list(integrity.changed)
    seal = folder / layout.FINGERPRINT
    if not seal.exists():
        missing.append(layout.FINGERPRINT)
    elif regular_file_digest(seal) != hashlib.sha256(f"{fingerprint}\n".encode()).hexdigest():
        changed.append(layout.FINGERPRINT)
    damage = {"missing": missing, "not listed": integrity.extra, "changed on disk": changed}
    lines = tuple(f"{title}: {', '.join(paths)}" for title, paths in damage.items() if paths)
    return OpenedBundle(side, folder, config, fingerprint, digests, lines)
