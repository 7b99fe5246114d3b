"""Compress and decompress bodies: gzip, and deflate, which in HTTP is the zlib format (RFC 9110, 8.4.1.2).

Decompressing stops at a limit, so that a small request cannot become a large one.
"""

from __future__ import annotations

import zlib

from packager.serving.messages import Rejected

_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
_LEVEL = 1
"""Of compression: tensors shrink little, and more effort costs more time than the bytes take on a network."""


def decompress(body: bytes | bytearray, coding: bytes, limit: int) -> bytes | bytearray:
    """Undo a Content-Encoding. Raises `Rejected`: 413 beyond `limit` bytes, 415 for an unknown coding, else 400."""
    coding = coding.strip().lower()
    if coding in (b"", b"identity"):
        return body
    if coding not in _WINDOW_BITS:
        raise Rejected(
            415, "the content encoding is neither gzip nor deflate", ((b"accept-encoding", b"gzip, deflate"),)
        )
    stream = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Rejected(400, f"the body is not valid {coding.decode()}: {error}") from None
    if len(content) > limit:
        raise Rejected(413, f"the decompressed body has more than {limit} bytes")
    if not stream.eof:
        raise Rejected(400, f"the {coding.decode()} body is cut off")
    if stream.unused_data:  # another member of a gzip file: no client sends any, and a million would take long
        raise Rejected(400, f"the body has bytes after the end of its {coding.decode()}")
    return content


def choose_coding(accept_encoding: bytes) -> bytes | None:
    """Return the coding to compress an answer with; None leaves it as it is.

    A client that wants compression names one coding; a list of several is what HTTP libraries send on their own, and
    compressing tensors for them would cost more than it saves. `gzip;q=0` refuses it.
    """
    accepted = accept_encoding.strip().lower()
    return accepted if accepted in _WINDOW_BITS else None


def compress(parts: tuple[bytes | memoryview, ...], coding: bytes) -> bytes:
    """Compress the parts of a body as one."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return b"".join([*map(stream.compress, parts), stream.flush()])
