"""The ONNX half of a build, in a process of its own.

While the main process imports torch and the user's code, traces and runs the reference, this one
imports onnx, onnxsim and onnxruntime, then simplifies and optimizes. Two processes use two
cores where one interpreter would use one, and a crash inside a pass (they are C++ working on
graphs nobody has seen before) costs the pass and not the build.

The parent (`OnnxSide`) sends pickled jobs on the child's stdin and reads pickled answers from its
stdout; before the answer come the names of the passes as they start, so that after a crash it is
known which pass it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Any

from packager.common import process_memory
from packager.common.paths import PACKAGE
from packager.common.sanitize import sanitize_message
from packager.export.graph.messages import GraphSize, OptimizeJob, OptimizeResult


@dataclass(frozen=True)
class _PassStarted:
    name: str


@dataclass(frozen=True)
class _JobFailed:
    error: Exception


class WorkerCrashed(Exception):
    """The child died during a job; `during` is the pass, if one had begun."""

    def __init__(self, during: str, how: str) -> None:
        super().__init__(f"{during or 'the ONNX side'} crashed: {how}")
        self.pass_name = during
        self.cause = how


class OnnxWorker:
    """The child process, from the parent's side. Jobs are answered in the order they are given."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnx-side")
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()  # so that no child starts after `cancel` has killed the last one
        self._cancelled = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> OnnxWorker:
        return self

    def start(self) -> None:
        """Start the child, which imports while the parent does; without this the first job starts it."""
        self._start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.cancel()
        self._threads.shutdown(wait=True)
        self._close()
        self._errors.close()

    def cancel(self) -> None:
        """Kill the child and start no other: jobs without an answer raise `CancelledError`, and no more are taken."""
        with self._starting:
            self._cancelled = True
            if self._child is not None:
                self._child.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def submit(self, job: OptimizeJob) -> Future[OptimizeResult]:
        """Run the passes; a pass that crashes is skipped, recorded, and the others run again."""
        return self._threads.submit(self._run_job, job)

    def _run_job(self, job: OptimizeJob) -> OptimizeResult:
        while True:
            try:
                answer: OptimizeResult = self._exchange(job)
            except WorkerCrashed as crash:
                if self._cancelled:
                    raise CancelledError from None
                if crash.pass_name not in ("simplify", "fuse", "optimize") or crash.pass_name in job.skipped_passes:
                    return OptimizeResult(GraphSize(0, 0), (), None, str(crash))
                job = replace(job, skipped_passes={**job.skipped_passes, crash.pass_name: f"crashed: {crash.cause}"})
            else:
                self._close()  # with the memory that it took; another job, which is rare, starts another
                return answer

    def _close(self) -> None:
        if self._child is not None:
            assert self._child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # what a killed child did not read
                self._child.stdin.close()
            _wait_for_exit(self._child)
            self._child = None

    def _start(self) -> None:
        # Not `-m packager.export.passes.worker` from the working directory's files: the child must import what we are.
        root = str(PACKAGE.parent)
        code = f"import sys; sys.path.insert(0, {root!r}); from packager.export.passes.worker import serve; serve()"
        with self._starting:
            if self._cancelled:
                raise CancelledError
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **process_memory.WORKER_ENVIRONMENT},
            )

    def _exchange(self, job: object) -> Any:
        if self._child is None or self._child.poll() is not None:
            self._start()
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        during = ""
        try:
            pickle.dump(job, child.stdin, pickle.HIGHEST_PROTOCOL)
            child.stdin.flush()
            while True:
                message = pickle.load(child.stdout)
                if not isinstance(message, _PassStarted):
                    break
                during = message.name
        except (EOFError, BrokenPipeError, ConnectionResetError, pickle.UnpicklingError):
            how = self._describe_exit(child)
            self._child = None
            with contextlib.suppress(BrokenPipeError):  # what it did not read
                child.stdin.close()
            child.stdout.close()
            raise WorkerCrashed(during, how) from None
        if isinstance(message, _JobFailed):
            raise message.error
        return message

    def _describe_exit(self, child: subprocess.Popen[bytes]) -> str:
        status = child.wait()
        if status < 0:
            return signal.Signals(-status).name
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit status {status}" + (f": {sanitize_message(lines[-1])}" if lines else "")


def _wait_for_exit(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that was told to end, and close the pipe that its answers came through."""
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def serve() -> None:
    """The child: answer jobs from stdin until it closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not between the answers
    logging.disable(logging.WARNING)
    # onnxsim and onnxruntime.transformers import torch where it is installed (2 s, 200 MB) for
    # features that are not used here; None makes the import fail as if it were not.
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to forbid an import
    # While the parent imports torch: what the jobs will need. onnxsim describes models with sympy, which nobody asks
    # for here (0.3 s, 35 MB); the fusions look for shapes with it, and import it where they have something to fuse.
    described_with = ("sympy", "onnx_ir")
    sys.modules.update(dict.fromkeys(described_with))  # type: ignore[arg-type]  # None, likewise
    import onnxsim  # noqa: F401

    for name in described_with:
        del sys.modules[name]

    from packager.export.passes import runner

    process_memory.freeze_garbage_collector()  # what was imported stays: each collection looked at all of it, for 0.1 s

    def say(message: object) -> None:
        pickle.dump(message, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()

    began: Callable[[str], None] = lambda name: say(_PassStarted(name))  # noqa: E731 (one line, one use)
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # nothing is left to be done, and the parent waits
        os.chdir(job.exported.path.parent)  # some passes leave temporary files where they stand
        try:
            say(runner.run_passes(job, began))
        except Exception as error:  # noqa: BLE001 (handed to the parent, which raises it there)
            say(_JobFailed(error))
