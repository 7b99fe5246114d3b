"""A request on its way through the queue of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Done = Callable[[Arrays | Exception], None]


class Job:
    """A request that waits or runs: `done` is called once, in the thread of the event loop.

    `size` is the request's own batch, and `key` is equal for requests that may be joined; None never is.
    """

    __slots__ = ("deadline", "done", "elements", "finished", "inputs", "key", "queued_at", "size")

    def __init__(self, inputs: Arrays, size: int, key: object, done: Done) -> None:
        self.inputs = inputs
        self.elements = sum([array.size for array in inputs.values()])
        self.size = size
        self.key = key
        self.done = done
        self.finished = False
        self.queued_at = 0
        self.deadline = 0.0

    def finish(self, result: Arrays | Exception) -> None:
        """Pass the result on, unless the job has ended at its time limit."""
        if not self.finished:
            self.finished = True
            self.done(result)
