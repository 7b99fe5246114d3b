"""Prepare the standard streams, so that stdout carries the result alone and a failure to write it is an error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from packager.errors import OutputRefused


def prepare_streams() -> None:
    """Reopen closed standard streams on /dev/null, and make stdout and stderr never fail on an encoding.

    From then on, writing to a stdout that is full or broken raises `OutputRefused`, except for a closed pipe, which
    raises BrokenPipeError.
    """
    # The next file opened would get the number of a closed stream, and be written to in its place.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (a descriptor, open as long as the process)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")  # the name of a file may not be UTF-8
    encoding = sys.stdout.encoding if sys.stdout is not None else "utf-8"
    raw = _CheckedStdout(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=raw.isatty()
    )
    sys.__stdout__ = sys.stdout  # type: ignore[misc]  # keeps it alive: closing a stream that cannot be written raises


def discard_stdout() -> None:
    """Send later writes to /dev/null, because the reader is gone or the device is full."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (open as long as the process lives)


@contextlib.contextmanager
def redirect_stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what the user's code and the libraries print, as stdout carries the result alone.

    Redirect the file descriptor as well, for native code and child processes.
    """
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(original, 1)
        os.close(original)


class _CheckedStdout(io.FileIO):
    """Raise `OutputRefused` if a write fails for any reason but a closed pipe."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            raise
        except OSError as error:
            discard_stdout()
            why = str(error.strerror)
            raise OutputRefused("standard output", why, "make room, or write elsewhere", what="the result") from None
