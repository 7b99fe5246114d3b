"""The standard streams of a command: open, able to write any name, and stdout's failures told apart from others."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from packager.errors import OutputRefused


def prepare_streams() -> None:
    """Make the process's streams such."""
    # What the caller closed is /dev/null: the next file opened would be taken for it.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (for as long as the process lives)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")  # a file's name may be no UTF-8
    encoding = sys.stdout.encoding if sys.stdout is not None else "utf-8"
    raw = _CheckedStdout(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=raw.isatty()
    )
    sys.__stdout__ = sys.stdout  # type: ignore[misc]  # kept, as one that cannot be written must not be closed


def discard_stdout() -> None:
    """Let nothing more be written to it: whoever reads it is gone, or there is no room."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)


class _CheckedStdout(io.FileIO):
    """Raises `OutputRefused`, but for a pipe that nobody reads any more."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            raise
        except OSError as error:
            discard_stdout()
            why = str(error.strerror)
            raise OutputRefused("standard output", why, "make room, or write elsewhere", what="the answer") from None
