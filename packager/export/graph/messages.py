"""The messages between the main process and the ONNX worker: frozen dataclasses that can be pickled.

The worker needs neither torch nor pydantic, so nothing here imports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from packager.parity.numerics.verdict import ReferenceCase

Verdict = Literal["pass", "fail", "not-checked"]

NO_IMPROVEMENT = "no improvement"
"""The reason of a pass that was dropped because it had nothing to do: recorded, and not worth a note to the user."""

SESSION_STEP = "onnxruntime"
"""The step in which the worker opens a session, as the build will."""


class _JsonFloatSchema:
    """Describe a float to pydantic as a number, or as the string that stands for NaN or an infinity."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


JsonFloat = Annotated[float, _JsonFloatSchema()]


@dataclass(frozen=True)
class StageRecord:
    """One step on the way. A kept stage passes because what ships contains it and was proven.

    `max_abs` is its own largest error on the one case that is known by then; null where it was not compared by itself.
    """

    # For evidence/parity.json, whose model in bundle.records contains this class.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid", "ser_json_inf_nan": "strings"}

    name: str
    kept: bool
    verdict: Verdict
    reason: str
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    max_abs: JsonFloat | None


@dataclass(frozen=True)
class ExternalWeight:
    """One tensor in a file of weights: its ONNX dtype (`FLOAT`), its shape, and its bytes from `offset` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class ExportedGraph:
    """An exported graph in the file `path`.

    With `weights`, they lie in the file `path` + ".weights" and the graph declares them as inputs. Without, the
    graph holds its own.
    """

    path: Path
    weights: tuple[ExternalWeight, ...] = ()


@dataclass(frozen=True)
class OptimizeJob:
    """A request to optimize an exported graph and write it to `output_path`.

    `inputs` and `outputs` are the shapes that the graph must have: a size, the name of a dynamic dim, or None where
    an output's dim depends on more. A pass whose graph fails on `reference_cases` is dropped before the next one
    runs. With `probe_only` those are the few cases known so far: the last pass is not checked here, because the
    graph that ships is checked on all cases later.
    """

    exported: ExportedGraph
    output_path: Path
    simplify: bool
    level: str  # none | basic | extended
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, Sequence[str | int | None]]
    providers: Sequence[str]
    skipped_passes: Mapping[str, str]  # pass → reason
    reference_cases: tuple[ReferenceCase, ...] = ()
    probe_only: bool = True


@dataclass(frozen=True)
class GraphSummary:
    """The facts about the ONNX model that config.json records; `nodes` includes subgraphs, but no constants."""

    opset: int
    ir_version: int
    domains: Mapping[str, int]
    nodes: int
    external_data: bool


@dataclass(frozen=True)
class GraphSize:
    """The size of a graph: its nodes, constants not counted, and its bytes with all weights."""

    nodes: int
    bytes: int


@dataclass(frozen=True)
class OptimizeResult:
    """The outcome of a job: the graph in the job's `output_path`, or why the exported graph is unusable.

    `before` is the size of the exported graph and `max_abs` its largest error on the job's cases, None where there
    were none. With a `rejection_reason` there is no `summary`; `failed_parity` then tells a graph that was compared
    and is wrong from one that could not be compared, and `failed_cases` names the cases on which its values are.
    """

    before: GraphSize
    stages: tuple[StageRecord, ...]
    summary: GraphSummary | None
    rejection_reason: str = ""
    failed_parity: bool = False
    failed_cases: tuple[str, ...] = ()
    max_abs: float | None = None


@dataclass(frozen=True)
class PassStarted:
    """The worker begins a pass: after a crash, the last of these names the pass that crashed."""

    name: str


@dataclass(frozen=True)
class JobFailed:
    """A job raised `error`, which the main process raises again."""

    error: Exception
