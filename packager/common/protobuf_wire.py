"""Read and encode protobuf's wire format without its library, field by field.

The library creates an object of some hundred bytes for each nested message, which may take two bytes of the file. Here
nothing is created for a message that is not wanted. The encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_EMPTY = memoryview(b"")

Value = int | memoryview


class ProtobufMalformed(ValueError):
    """The bytes are not valid protobuf, or have more fields than may be read."""


class FieldReader:
    """Read fields of messages, at most `max_fields` together; "the model" names the file in errors."""

    def __init__(self, max_fields: int) -> None:
        self._max_fields = max_fields
        self._read = 0

    def read(self, message: memoryview) -> Iterator[tuple[int, Value]]:
        """Yield number and value of each field of a message: a varint, or the content of a field that has a length.

        Fields of 4 or 8 bytes have an empty value. Raises `ProtobufMalformed`.
        """
        for field, value, _ in self.read_spans(message):
            yield field, value

    def read_spans(self, message: memoryview) -> Iterator[tuple[int, Value, int]]:
        """Yield what `read` does, and where each field ends: the next one begins there. Raises `ProtobufMalformed`."""
        position, end = 0, len(message)
        while position < end:
            self._read += 1
            if self._read > self._max_fields:
                raise ProtobufMalformed(f"the model has more than {self._max_fields} fields outside of its weights")
            tag = message[position]
            position += 1
            if tag >= 0x80:
                tag, position = read_varint(message, position - 1)
            field, wire_type = tag >> 3, tag & 7
            if wire_type == _VARINT:
                value, position = read_varint(message, position)
                yield field, value, position
                continue
            if wire_type == _BYTES:
                length, position = read_varint(message, position)
            elif wire_type in (_FIXED32, _FIXED64):
                length = 4 if wire_type == _FIXED32 else 8
            else:
                raise ProtobufMalformed("the model is not valid protobuf: it contains a group")
            if field == 0 or length > end - position:
                raise ProtobufMalformed("the model is not valid protobuf: a field is longer than its message")
            content = message[position : position + length] if wire_type == _BYTES else _EMPTY
            position += length
            yield field, content, position


def read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a number of at most 10 bytes. Returns it with the position after it. Raises `ProtobufMalformed`."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ProtobufMalformed("the model is not valid protobuf: a number does not end")


def encode_bytes(field: int, content: bytes) -> bytes:
    """Return the field `field` with a string, bytes or a message in it."""
    return encode_head(field, len(content)) + content


def encode_head(field: int, length: int) -> bytes:
    """Return what comes before the `length` bytes of a string, bytes or a message in the field `field`."""
    return _encode_varint(field << 3 | _BYTES) + _encode_varint(length)


def _encode_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
