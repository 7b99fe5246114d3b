"""Find out how long the directory of a ZIP archive is, without reading it.

zipfile makes an object of every entry that the directory lists, which takes seconds and hundreds of megabytes for a
million of them. The fields are those of PKWARE's APPNOTE.TXT, sections 4.3.14 to 4.3.16.
"""

from __future__ import annotations

from typing import IO

ZIP_MAGIC = b"PK\x03\x04"
TOO_MANY_ENTRIES = "more entries than any checkpoint has"
MAX_DIRECTORY_BYTES = 2 << 20
"""torch.save takes some 70 bytes for each tensor: this is enough for 30,000."""

_END, _END_BYTES = b"PK\x05\x06", 22
_LOCATOR64, _LOCATOR64_BYTES = b"PK\x06\x07", 20
_END64, _END64_BYTES = b"PK\x06\x06", 56
_MAX_COMMENT_BYTES = 0xFFFF


def is_directory_too_long(stream: IO[bytes]) -> bool:
    """Tell whether an archive lists more entries than any checkpoint has; False if it has no directory.

    Raises OSError.
    """
    size = stream.seek(0, 2)
    start = max(0, size - _END_BYTES - _MAX_COMMENT_BYTES)
    stream.seek(start)
    tail = stream.read(_END_BYTES + _MAX_COMMENT_BYTES)
    # zipfile looks for the end of the file first, then for the last signature.
    ends = {tail.rfind(_END), len(tail) - _END_BYTES}
    return any(
        _directory_bytes(stream, start + end, tail[end:]) > MAX_DIRECTORY_BYTES
        for end in ends
        if end >= 0 and tail.startswith(_END, end)
    )


def _directory_bytes(stream: IO[bytes], position: int, end: bytes) -> int:
    """Return the length that the record at the end of an archive claims, or the one in the ZIP64 record before it."""
    length = int.from_bytes(end[12:16], "little")
    stream.seek(max(0, position - _LOCATOR64_BYTES - _END64_BYTES))
    end64 = stream.read(_END64_BYTES)
    if end64.startswith(_END64) and stream.read(_LOCATOR64_BYTES).startswith(_LOCATOR64):
        return int.from_bytes(end64[40:48], "little")
    return length
