"""Read a part of an open file as if it were a file of its own."""

from __future__ import annotations

import io
import os
from typing import Any


class FileSlice(io.RawIOBase):
    """The bytes of an open file from `start` to its end, as a stream. Closing it leaves the descriptor open."""

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._start, self._position = descriptor, start, 0
        self._size = os.fstat(descriptor).st_size - start

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, and return it."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer. Returns the number of bytes, 0 at the end."""
        content = os.pread(self._descriptor, len(buffer), self._start + self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
