"""The ONNX worker, from the parent's side: a child process that runs the passes.

While the main process imports torch and the user's code, traces and runs the reference, the child imports onnx,
onnxsim and onnxruntime, then simplifies and optimizes. Two processes use two cores where one interpreter would use
one, and a crash inside a pass (they are C++, run on graphs that they have never seen) costs the pass and not the build.

Jobs go to the child's stdin, and answers come from its stdout, as pickles: see `packager.export.passes.worker_process`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import IO

from packager.common import process_memory
from packager.common.paths import PACKAGE
from packager.common.sanitize import sanitize_message
from packager.export.graph.messages import SESSION_STEP, GraphSize, JobFailed, OptimizeJob, OptimizeResult, PassStarted

_SKIPPABLE_PASSES = ("simplify", "fuse", "optimize")


class WorkerCrashed(Exception):
    """The child died during a job: how, and in which pass, empty if none had begun."""

    def __init__(self, pass_name: str, cause: str) -> None:
        remedy = "; model.dtype: float32 may avoid it" if pass_name == SESSION_STEP else ""
        super().__init__(f"{pass_name or 'the ONNX worker'} crashed: {cause}{remedy}")
        self.pass_name = pass_name
        self.cause = cause


class OnnxWorker:
    """A child process that answers jobs in the order in which they are submitted.

    Use it as a context manager: leaving it waits for the jobs, or cancels them if an exception passes through.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnx-worker")
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()  # so that no child starts after `cancel` has killed the last one
        self._cancelled = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> OnnxWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.cancel()
        self._threads.shutdown(wait=True)
        self._stop_child()
        self._errors.close()

    def start(self) -> None:
        """Start the child, which imports while the parent does; otherwise the first job starts it.

        Raises CancelledError after `cancel`, and OSError if the process cannot start.
        """
        # With `-m`, the child might import a different packager from its working directory.
        code = (
            f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); "
            "from packager.export.passes.worker_process import serve; serve()"
        )
        safe_path = ["-P"] if sys.version_info >= (3, 11) else []
        with self._starting:
            if self._cancelled:
                raise CancelledError
            self._child = subprocess.Popen(
                [sys.executable, *safe_path, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={"ORT_DISABLE_TELEMETRY": "1", **os.environ, **process_memory.WORKER_ENVIRONMENT},
            )

    def submit(self, job: OptimizeJob) -> Future[OptimizeResult]:
        """Run the passes of a job. A pass that crashes is recorded and skipped, and the others run again.

        The future raises what the passes raise, and CancelledError after `cancel`.
        """
        return self._threads.submit(self._run_job, job)

    def cancel(self) -> None:
        """Kill the child and start no other: jobs without an answer raise CancelledError, and `submit` RuntimeError."""
        with self._starting:
            self._cancelled = True
            if self._child is not None:
                self._child.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run_job(self, job: OptimizeJob) -> OptimizeResult:
        while True:
            try:
                result = self._exchange(job)
            except WorkerCrashed as crash:
                if self._cancelled:
                    raise CancelledError from None
                if crash.pass_name not in _SKIPPABLE_PASSES or crash.pass_name in job.skipped_passes:
                    return OptimizeResult(GraphSize(0, 0), (), None, str(crash))
                job = replace(job, skipped_passes={**job.skipped_passes, crash.pass_name: f"crashed: {crash.cause}"})
            else:
                self._stop_child()  # to free its memory; a second job is rare, and starts a child of its own
                return result

    def _exchange(self, job: OptimizeJob) -> OptimizeResult:
        """Send a job and return its result. Raises `WorkerCrashed`, or what the job raised in the child."""
        if self._child is None or self._child.poll() is not None:
            self.start()
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        pass_name = ""
        try:
            pickle.dump(job, child.stdin, pickle.HIGHEST_PROTOCOL)
            child.stdin.flush()
            while isinstance(message := pickle.load(child.stdout), PassStarted):
                pass_name = message.name
        except (EOFError, BrokenPipeError, ConnectionResetError, pickle.UnpicklingError):
            cause = self._describe_exit(child)
            self._stop_child()
            raise WorkerCrashed(pass_name, cause) from None
        if isinstance(message, JobFailed):
            raise message.error
        result: OptimizeResult = message
        return result

    def _describe_exit(self, child: subprocess.Popen[bytes]) -> str:
        status = child.wait()
        if status < 0:
            return signal.Signals(-status).name
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit status {status}" + (f": {sanitize_message(lines[-1])}" if lines else "")

    def _stop_child(self) -> None:
        """Close the pipes of the child, which ends it, and wait until it has ended."""
        child = self._child
        if child is None:
            return
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # from what a dead child did not read
            child.stdin.close()
        child.wait()
        child.stdout.close()
        self._child = None  # only now: until it has ended, `cancel` can kill it
