"""What a build says of itself while it runs: frozen events, handed to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class StageStarted:
    """A stage began."""

    stage: str


@dataclass(frozen=True)
class StageFinished:
    """A stage ended well after so many seconds of the wall clock."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Note:
    """Something the user should know: which exporter was taken, what was dropped and why."""

    message: str


@dataclass(frozen=True)
class StageProgressed:
    """A stage that moves bytes has come so far; `total` is None where nobody knows."""

    stage: str
    done: int
    total: int | None


@dataclass(frozen=True)
class StageCached:
    """A stage was not done: the cache had what it gives."""

    stage: str


Event = StageStarted | StageFinished | StageProgressed | StageCached | Note
Listener = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """A listener that does nothing."""


class StageReporter:
    """Announces stages to a listener and remembers how long each took."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.seconds: dict[str, float] = {}
        self.cached: set[str] = set()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage, run the block, announce its end."""
        self._listener(StageStarted(name))
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self._listener(StageFinished(name, self.seconds[name]))

    def report_progress(self, name: str, done: int, total: int | None) -> None:
        """Say how many bytes a stage has moved."""
        self._listener(StageProgressed(name, done, total))

    def report_cached(self, name: str) -> None:
        """Announce a stage whose outcome the cache had."""
        self.seconds[name] = 0.0
        self.cached.add(name)
        self._listener(StageCached(name))

    def report_note(self, message: str) -> None:
        """Say something the user should know."""
        self._listener(Note(message))
