"""What a build says of itself while it runs: frozen events, handed to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Started:
    """A stage began."""

    stage: str


@dataclass(frozen=True)
class Finished:
    """A stage ended well after so many seconds of the wall clock."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Told:
    """Something the user should know: which exporter was taken, what was dropped and why."""

    message: str


@dataclass(frozen=True)
class Progressed:
    """A stage that moves bytes has come so far; `total` is None where nobody knows."""

    stage: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Recalled:
    """A stage was not done: the cache had what it gives."""

    stage: str


Event = Started | Finished | Progressed | Recalled | Told
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""


class Stages:
    """Announces stages to a listener and remembers how long each took."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.seconds: dict[str, float] = {}
        self.recalled: set[str] = set()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage, run the block, announce its end."""
        self._listener(Started(name))
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self._listener(Finished(name, self.seconds[name]))

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Say how many bytes a stage has moved."""
        self._listener(Progressed(name, done, total))

    def recall(self, name: str) -> None:
        """Announce a stage whose outcome the cache had."""
        self.seconds[name] = 0.0
        self.recalled.add(name)
        self._listener(Recalled(name))

    def tell(self, message: str) -> None:
        """Say something the user should know."""
        self._listener(Told(message))
