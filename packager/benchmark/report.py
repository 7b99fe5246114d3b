"""What `package bench` found: the figures of each variant, the comparisons, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from packager.benchmark.machine import Machine
from packager.benchmark.measure import Measured, Variant
from packager.benchmark.messages import BackendName
from packager.benchmark.plan import Plan
from packager.benchmark.statistics import Comparison, Summary, compare, summarize
from packager.errors import OutputRefused

BASELINE: BackendName = "onnx"
"""The backend that the others are compared with."""


@dataclass(frozen=True)
class LoadedBackend:
    """One backend in a new process: seconds until it was loaded, and the resident memory then; 0 if unknown."""

    load_seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class Row:
    """The figures of one variant; `compared` is ONNX against it, None for ONNX itself, or without its figures."""

    backend: BackendName
    threads: int
    batch: int | None
    sizes: Mapping[str, int]
    summary: Summary
    compared: Comparison | None


@dataclass(frozen=True)
class BenchReport:
    """The result of `package bench`.

    - `backends`: how the measured ones loaded. `not_measured`: why a backend was not opened.
    - `rows`: the variants, by batch, threads and backend. `skipped`: why a variant has no row, by its description.
    - `input_sources`: where the values of the inputs came from, one entry for each case.
    - `seconds`: how long the rounds took.
    """

    name: str
    version: str
    fingerprint: str
    machine: Machine
    batch_dim: str | None
    input_sources: tuple[str, ...]
    backends: Mapping[BackendName, LoadedBackend]
    not_measured: Mapping[BackendName, str]
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]
    rounds: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the object that `package bench --json` prints."""
        return {
            "bundle": {"name": self.name, "version": self.version, "fingerprint": self.fingerprint},
            "machine": asdict(self.machine),
            "inputs": list(self.input_sources),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "backends": {name: asdict(backend) for name, backend in self.backends.items()},
            "not_measured": dict(self.not_measured),
            "measurements": [
                {
                    "backend": row.backend,
                    "threads": row.threads,
                    "batch": row.batch,
                    "sizes": dict(row.sizes),
                    **asdict(row.summary),
                }
                for row in self.rows
            ],
            "comparisons": [
                {
                    "backend": BASELINE,
                    "against": row.backend,
                    "threads": row.threads,
                    "batch": row.batch,
                    **asdict(row.compared),
                    "verdict": row.compared.verdict,
                }
                for row in self.rows
                if row.compared is not None
            ],
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
        }


def save_text(path: Path, text: str) -> None:
    """Write a text to a file. Raises `OutputRefused`."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputRefused(
            str(path), str(error.strerror), "choose another file with --plot", what="the plot"
        ) from None


def make_rows(plan: Plan, measured: Measured) -> tuple[Row, ...]:
    """Compute the figures of every variant that has any, by batch, threads and backend."""
    variants = {variant: None for durations in measured.rounds for variant in durations}
    ordered = sorted(variants, key=lambda variant: (variant.case, variant.threads))  # backends stay in their order
    return tuple(_make_row(plan, measured, variant) for variant in ordered)


def _make_row(plan: Plan, measured: Measured, variant: Variant) -> Row:
    case = plan.cases[variant.case]
    calls = [duration for durations in measured.rounds for duration in durations.get(variant, ())]
    return Row(
        backend=variant.backend,
        threads=variant.threads,
        batch=case.rows if plan.batch_dim is not None else None,
        sizes=case.sizes,
        summary=summarize(calls, case.rows),
        compared=None if variant.backend == BASELINE else _compare_with_baseline(measured, variant),
    )


def _compare_with_baseline(measured: Measured, variant: Variant) -> Comparison | None:
    """Compare ONNX with a variant of a different backend, over the rounds that have both; None if there are none."""
    baseline = Variant(BASELINE, variant.threads, variant.case)
    rounds = [durations for durations in measured.rounds if variant in durations and baseline in durations]
    if not rounds:
        return None
    ours, theirs = ([median(durations[side]) for durations in rounds] for side in (baseline, variant))
    return compare(ours, theirs)


def describe_variant(plan: Plan, variant: Variant) -> str:
    """Return `onnx, 2 threads, batch=8`."""
    sizes = ", ".join(f"{name}={size}" for name, size in plan.cases[variant.case].sizes.items())
    threads = f"{variant.threads} thread{'s' if variant.threads != 1 else ''}"
    return ", ".join([variant.backend, threads, *([sizes] if sizes else [])])
