"""Decode a body in chunks (RFC 9112, 7.1), strictly: a proxy must not see its end at a different place."""

from __future__ import annotations

import re

from packager.serving.messages import Rejected

_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[\t\x20-\x7e]*)?\r\n")
_MAX_LINE_BYTES = 1024
_MAX_TRAILER_BYTES = 8 << 10


class ChunkDecoder:
    """Takes the bytes of a body as they arrive; `body` is its content so far."""

    def __init__(self) -> None:
        self.body = bytearray()
        self._left = 0  # of the chunk that is being received, with its line break
        self._in_trailer = False

    def feed(self, buffer: bytearray) -> bool:
        """Decode and remove from `buffer` what it has of the body; returns whether the body ends in it.

        Raises `Rejected`, 400.
        """
        position = 0
        while not self._in_trailer:
            if self._left:
                position += self._take(buffer, position)
                if self._left:
                    break
            match = _SIZE_LINE.match(buffer, position)
            if match is None:
                if b"\n" in buffer[position : position + _MAX_LINE_BYTES] or len(buffer) - position > _MAX_LINE_BYTES:
                    raise Rejected(400, "the size of a chunk is malformed")
                break
            position = match.end()
            size = int(match[1], 16)
            self._left = size + 2
            if size == 0:
                self._left, self._in_trailer = 0, True
        del buffer[:position]
        return self._in_trailer and self._skip_trailer(buffer)

    def _take(self, buffer: bytearray, position: int) -> int:
        """Take what there is of a chunk; returns the number of bytes."""
        available = min(self._left, len(buffer) - position)
        content = min(available, self._left - 2) if self._left > 2 else 0
        self.body += memoryview(buffer)[position : position + content]
        ending = bytes(buffer[position + content : position + available])
        if ending != b"\r\n"[2 - (self._left - content) :][: len(ending)]:
            raise Rejected(400, "a chunk does not end where its size says")
        self._left -= available
        return available

    def _skip_trailer(self, buffer: bytearray) -> bool:
        """Remove the trailer from the buffer; returns whether it has ended."""
        if buffer.startswith(b"\r\n"):
            del buffer[:2]
            return True
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _MAX_TRAILER_BYTES:
                raise Rejected(400, "the trailer of the body is too long")
            return False
        del buffer[: end + 4]
        return True
