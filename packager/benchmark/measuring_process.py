"""A measuring process, from its own side: open one backend, then time its calls whenever the parent says so.

Each backend has a process of its own, so that load time and memory are its own, and no two libraries share a pool of
threads. Requests come from stdin and answers go to stdout, as pickles; the process ends when stdin does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import platform
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packager.benchmark.messages import Failed, Opened, OpenRequest, Timings, Turn
from packager.common.array_files import Array
from packager.common.process_memory import read_private_bytes
from packager.errors import PackagerError

_SETTLING_SECONDS = 0.1
_SETTLING_STEP_SECONDS = 0.002


def serve() -> None:
    """Answer the request and the turns on stdin until it closes, then end the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries and the user's code print must not get between the answers

    def send(message: Opened | Timings | Failed) -> None:
        pickle.dump(message, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()

    with contextlib.suppress(BrokenPipeError):
        try:
            _measure(pickle.load(sys.stdin.buffer), send)
        except Exception as error:  # noqa: BLE001 (handed to the parent, which reports or raises it)
            send(describe_failure(error))
    os._exit(0)  # without any clean-up, as the parent waits


def _measure(request: OpenRequest, send: Any) -> None:
    from packager.benchmark.backends import open_backend

    with open_backend(request) as backend:
        backend.with_threads(request.threads[-1])
        send(Opened(_read_resident_bytes(), backend.notes))
        gc.disable()
        while True:
            try:
                turn: Turn = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            gc.collect()
            try:
                timings = time_calls(backend.with_threads(turn.threads), request.inputs[turn.case], turn.seconds)
            except Exception as error:  # noqa: BLE001 (handed to the parent: this case is not measured)
                send(describe_failure(error))
            else:
                if turn.threads > 1:
                    _wait_for_idle_threads()
                send(Timings(timings))


def time_calls(run: Any, inputs: Mapping[str, Array], seconds: float) -> tuple[int, ...]:
    """Call a function until `seconds` have passed, and at least once. Returns the nanoseconds of each call.

    The first call after a pause finds cold caches and sleeping threads: it is left out if there are others.
    """
    clock = time.perf_counter_ns
    deadline = clock() + int(seconds * 1e9)
    durations, now = [], 0
    while now < deadline:
        start = clock()
        run(inputs)
        now = clock()
        durations.append(now - start)
    return tuple(durations[1:] or durations)


def describe_failure(error: Exception) -> Failed:
    """Return an error of packager as it is, and any other as its first line."""
    if isinstance(error, PackagerError):
        return Failed(error)
    lines = str(error).strip().splitlines()
    return Failed(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _wait_for_idle_threads() -> None:
    """Wait until this process uses no more time of the processor.

    The threads of onnxruntime and OpenMP spin for a while after a call, tens of milliseconds, and would take a core
    from the process whose turn is next.
    """
    deadline = time.monotonic() + _SETTLING_SECONDS
    while time.monotonic() < deadline:
        used = time.process_time()
        time.sleep(_SETTLING_STEP_SECONDS)
        if time.process_time() - used < _SETTLING_STEP_SECONDS / 4:
            return


def _read_resident_bytes() -> int:
    """Return the resident memory of this process with its mapped files; 0 if the system does not say."""
    if platform.system() != "Linux":
        return read_private_bytes(os.getpid())  # there it includes mapped files
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
