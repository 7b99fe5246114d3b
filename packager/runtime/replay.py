"""Replay a bundle's evidence in a child process with limits of time and memory, from the parent's side.

A model of a stranger's may loop for ever, take all memory or crash onnxruntime: that ends the child, and becomes a
check that failed with the reason. The child is no sandbox: a program of TorchScript can do in it whatever the user may
do, so it runs only in a trusted bundle (`packager.runtime.trust`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO

import pydantic

from packager.common.paths import PACKAGE
from packager.common.process_memory import read_private_bytes
from packager.common.strict_json import parse_strict_json
from packager.errors import escape_unprintable
from packager.runtime.replay_messages import ReplayAnswer, ReplayFailed, ReplayRequest, Step

_SAMPLING_SECONDS = 0.02 if sys.platform == "linux" else 0.5  # elsewhere a process of its own measures the memory
_MAX_ANSWER_BYTES = 4 << 20
_MAX_TEXT = 400

_OWN_FOLDER = ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME")
_KEPT_VARIABLES = frozenset({"LANG", "PATH", "SYSTEMROOT", "TZ"})
_KEPT_PREFIXES = (
    "ATEN_", "CUDA_", "DNNL_", "DYLD_", "GOMP_", "HIP_", "KMP_", "LC_", "LD_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "ORT_", "ROCR_",
)  # fmt: skip
"""The child's environment: where libraries and devices are, how many threads to use, and on which instructions."""

_MESSAGES: pydantic.TypeAdapter[Step | ReplayAnswer | ReplayFailed] = pydantic.TypeAdapter(
    Step | ReplayAnswer | ReplayFailed
)


class _ReplayEnded(Exception):
    """Why the replay ended before its answer was complete."""


@dataclass(frozen=True)
class Limits:
    """What a replay may take: seconds for all of it, and bytes of memory at any moment, mapped files excluded."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class ReplayResult:
    """The last answer of the child; `failure` says why there is no complete one, and `subject` what it was about.

    `failure` is empty if the answer is complete. `subject` is a backend, or anything else if it was about none.
    """

    answer: ReplayAnswer
    subject: str = ""
    failure: str = ""


def replay(request: ReplayRequest, limits: Limits) -> ReplayResult:
    """Run the replay in a child, which has ended when this function returns or raises."""
    with _make_empty_folder() as folder:
        try:
            child = _start(request, folder)
        except OSError as error:
            return ReplayResult(
                ReplayAnswer(), failure=f"no process can be started to run the models: {error.strerror}"
            )
        chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert child.stdin is not None and child.stdout is not None
        reader = threading.Thread(target=_read_chunks, args=(child.stdout, chunks), daemon=True)
        reader.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # then the child has ended, which its answers show
                rest = json.dumps(asdict(request)).encode() + b"\n"
                while rest:
                    rest = rest[child.stdin.write(rest) :]
            return _follow(child, chunks, limits)
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            reader.join(1)  # what the child has started, and did not end, may hold the pipe open
            if not reader.is_alive():
                child.stdout.close()


def _start(request: ReplayRequest, folder: str) -> subprocess.Popen[bytes]:
    """Start the child in an empty folder, without any code of the working directory. Raises OSError."""
    path = [str(PACKAGE.parent), *(os.path.abspath(entry) for entry in sys.path)]  # noqa: PTH100 (an entry may be "")
    code = f"import sys; sys.path[:] = {path!r}; from packager.runtime.replay_process import main; main()"
    kept = [name for name in os.environ if name.upper() in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)]
    environment = {name: os.environ[name] for name in kept}
    descriptors = {location.descriptor for location in request.locations.values()}
    return subprocess.Popen(
        [sys.executable, "-I", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd=folder,
        env={"ORT_DISABLE_TELEMETRY": "1", **environment, **dict.fromkeys(_OWN_FOLDER, folder)},
        pass_fds=tuple(descriptors),
    )


@contextlib.contextmanager
def _make_empty_folder() -> Iterator[str]:
    """Yield the child's working directory: an empty folder, or the root where no folder can be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="packager-replay-", ignore_cleanup_errors=True)
    except OSError:
        yield os.path.abspath(os.sep)  # noqa: PTH100
    else:
        with folder as name:
            yield name


def _read_chunks(stream: IO[bytes], chunks: queue.SimpleQueue[bytes]) -> None:
    """Pass on what the child writes, up to the largest size, and an empty chunk at the end."""
    size = 0
    with contextlib.suppress(OSError, ValueError):
        while size <= _MAX_ANSWER_BYTES and (chunk := stream.read(1 << 16)):
            size += len(chunk)
            chunks.put(chunk)
    chunks.put(b"")


def _follow(child: subprocess.Popen[bytes], chunks: queue.SimpleQueue[bytes], limits: Limits) -> ReplayResult:
    """Read the child's messages until its answer is complete, or it ends, or takes more than it may."""
    deadline = time.monotonic() + limits.seconds
    answer, step, text = ReplayAnswer(), Step("", "at its start"), b""
    try:
        while not answer.complete:
            *lines, text = (text + _wait_for_chunk(child, chunks, deadline, limits)).split(b"\n")
            for line in lines:
                message = _parse_message(line)
                if isinstance(message, Step):
                    step = message
                else:
                    answer = message
    except _ReplayEnded as reason:
        failure = escape_unprintable(f"{reason} {step.activity}"[:_MAX_TEXT])
        return ReplayResult(answer, step.subject, failure)
    return ReplayResult(answer)


def _wait_for_chunk(
    child: subprocess.Popen[bytes], chunks: queue.SimpleQueue[bytes], deadline: float, limits: Limits
) -> bytes:
    """Return what the child has written next, or nothing after a while. Raises `_ReplayEnded`."""
    if time.monotonic() > deadline:
        raise _ReplayEnded(f"the time limit of {limits.seconds:g} s (--time-limit) was reached")
    if read_private_bytes(child.pid) > limits.bytes:
        raise _ReplayEnded(f"the memory limit of {limits.bytes / 1e9:.3g} GB (--memory-limit) was exceeded")
    try:
        chunk = chunks.get(timeout=_SAMPLING_SECONDS)
    except queue.Empty:
        return b""
    if not chunk:
        raise _ReplayEnded(_describe_end(child))
    return chunk


def _parse_message(line: bytes) -> Step | ReplayAnswer:
    """Parse a message of the child. Raises `_ReplayEnded` if it is none, or says that the child has failed."""
    try:
        parse_strict_json(line)
        message = _MESSAGES.validate_json(line)
    except (ValueError, RecursionError):
        raise _ReplayEnded("the process that ran it sent a malformed answer") from None
    if isinstance(message, ReplayFailed):
        raise _ReplayEnded(f"the process that ran it failed: {message.error}")
    return message


def _describe_end(child: subprocess.Popen[bytes]) -> str:
    try:
        status = child.wait(1)
    except subprocess.TimeoutExpired:
        return "the process that ran it stopped answering"
    end = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"the process that ran it ended with {end}"
