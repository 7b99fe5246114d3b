"""The layout of an executable made of a bundle: where its parts are, and the trailer that says so.

    runner | zeros | onnxruntime's library | its notices | zeros | trailer | the bundle's archive, byte for byte

The library and the archive start at multiples of 65536, so that they can be mapped, and the notices right after the
library. The trailer is the 256 bytes before the archive. So the sizes of the parts determine where they are, and all
padding is zero: no byte of the file is free. The trailer is found from the end of the file, through the end record of
the ZIP. In little-endian:

       0  magic, 16 bytes: "torch-packager", 0, 1
      16  size of the runner, offset and size of the library, offset and size of the archive (u64 each)
      56  machine of the ELF header (u32): 62 is x86-64, 183 is arm64; then a zero (u32)
      64  SHA-256 of the runner, and of the library
     128  onnxruntime's version: ASCII, zeros up to 32 bytes
     160  offset and size of the notices (u64 each), and their SHA-256
     208  16 zeros
     224  SHA-256 of the 224 bytes before

runner/source/executable.cpp reads the same.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass

from packager.common.hashing import read_range

PAGE = 65536
MACHINES = {"linux-x64": 62, "linux-arm64": 183}
"""The machine in the ELF header by target: EM_X86_64 and EM_AARCH64."""

_TRAILER = struct.Struct("<16s5Q2L32s32s32s2Q32s16x")
_TRAILER_BYTES = _TRAILER.size + 32
_MAGIC = b"torch-packager\0\1"
_END = struct.Struct("<4s8xLL2x")  # of a ZIP: the size and the offset of its directory
_END64 = struct.Struct("<4s36xQQ")
_LOCATOR_BYTES = 20
_IN_ZIP64 = 0xFFFF_FFFF
_MAX_SIZE = 1 << 62


class TrailerMalformed(ValueError):
    """The trailer does not have its digest, or does not describe the file that it is in."""


@dataclass(frozen=True)
class Part:
    """A range of the file, and the SHA-256 of its bytes."""

    offset: int
    size: int
    sha256: bytes

    @property
    def end(self) -> int:
        """Return the first byte behind it."""
        return self.offset + self.size


@dataclass(frozen=True)
class Trailer:
    """What the trailer says: the parts of the file, the machine that it runs on, and the version of onnxruntime.

    The archive has no digest here, because its bundle has a fingerprint.
    """

    runner: Part
    library: Part
    notices: Part
    archive_offset: int
    archive_size: int
    machine: int
    onnxruntime: str

    @property
    def offset(self) -> int:
        """Return where the trailer is in the file."""
        return self.archive_offset - _TRAILER_BYTES

    @property
    def target(self) -> str:
        """Return the name of the target, such as linux-x64."""
        return next((name for name, machine in MACHINES.items() if machine == self.machine), f"machine {self.machine}")

    def encode(self) -> bytes:
        """Return the 256 bytes of the trailer."""
        content = _TRAILER.pack(
            _MAGIC, self.runner.size, self.library.offset, self.library.size, self.archive_offset, self.archive_size,
            self.machine, 0, self.runner.sha256, self.library.sha256, self.onnxruntime.encode("ascii"),
            self.notices.offset, self.notices.size, self.notices.sha256,
        )  # fmt: skip
        return content + hashlib.sha256(content).digest()


def place_library(runner_size: int) -> int:
    """Return the offset of the library."""
    return _round_up(runner_size)


def place_archive(notices_end: int) -> int:
    """Return the offset of the archive."""
    return _round_up(notices_end + _TRAILER_BYTES)


def read_trailer(descriptor: int) -> Trailer | None:
    """Read the trailer of an open file; None if it has none. Raises `TrailerMalformed` and OSError."""
    size = os.fstat(descriptor).st_size
    start = _find_archive(descriptor, size)
    if start is None or start < _TRAILER_BYTES:
        return None
    content = read_range(descriptor, start - _TRAILER_BYTES, _TRAILER_BYTES)
    if not content.startswith(_MAGIC):
        return None
    fields, digest = content[: _TRAILER.size], content[_TRAILER.size :]
    if hashlib.sha256(fields).digest() != digest:
        raise TrailerMalformed("its trailer was changed")
    trailer = _parse(fields)
    if trailer is None or trailer.encode() != content or not _describes(trailer, start, size):
        raise TrailerMalformed("its trailer does not describe this file")
    return trailer


def _parse(fields: bytes) -> Trailer | None:
    (
        _, runner_size, library_offset, library_size, archive_offset, archive_size, machine, _, runner_sha256,
        library_sha256, version, notices_offset, notices_size, notices_sha256,
    ) = _TRAILER.unpack(fields)  # fmt: skip
    try:
        onnxruntime = version.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        return None
    return Trailer(
        Part(0, runner_size, runner_sha256),
        Part(library_offset, library_size, library_sha256),
        Part(notices_offset, notices_size, notices_sha256),
        archive_offset,
        archive_size,
        machine,
        onnxruntime,
    )


def _describes(trailer: Trailer, archive_offset: int, size: int) -> bool:
    """Return whether the parts are where their sizes say, in a file of `size` bytes."""
    runner, library, notices = trailer.runner, trailer.library, trailer.notices
    return (
        max(runner.size, library.size, notices.size) < _MAX_SIZE
        and library.offset == place_library(runner.size)
        and notices.offset == library.end
        and trailer.archive_offset == place_archive(notices.end) == archive_offset
        and trailer.archive_size == size - archive_offset
        and "\0" not in trailer.onnxruntime
    )


def _find_archive(descriptor: int, size: int) -> int | None:
    """Return where the ZIP at the end of the file starts, by its end record; None if there is no end record."""
    end = _read(descriptor, size - _END.size, _END)
    if end is None or end[0] != b"PK\5\6":
        return None
    _, directory_size, directory_offset = end
    after = _END.size
    if directory_offset == _IN_ZIP64:
        after += _LOCATOR_BYTES + _END64.size
        end64 = _read(descriptor, size - after, _END64)
        if end64 is None or end64[0] != b"PK\6\6":
            return None
        _, directory_size, directory_offset = end64
    start = size - after - directory_size - directory_offset
    return start if start >= 0 else None


def _read(descriptor: int, offset: int, form: struct.Struct) -> tuple[bytes, int, int] | None:
    content = read_range(descriptor, offset, form.size) if offset >= 0 else b""
    return form.unpack(content) if len(content) == form.size else None


def _round_up(number: int) -> int:
    return -(-number // PAGE) * PAGE
