"""Start and ask the measuring processes, from the parent's side."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from packager.benchmark.messages import Failed, Opened, OpenRequest, Timings, Turn
from packager.common.paths import PACKAGE
from packager.errors import PackagerError


class NotMeasurable(Exception):
    """A backend cannot be opened, or a call failed: a library's first line, or how the process ended."""


class MeasuringProcess:
    """A process with one open backend; `load_seconds` is the time from the start of the process until it was open."""

    def __init__(self, child: subprocess.Popen[bytes], opened: Opened, load_seconds: float) -> None:
        self.opened = opened
        self.load_seconds = load_seconds
        self._child = child

    def run_turn(self, turn: Turn) -> tuple[int, ...]:
        """Return the nanoseconds of each call of a turn. Raises what `_ask` raises."""
        answer = _ask(self._child, turn)
        assert isinstance(answer, Timings)
        return answer.nanoseconds


@contextmanager
def start_process(request: OpenRequest) -> Iterator[MeasuringProcess]:
    """Start a process, and yield it once its backend is open; it has ended when the block ends.

    Raises `NotMeasurable`, or the error of packager that opening the backend raised.
    """
    path = [str(PACKAGE.parent), *(os.path.abspath(entry) for entry in sys.path)]  # noqa: PTH100 (an entry may be "")
    code = f"import sys; sys.path[:] = {path!r}; from packager.benchmark.measuring_process import serve; serve()"
    environment = {"ORT_DISABLE_TELEMETRY": "1", **os.environ}
    command = [sys.executable, "-c", code]
    began = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        opened = _ask(child, request)
        assert isinstance(opened, Opened)
        yield MeasuringProcess(child, opened, time.monotonic() - began)
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # from what a dead child did not read
            child.stdin.close()
        child.stdout.close()


def _ask(child: subprocess.Popen[bytes], message: OpenRequest | Turn) -> Opened | Timings:
    """Send a message and return the answer. Raises `NotMeasurable`, or an error of packager."""
    assert child.stdin is not None and child.stdout is not None
    try:
        pickle.dump(message, child.stdin, pickle.HIGHEST_PROTOCOL)
        child.stdin.flush()
        answer: Opened | Timings | Failed = pickle.load(child.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        raise NotMeasurable(f"the process ended with {_describe_exit(child.wait())}") from None
    if not isinstance(answer, Failed):
        return answer
    if isinstance(answer.error, PackagerError):
        raise answer.error
    raise NotMeasurable(answer.error)


def _describe_exit(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
