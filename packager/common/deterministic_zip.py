"""Write and read ZIP archives in which the names and contents of the files determine every byte.

Entries are stored, never compressed. Every content starts at a multiple of 64 bytes, so that tensors can be
memory-mapped in place; the padding before it is an extra field `FB`, as in torch's archives. Everything else in a
header is fixed: 1980-01-01, made on Unix, mode 0644, no comment, no data descriptor. ZIP64 fields are used only
for sizes, offsets and counts that need them. The format is defined by PKWARE's APPNOTE.TXT; the section numbers
below refer to it.

A header is therefore a function of name, size, CRC and offset. `write_zip` writes it. `index_zip` takes those four
values from the file, builds the header from them and compares, and does the same with the central directory: an
archive that differs in one byte outside of the contents from what `write_zip` writes is rejected. `read_zip` checks
the contents too, against their CRC.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO

from packager.common.hashing import CHUNK_BYTES

ALIGNMENT = 64
ZIP64_SIZE_LIMIT = 0xFFFF_FFFF
"""Sizes and offsets from here on need ZIP64 fields, as do entry counts from `ZIP64_COUNT_LIMIT` on."""
ZIP64_COUNT_LIMIT = 0xFFFF

MAX_ENTRIES = 1_000_000
"""How many entries an archive may have."""

_HEADER = struct.Struct("<4s5H3L2H")  # 4.3.7
_RECORD = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR64 = struct.Struct("<4sLQL")  # 4.3.15
_END = struct.Struct("<4s4H2LH")  # 4.3.16
_IN_ZIP64, _COUNT_IN_ZIP64 = 0xFFFF_FFFF, 0xFFFF  # a placeholder: the number is in the ZIP64 field

_PLAIN, _ZIP64 = 20, 45  # the version of the format that a reader needs, 4.4.3
_MADE_BY = 3 << 8 | _ZIP64  # Unix
_MODE = 0o100644 << 16  # a regular file
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1, 1 << 3, 1 << 11  # flags, 4.4.4
_STORED = 0
_TIME, _DATE = 0, 1 << 5 | 1  # 1980-01-01, the earliest possible date


class ZipMalformed(ValueError):
    """The bytes are not an archive in this format, or the files cannot be written as one."""


class ZipEntryDamaged(ZipMalformed):
    """The content of an entry does not match its CRC."""


@dataclass(frozen=True)
class ZipEntry:
    """One entry: its name in UTF-8, the size and CRC-32 of its content, and the byte where its header starts."""

    name: bytes
    size: int
    crc: int
    offset: int

    @property
    def content_offset(self) -> int:
        """Return the byte of the archive where the content starts."""
        return self.offset + len(_build_header(self))


def write_zip(stream: IO[bytes], files: Iterable[tuple[str, int, Iterable[bytes]]]) -> None:
    """Write an archive to an empty stream. `files` are the name, size in bytes and content in chunks of each file.

    The files must be sorted by the UTF-8 bytes of their names. Raises `ZipMalformed` if a content does not have
    the given size.
    """
    entries = []
    for name, size, chunks in files:
        entry = ZipEntry(name.encode(), size, 0, stream.tell())
        stream.write(_build_header(entry))
        crc = written = 0
        for chunk in chunks:
            crc = zlib.crc32(chunk, crc)
            written += stream.write(chunk)
        if written != size:
            raise ZipMalformed(f"{name!r} has {written} bytes, expected {size}")
        entries.append(replace(entry, crc=crc))
        stream.seek(entry.offset)
        stream.write(_build_header(entries[-1]))
        stream.seek(0, os.SEEK_END)
    stream.write(_build_directory(entries, stream.tell()))


def read_zip(stream: IO[bytes]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the name and the content in chunks of each file of an archive.

    The contents together are never larger than the archive. Raises `ZipMalformed` before the first file, and
    `ZipEntryDamaged` while a content is read.
    """
    for entry in index_zip(stream):
        stream.seek(entry.content_offset)
        content = _read_content(stream, entry)
        yield entry.name.decode(), content
        for _ in content:  # whatever the caller did not read
            pass


def index_zip(stream: IO[bytes], max_entries: int = MAX_ENTRIES) -> list[ZipEntry]:
    """Read the headers and the directory of an archive, without the contents. Raises `ZipMalformed`.

    The entries follow each other without gaps or overlaps, sorted by name, and their names are UTF-8.
    """
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    entries: list[ZipEntry] = []
    while (entry := _read_entry(stream, end)) is not None:
        if entries and entry.name <= entries[-1].name:
            raise ZipMalformed(f"{_display_name(entry.name)} appears twice or out of order")
        if len(entries) == max_entries:
            raise ZipMalformed(f"it has more than {max_entries} entries")
        try:
            entry.name.decode()
        except UnicodeDecodeError:
            raise ZipMalformed(f"the name {_display_name(entry.name)} is not UTF-8") from None
        entries.append(entry)
        stream.seek(entry.size, os.SEEK_CUR)
    _check_directory(stream, entries)
    return entries


def _build_header(entry: ZipEntry) -> bytes:
    """Build the local file header of an entry, including the padding before its content."""
    large = entry.size >= ZIP64_SIZE_LIMIT
    extra = struct.pack("<2H2Q", 1, 16, entry.size, entry.size) if large else b""  # 4.5.3
    padding = -(entry.offset + _HEADER.size + len(entry.name) + len(extra) + 4) % ALIGNMENT
    extra += struct.pack("<2sH", b"FB", padding) + bytes(padding)
    size = _zip32_value(entry.size)
    fixed = _HEADER.pack(
        b"PK\3\4", _ZIP64 if large else _PLAIN, _flags(entry), _STORED, _TIME, _DATE,
        entry.crc, size, size, len(entry.name), len(extra),
    )  # fmt: skip
    return fixed + entry.name + extra


def _build_directory(entries: list[ZipEntry], offset: int) -> bytes:
    """Build the central directory and its end records, which follow the last content at `offset`."""
    records = b"".join(_build_directory_record(entry) for entry in entries)
    count, end64 = len(entries), b""
    if count >= ZIP64_COUNT_LIMIT or len(records) >= ZIP64_SIZE_LIMIT or offset >= ZIP64_SIZE_LIMIT:
        end64 = _END64.pack(
            b"PK\6\6", _END64.size - 12, _MADE_BY, _ZIP64, 0, 0, count, count, len(records), offset
        ) + _LOCATOR64.pack(b"PK\6\7", 0, offset + len(records), 1)  # fmt: skip
    short_count = count if count < ZIP64_COUNT_LIMIT else _COUNT_IN_ZIP64
    end = _END.pack(b"PK\5\6", 0, 0, short_count, short_count, _zip32_value(len(records)), _zip32_value(offset), 0)
    return records + end64 + end


def _build_directory_record(entry: ZipEntry) -> bytes:
    large = [number for number in (entry.size, entry.size, entry.offset) if number >= ZIP64_SIZE_LIMIT]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    size = _zip32_value(entry.size)
    fixed = _RECORD.pack(
        b"PK\1\2", _MADE_BY, _ZIP64 if large else _PLAIN, _flags(entry), _STORED, _TIME, _DATE,
        entry.crc, size, size, len(entry.name), len(extra), 0, 0, 0, _MODE, _zip32_value(entry.offset),
    )  # fmt: skip
    return fixed + entry.name + extra


def _flags(entry: ZipEntry) -> int:
    return 0 if entry.name.isascii() else _UTF8


def _zip32_value(number: int) -> int:
    return number if number < ZIP64_SIZE_LIMIT else _IN_ZIP64


def _read_entry(stream: IO[bytes], end: int) -> ZipEntry | None:
    """Read the next header, and leave the stream at the content. Returns None where the directory starts."""
    offset = stream.tell()
    fixed = stream.read(_HEADER.size)
    if fixed.startswith((b"PK\1\2", b"PK\5\6")):
        stream.seek(offset)
        return None
    if len(fixed) < _HEADER.size or not fixed.startswith(b"PK\3\4"):
        raise ZipMalformed(f"byte {offset} of {end} starts neither an entry of a ZIP nor its directory")
    _, _, flags, method, _, _, crc, size, _, name_length, extra_length = _HEADER.unpack(fixed)
    name, extra = stream.read(name_length), stream.read(extra_length)
    if flags & _ENCRYPTED:
        raise ZipMalformed(f"{_display_name(name)} is encrypted")
    if method != _STORED:
        raise ZipMalformed(f"{_display_name(name)} is compressed; entries must be stored")
    if flags & _DESCRIPTOR:
        raise ZipMalformed(f"{_display_name(name)} has its size in a data descriptor")
    if size == _IN_ZIP64 and len(extra) >= 12:
        (size,) = struct.unpack_from("<Q", extra, 4)
    entry = ZipEntry(name, size, crc, offset)
    if fixed + name + extra != _build_header(entry):
        raise ZipMalformed(
            f"the header of {_display_name(name)} contains more than name, size and CRC, or is not aligned"
        )
    if size > end - stream.tell():
        raise ZipMalformed(f"{_display_name(name)} claims {size} bytes, and the archive has {end - stream.tell()} left")
    return entry


def _read_content(stream: IO[bytes], entry: ZipEntry) -> Iterator[bytes]:
    remaining, crc = entry.size, 0
    while remaining:
        chunk = stream.read(min(remaining, CHUNK_BYTES))
        if not chunk:
            raise ZipMalformed(f"{_display_name(entry.name)} was truncated while it was read")
        remaining -= len(chunk)
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if crc != entry.crc:
        raise ZipEntryDamaged(f"the content of {_display_name(entry.name)} does not match its CRC")


def _check_directory(stream: IO[bytes], entries: list[ZipEntry]) -> None:
    expected = _build_directory(entries, stream.tell())
    actual = stream.read(len(expected) + 1)
    if actual == expected:
        return
    if actual.startswith(expected):
        raise ZipMalformed("there are bytes after its end")
    if expected.startswith(actual):
        raise ZipMalformed("it is truncated in its directory")
    raise ZipMalformed(
        "its directory does not match its entries: different names, links, permissions, overlaps, or a comment"
    )


def _display_name(name: bytes) -> str:
    """Return a name as printable text for a message, at most 200 bytes of it."""
    return repr(name[:200].decode(errors="backslashreplace"))
