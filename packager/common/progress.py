"""The progress of a build: frozen events, passed to a listener as they happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum


class StageName(str, Enum):
    """The stages of a build, and of a benchmark, by the names that users read, in progress lines and in `--json`."""

    DOWNLOAD = "download"
    IMPORT = "import"
    SOURCE = "source"
    NOISE = "noise"
    TRACE = "trace"
    EXPORT = "export"
    REFERENCE = "reference"
    TORCHSCRIPT = "torchscript"
    ONNX = "onnx"
    WHERE = "where"
    BUNDLE = "bundle"
    CHECK = "check"
    RESTORE = "restore"
    ARCHIVE = "archive"
    LOAD = "load"
    MEASURE = "measure"

    __str__ = str.__str__  # f"{stage}" differs between versions of Python for an Enum that is a str


@dataclass(frozen=True)
class StageStarted:
    """A stage has started."""

    stage: StageName


@dataclass(frozen=True)
class StageFinished:
    """A stage has succeeded, after `seconds` of wall-clock time; repeated runs of a stage add up."""

    stage: StageName
    seconds: float


@dataclass(frozen=True)
class Note:
    """Something the user should know: which exporter was chosen, what was dropped and why."""

    message: str


@dataclass(frozen=True)
class StageProgressed:
    """A stage has moved `done` of `total` bytes; `total` is None while the size is unknown."""

    stage: StageName
    done: int
    total: int | None


@dataclass(frozen=True)
class StageCached:
    """A stage was skipped because its result came from the cache."""

    stage: StageName


@dataclass(frozen=True)
class StageStep:
    """A long stage has begun step `number` of `steps`; the later ones may turn out not to be needed."""

    stage: StageName
    number: int
    steps: int
    description: str


Event = StageStarted | StageFinished | StageProgressed | StageStep | StageCached | Note
Listener = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Ignore an event: the listener for callers that want no progress."""


class StageReporter:
    """Reports stages to a listener, and records how long each took (`seconds`), which were `cached`, and `notes`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.seconds: dict[str, float] = {}
        self.cached: set[str] = set()
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
        """Report the start of a stage, run the block, and report the end unless the block raises."""
        self._listener(StageStarted(name))
        began = time.perf_counter()
        yield
        self.seconds[name.value] = self.seconds.get(name.value, 0.0) + time.perf_counter() - began
        self._listener(StageFinished(name, self.seconds[name.value]))

    def report_progress(self, name: StageName, done: int, total: int | None) -> None:
        """Report that a stage has moved `done` of `total` bytes; `total` is None while the size is unknown."""
        self._listener(StageProgressed(name, done, total))

    def report_step(self, name: StageName, number: int, steps: int, description: str) -> None:
        """Report that a long stage has begun step `number` of `steps`."""
        self._listener(StageStep(name, number, steps, description))

    def report_cached(self, name: StageName) -> None:
        """Report a stage whose result came from the cache; it counts as zero seconds."""
        self.seconds[name.value] = 0.0
        self.cached.add(name.value)
        self._listener(StageCached(name))

    def report_note(self, message: str) -> None:
        """Report something the user should know."""
        self.notes.append(message)
        self._listener(Note(message))
