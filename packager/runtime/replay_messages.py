"""What the process that verifies a bundle and the child that replays its evidence send to each other, as JSON.

The parent sends one request. The child announces every step, and answers with all that it knows whenever it has
finished with a model, so that a later crash does not lose it. A model may have taken over the child: the parent checks
the form of every message, and never unpickles one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from packager.bundle.files import Location

_STRICT = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay.

    - `config`: config.json, whose artifacts are those to be run and no others.
    - `locations`: where the child finds the files of the bundle, in descriptors that it inherits.
    - `digests`: the SHA-256 of those that it reads.
    - `parent`: the process that the child must not outlive.
    """

    config: Mapping[str, Any]
    locations: Mapping[str, Location]
    digests: Mapping[str, str]
    parent: int


@dataclass(frozen=True)
class Step:
    """What the child begins to do: `subject` is a backend or "evidence", and `activity` ends a sentence on it."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    subject: str
    activity: str


@dataclass(frozen=True)
class BackendVerdict:
    """The verdict on a backend, and notes that say why."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    verdict: Literal["pass", "fail", "not-checked"]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplayAnswer:
    """What the replay has shown so far.

    - `problems`: one line for each difference between config.json, the model and the evidence.
    - `evidence_problem`: why the evidence cannot be read; empty if it can.
    - `backends`: the verdicts by backend.
    - `complete`: whether nothing is left to be done.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    problems: tuple[str, ...] = ()
    evidence_problem: str = ""
    backends: Mapping[str, BackendVerdict] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class ReplayFailed:
    """An exception that the child did not expect."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    error: str
