"""The layout of an executable made of a bundle: where its parts are, and the trailer that says so.

    runner | zeros | onnxruntime's library | its notices | digests of pieces | zeros | trailer | the bundle's archive

The library and the archive start at multiples of 65536, so that they can be mapped, the notices right after the
library, and the digests right after the notices. The trailer is the 256 bytes before the archive. So the sizes of the
parts determine where they are, and all padding is zero: no byte of the file is free. All bytes before the digests are
digested in pieces of one size, a multiple of 65536 of at most 16 MiB; the last piece is shorter. The digests of the
pieces are SHA-256, one after the other: the runner compares them on all cores. The trailer is found from the end of the
file, through the end record of the ZIP. In little-endian:

       0  magic, 16 bytes: "torch-packager", 0, 1
      16  sizes of the runner, the library, the notices, the archive, and a piece (u64 each)
      56  machine of the ELF header (u32): 62 is x86-64, 183 is arm64; then a zero (u32)
      64  SHA-256 of the runner, and of the library
     128  onnxruntime's version: ASCII, zeros up to 32 bytes
     160  SHA-256 of the notices, and of the digests of the pieces
     224  SHA-256 of the 224 bytes before

runner/source/executable.cpp reads the same.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from packager.common.hashing import read_range

PAGE = 65536
PIECE_BYTES = PAGE
"""The size of the pieces that are digested one by one; small, so that the cores finish at the same time."""
MACHINES = {"linux-x64": 62, "linux-arm64": 183}
"""The machine in the ELF header by target: EM_X86_64 and EM_AARCH64."""

_TRAILER = struct.Struct("<16s5Q2L32s32s32s32s32s")
_DIGEST_BYTES = 32
_TRAILER_BYTES = _TRAILER.size + _DIGEST_BYTES
_MAGIC = b"torch-packager\0\1"
_END = struct.Struct("<4s8xLL2x")  # of a ZIP: the size and the offset of its directory
_END64 = struct.Struct("<4s36xQQ")
_LOCATOR_BYTES = 20
_IN_ZIP64 = 0xFFFF_FFFF
_MAX_SIZE = 1 << 62
_MAX_PIECE_BYTES = 1 << 24


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
    digests: Part
    piece_bytes: int
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

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield offset and size of each piece, in the order of their digests."""
        for offset in range(0, self.digests.offset, self.piece_bytes):
            yield offset, min(self.piece_bytes, self.digests.offset - offset)

    def encode(self) -> bytes:
        """Return the 256 bytes of the trailer."""
        content = _TRAILER.pack(
            _MAGIC, self.runner.size, self.library.size, self.notices.size, self.archive_size, self.piece_bytes,
            self.machine, 0, self.runner.sha256, self.library.sha256, self.onnxruntime.encode("ascii"),
            self.notices.sha256, self.digests.sha256,
        )  # fmt: skip
        return content + hashlib.sha256(content).digest()


def build_front(
    runner: bytes, library: bytes, notices: bytes, *, archive_size: int, machine: int, onnxruntime: str,
    piece_bytes: int = PIECE_BYTES,
) -> bytes:  # fmt: skip
    """Return all that is before the archive: the parts, the digests of their pieces, and the trailer."""
    content = runner.ljust(_round_up(len(runner)), b"\0") + library + notices
    view = memoryview(content)
    pieces = [view[offset : offset + piece_bytes] for offset in range(0, len(content), piece_bytes)]
    digests = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    parts = (runner, library, notices, digests)
    trailer = _lay_out(
        [len(part) for part in parts], [hashlib.sha256(part).digest() for part in parts], piece_bytes=piece_bytes,
        archive_size=archive_size, machine=machine, onnxruntime=onnxruntime,
    )  # fmt: skip
    return (content + digests).ljust(trailer.offset, b"\0") + trailer.encode()


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
    if trailer is None or trailer.encode() != content or trailer.archive_offset != start or (
        trailer.archive_size != size - start
    ):  # fmt: skip
        raise TrailerMalformed("its trailer does not describe this file")
    return trailer


def _parse(fields: bytes) -> Trailer | None:
    """Return what the fields say; None if they cannot be right, wherever they are."""
    (
        _, runner_size, library_size, notices_size, archive_size, piece_bytes, machine, _, runner_sha256,
        library_sha256, version, notices_sha256, digests_sha256,
    ) = _TRAILER.unpack(fields)  # fmt: skip
    try:
        onnxruntime = version.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        return None
    if (
        "\0" in onnxruntime
        or max(runner_size, library_size, notices_size) >= _MAX_SIZE
        or piece_bytes not in range(PAGE, _MAX_PIECE_BYTES + 1, PAGE)
    ):
        return None
    pieces_end = _round_up(runner_size) + library_size + notices_size
    digests_size = -(-pieces_end // piece_bytes) * _DIGEST_BYTES
    return _lay_out(
        [runner_size, library_size, notices_size, digests_size],
        [runner_sha256, library_sha256, notices_sha256, digests_sha256],
        piece_bytes=piece_bytes, archive_size=archive_size, machine=machine, onnxruntime=onnxruntime,
    )  # fmt: skip


def _lay_out(
    sizes: list[int], digests: list[bytes], *, piece_bytes: int, archive_size: int, machine: int, onnxruntime: str
) -> Trailer:
    """Place the runner, the library, the notices and the digests, of which these are sizes and SHA-256."""
    runner = Part(0, sizes[0], digests[0])
    library = Part(_round_up(runner.end), sizes[1], digests[1])
    notices = Part(library.end, sizes[2], digests[2])
    pieces = Part(notices.end, sizes[3], digests[3])
    return Trailer(
        runner, library, notices, pieces, piece_bytes, _round_up(pieces.end + _TRAILER_BYTES), archive_size, machine,
        onnxruntime,
    )  # fmt: skip


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
