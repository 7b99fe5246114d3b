"""Encode fields in protobuf's wire format: https://protobuf.dev/programming-guides/encoding/."""

from __future__ import annotations

_LENGTH_DELIMITED = 2
"""The wire type of strings, bytes and messages."""


def encode_bytes(field: int, content: bytes) -> bytes:
    """Return the field `field` with a string, bytes or a message in it."""
    return encode_head(field, len(content)) + content


def encode_head(field: int, length: int) -> bytes:
    """Return what comes before the `length` bytes of a string, bytes or a message in the field `field`."""
    return _encode_varint(field << 3 | _LENGTH_DELIMITED) + _encode_varint(length)


def _encode_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
