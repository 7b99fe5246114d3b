"""Build the record of a checkpoint, which becomes its checkpoint.json together with the digests of its files."""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from packager.errors import StateNotExpressible


def build_record(
    *, name: str, version: str, step: int, epoch: int | None, metrics: Mapping[str, Any], revision: str | None,
    parameters: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a checkpoint that is saved now, ready for JSON.

    `parameters` counts values. Raises `StateNotExpressible` for a metric that is not a number.
    """
    return {
        "schema": 1,
        "name": name,
        "version": version,
        "step": step,
        "epoch": epoch,
        "metrics": {metric: _to_json_number(metric, value) for metric, value in metrics.items()},
        "created": datetime.now(timezone.utc).isoformat(),
        "revision": revision,
        "parameters": parameters,
    }


def history_line(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the history of later checkpoints keeps of a record."""
    return {name: record[name] for name in ("step", "epoch", "metrics")}


def read_git_revision() -> str | None:
    """Return the commit that the working directory is at; None if there is none, or no git."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


def _to_json_number(name: str, metric: Any) -> float | str:
    """Return a metric for JSON. It has no NaN and no infinity: they are written as Python spells them."""
    try:
        value = float(metric)
    except (TypeError, ValueError, RuntimeError):
        raise StateNotExpressible(f"metrics.{name}", f"a {type(metric).__qualname__}, not a number") from None
    return value if math.isfinite(value) else str(value)
