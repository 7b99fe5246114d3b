"""What the main process asks of the ONNX side, and what it answers: plain values that can be pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.parity.numerics.verdict import ReferenceCase

NO_IMPROVEMENT = "makes nothing better"
"""The reason of a pass that was dropped because it has nothing to do: recorded, and no news to anybody."""


@dataclass(frozen=True)
class StageRecord:
    """What one pass did: kept or not and why, and the graph's size before and after.

    `max_abs` is its largest error on the one case that it was compared on by itself; the last pass, whose graph
    ships, is compared on all of them.
    """

    name: str
    kept: bool
    verdict: str  # pass | fail | not-checked
    reason: str
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    max_abs: float | None = None


@dataclass(frozen=True)
class ExternalWeight:
    """One tensor in a file of weights: its ONNX dtype, its shape, and its bytes from `offset` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class ExportedGraph:
    """An exported graph. `weights` lie in `path` + ".weights", and are inputs of the graph; else it holds its own."""

    path: Path
    weights: tuple[ExternalWeight, ...] = ()


@dataclass(frozen=True)
class OptimizeJob:
    """What is to be optimized; a pass that fails on `expectations` is dropped before the next one begins.

    Where they are `early`, the last pass is left to whoever judges the graph that ships, on all cases.
    """

    exported: ExportedGraph
    output_path: Path
    simplify: bool
    level: str
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, Sequence[str | int | None]]
    providers: Sequence[str]
    skipped_passes: Mapping[str, str]  # pass → why
    reference_cases: tuple[ReferenceCase, ...] = ()
    probe_only: bool = True  # they are few, and the graph that ships is still to be judged on all


@dataclass(frozen=True)
class GraphSummary:
    """What config.json says of the ONNX model."""

    opset: int
    ir_version: int
    domains: Mapping[str, int]
    nodes: int
    external_data: bool


@dataclass(frozen=True)
class GraphSize:
    """How large a graph is: its nodes, constants not counted, and its bytes with all weights."""

    nodes: int
    bytes: int


@dataclass(frozen=True)
class OptimizeResult:
    """The outcome: the graph at the job's target, or `refused` saying why the exported graph is unusable.

    `disproven` is whether it was compared and is wrong; `max_abs` is the exported graph's, as `Stage` has it.
    """

    before: GraphSize
    stages: tuple[StageRecord, ...]
    summary: GraphSummary | None
    rejection_reason: str = ""
    failed_parity: bool = False
    max_abs: float | None = None
