"""The messages between `package bench` and its measuring processes: frozen values, sent as pickles.

A measuring process runs the model with the rights of its parent, so the pickles that it sends give it no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packager.common.array_files import Array
from packager.errors import PackagerError

BackendName = Literal["onnx", "torchscript", "torch-export", "eager"]


@dataclass(frozen=True)
class OpenRequest:
    """The first message to a process: what to open.

    - `bundle`, `fingerprint`, `config`: the bundle, which has been checked and must not have changed since, and its
      config.json.
    - `manifest`: the project of the eager module; None for the other backends.
    - `threads`: the numbers of threads that will be asked for; the last is the one that `Opened` describes.
    - `inputs`: arrays by input name, one mapping for each case.
    """

    backend: BackendName
    bundle: Path
    fingerprint: str
    config: Mapping[str, Any]
    manifest: Path | None
    threads: tuple[int, ...]
    inputs: tuple[Mapping[str, Array], ...]


@dataclass(frozen=True)
class Opened:
    """The answer to a request: the backend is ready.

    - `resident_bytes`: the resident memory of the process afterwards; 0 if the system does not say.
    - `notes`: what a reader of the figures should know, one sentence each.
    """

    resident_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """Ask for predictions: on the case with this index, with this number of threads, for so many seconds."""

    case: int
    threads: int
    seconds: float


@dataclass(frozen=True)
class Timings:
    """The answer to a turn: how long each call took, at least one."""

    nanoseconds: tuple[int, ...]


@dataclass(frozen=True)
class Failed:
    """The answer if the backend could not be opened or a call raised: the error, or the first line of a library's."""

    error: PackagerError | str
