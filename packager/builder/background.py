"""Concurrency of a build: two threads beside the main one, which wait for the ONNX worker or save files.

The pipeline hands work to `Background.submit` and asks for the answer where it is needed. No background task waits for
the main thread, and leaving the block with an error kills the worker and drops queued tasks, so a build that fails or
is interrupted ends at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from packager.export.passes.worker import OnnxWorker

_THREADS = 2

Parameters = ParamSpec("Parameters")
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Background:
    """Run tasks of one build in threads, for as long as the `with` block lasts."""

    def __init__(self, worker: OnnxWorker) -> None:
        self._worker = worker
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="build")

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._worker.cancel()  # a task may be waiting for its answer
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(
        self, task: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Future[Result]:
        """Start a task and return the future of its result."""
        return self._threads.submit(task, *arguments, **options)

    def submit_after(self, future: Future[Argument], task: Callable[[Argument], Result]) -> Future[Result]:
        """Start a task on the result of an earlier one, and return the future of its own."""
        return self._threads.submit(lambda: task(future.result()))
