"""The bundle that is exported: its seal was checked, and everything that is read is held against it."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from packager.bundle import layout
from packager.bundle.archive import copy_file
from packager.bundle.files import BundleFiles, open_bundle
from packager.bundle.records import BuildRecord, ParityRecord
from packager.bundle.seal import MAX_RECORD_BYTES, check_intact
from packager.common.strict_json import parse_strict_json
from packager.errors import IntegrityFailed, NotABundle


@dataclass(frozen=True)
class FromBundle:
    """A file of an export that is copied from the bundle as it is; `path` is the path in the bundle."""

    path: str


Record = TypeVar("Record", BuildRecord, ParityRecord)
Files = Mapping[str, bytes | FromBundle]
"""The files of an export by their path in its folder."""


@dataclass(frozen=True)
class Deployment:
    """What a target writes. `notes` say what a user should know about it, one line each."""

    files: Files
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BundleSource:
    """A bundle whose seal is intact.

    `checked` holds the model and the evidence that were compared with the seal; `copies` reads the other files, whose
    digests are compared with `sums`, SHA-256 in hex by path, as they are read.
    """

    checked: BundleFiles
    copies: BundleFiles
    config: Mapping[str, Any]
    sums: Mapping[str, str]
    fingerprint: str

    @property
    def name(self) -> str:
        """Return the name of the bundle."""
        return str(self.config["name"])

    @property
    def version(self) -> str:
        """Return the version of the bundle."""
        return str(self.config["version"])

    @property
    def title(self) -> str:
        """Return the name of the bundle's folder, NAME-VERSION."""
        return layout.folder_name(self.name, self.version)

    def read(self, path: str) -> bytes:
        """Return the bytes of a small file, such as an asset. Raises `IntegrityFailed` if it was changed meanwhile."""
        content = self.copies.read(path, MAX_RECORD_BYTES)
        self.copies.release(path)
        self.copies.close_file(path)
        if hashlib.sha256(content).hexdigest() != self.sums[path]:
            raise IntegrityFailed(str(self.copies.path), f"{path} was changed while it was read")
        return content

    def copy(self, path: str, target: Path) -> str:
        """Copy a file, and return its SHA-256 in hex. Raises OSError, or `IntegrityFailed` if it was changed."""
        digest = copy_file(self.copies, path, target)
        self.copies.close_file(path)
        if digest != self.sums.get(path, digest):  # SHA256SUMS and FINGERPRINT have no digest
            raise IntegrityFailed(str(self.copies.path), f"{path} was changed while it was read")
        return digest

    def list_all(self, folder: str) -> dict[str, bytes | FromBundle]:
        """Return every file of the bundle by its path below `folder` of the export."""
        return {f"{folder}/{path}": FromBundle(path) for path in self.copies.paths}

    def list_onnx(self, folder: str) -> dict[str, bytes | FromBundle]:
        """Return model.onnx and its external weights by their paths in `folder` of the export.

        The weights keep their name, by which the model refers to them.
        """
        onnx = self.config["artifacts"]["onnx"]
        paths = {f"{folder}/{layout.ONNX}": onnx["path"]}
        if onnx.get("data"):
            paths[f"{folder}/{onnx['data']['path']}"] = onnx["data"]["path"]
        return {path: FromBundle(origin) for path, origin in paths.items()}

    def get_pin(self, tool: str) -> str:
        """Return the version of a tool that the bundle was built with as `TOOL==VERSION`, TOOL if it is unknown."""
        version = str(self.config["source"]["toolchain"].get(tool, "")).partition("+")[0]
        return f"{tool}=={version}" if re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) else tool

    def get_python(self) -> str:
        """Return the version of Python that the bundle was built with, such as 3.11. Raises `NotABundle`."""
        match = re.match(r"3\.[0-9]+", self._read_record(layout.BUILD, BuildRecord).python)
        if match is None:
            raise NotABundle(str(self.copies.path), f"{layout.BUILD} has no version of Python 3")
        return match[0]

    def get_parity(self) -> ParityRecord:
        """Return parity.json. Raises `NotABundle` if it is malformed."""
        return self._read_record(layout.PARITY, ParityRecord)

    def _read_record(self, path: str, kind: type[Record]) -> Record:
        try:
            return kind.model_validate(parse_strict_json(self.read(path)))
        except (ValueError, RecursionError):
            raise NotABundle(str(self.copies.path), f"{path} is malformed") from None


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[BundleSource]:
    """Open a bundle and check its seal. Raises what `check_intact` raises, and `NotABundle` for an unusable name."""
    with open_bundle(path) as checked, open_bundle(path) as copies:
        config, seal = check_intact(checked, models=True, evidence=True)
        for field, pattern in (("name", layout.NAME_PATTERN), ("version", layout.VERSION_PATTERN)):
            if not re.fullmatch(pattern, config[field]):  # it becomes part of paths and of programs
                raise NotABundle(str(path), f"{layout.CONFIG} has the {field} {config[field][:100]!r}")
        yield BundleSource(checked, copies, config, seal.sums, seal.fingerprint)
