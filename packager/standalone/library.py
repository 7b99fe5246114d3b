"""onnxruntime's library and notices, from its wheel: the one that is installed, or a file.

Both list their files with digests in RECORD, which whatever is taken must have. The version is that with which parity
was proven.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.executable_layout import MACHINES
from packager.common.installed_distributions import find_distribution
from packager.errors import LibraryUnavailable

_LIBRARY = re.compile(r"onnxruntime/capi/libonnxruntime\.so\.[0-9.]+")
_NOTICES = ("onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt")
_PLATFORMS = {"linux-x64": "manylinux_2_28_x86_64", "linux-arm64": "manylinux_2_28_aarch64"}
_MACHINE_BYTES = slice(18, 20)  # of an ELF header


@dataclass(frozen=True)
class Library:
    """onnxruntime's library, and the notices that must travel with it."""

    version: str
    content: bytes
    notices: bytes


@dataclass(frozen=True)
class _Source:
    """A wheel: the version, the digests of its RECORD by path, and how a file of it is read."""

    version: str
    digests: Mapping[str, bytes]
    read: Callable[[str], bytes]


def read_library(version: str, target: str, wheel: Path | None) -> Library:
    """Read the library of a version for a target, from a wheel's file or from what is installed.

    Raises `LibraryUnavailable` if that is a different version or for a different machine, or was changed.
    """
    refuse = functools.partial(LibraryUnavailable, version, target)
    fetch = describe_download(version, target)
    try:
        source = _open_installed() if wheel is None else _open_wheel(wheel)
        if source is None:
            raise refuse("onnxruntime is not installed", fetch)
        if source.version != version:
            place = "installed" if wheel is None else f"in {wheel}"
            raise refuse(f"parity was proven with {version}, and {source.version} is {place}", fetch)
        path = next(filter(_LIBRARY.fullmatch, source.digests), None)
        if path is None:
            raise refuse("its wheel lists no libonnxruntime.so", fetch)
        content = _read_checked(source, path)
        if int.from_bytes(content[_MACHINE_BYTES], "little") != MACHINES[target]:
            raise refuse("the one at hand is for a different machine", fetch)
        notices = "\n\n".join(_read_checked(source, name).decode().strip() for name in _NOTICES)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise refuse(f"its wheel cannot be read: {error}", fetch) from None
    title = f"onnxruntime {version}"
    return Library(version, content, f"\n{title}\n{'-' * len(title)}\n\n{notices}\n".encode())


def read_installed_digest(version: str, target: str) -> bytes | None:
    """Return the SHA-256 that RECORD of the installed onnxruntime lists for its library, which is not read.

    None if it is not installed, or as a different version, or for a different machine.
    """
    try:
        source = _open_installed()
        if source is None or source.version != version or _find_installed_machine() != MACHINES.get(target):
            return None
    except (OSError, ValueError):
        return None
    path = next(filter(_LIBRARY.fullmatch, source.digests), None)
    return None if path is None else source.digests[path]


def describe_download(version: str, target: str) -> str:
    """Return the hint that says how the wheel is fetched."""
    return (
        f"pip download --no-deps --only-binary=:all: --platform {_PLATFORMS[target]} onnxruntime=={version}, "
        "and pass the file with --onnxruntime-wheel"
    )


def _open_installed() -> _Source | None:
    distribution = find_distribution("onnxruntime")
    if distribution is None:
        return None
    version, folder = distribution
    record = (folder / "RECORD").read_text(encoding="utf-8")
    return _Source(version, _parse_record(record), lambda path: (folder.parent / path).read_bytes())


def _open_wheel(wheel: Path) -> _Source:
    with zipfile.ZipFile(wheel) as archive:
        records = [name for name in archive.namelist() if re.fullmatch(r"onnxruntime-[^/]+\.dist-info/RECORD", name)]
        if len(records) != 1:
            raise ValueError(f"{wheel} is not a wheel of onnxruntime")
        version = records[0].removeprefix("onnxruntime-").partition(".dist-info")[0]
        digests = _parse_record(archive.read(records[0]).decode())

    def read(path: str) -> bytes:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(path)

    return _Source(version, digests, read)


def _parse_record(text: str) -> dict[str, bytes]:
    """Return the SHA-256 of the files that RECORD lists with one, by path."""
    digests = {}
    for row in csv.reader(text.splitlines()):
        if len(row) == 3 and row[1].startswith("sha256="):
            digests[row[0]] = base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "=")
    return digests


def _read_checked(source: _Source, path: str) -> bytes:
    content = source.read(path)
    if hashlib.sha256(content).digest() != source.digests[path]:
        raise ValueError(f"{path} does not have the digest in RECORD")
    return content


def _find_installed_machine() -> int | None:
    distribution = find_distribution("onnxruntime")
    if distribution is None:
        return None
    library = next((distribution[1].parent / "onnxruntime/capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        return None
    with library.open("rb") as stream:
        return int.from_bytes(stream.read(_MACHINE_BYTES.stop)[_MACHINE_BYTES], "little")
