"""Run a command within limits, and measure its process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """The end of a process: exit status, why it was killed, wall seconds, peak RSS in MB, and its output."""

    status: int
    killed: Literal["timeout", "memory"] | None
    seconds: float
    peak_mb: float
    stdout: str
    stderr: str


def measure(
    command: Sequence[str], folder: Path, logs: Path, variables: Mapping[str, str], seconds: float, memory_mb: float
) -> Run:
    """Run `command` in `folder`, and kill its process group after `seconds` or above `memory_mb`.

    stdout and stderr go to `logs` with the suffixes .out and .err.
    """
    out, err = logs.with_suffix(".out"), logs.with_suffix(".err")
    killed: Literal["timeout", "memory"] | None = None
    peak, began = 0.0, time.perf_counter()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, stdout=stdout, stderr=stderr, env=dict(variables), start_new_session=True
        )
        while process.poll() is None:
            peak = max(peak, tree_mb(process.pid))
            if time.perf_counter() - began > seconds:
                killed = "timeout"
            elif peak > memory_mb:
                killed = "memory"
            if killed:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(SAMPLE_SECONDS)
    elapsed = time.perf_counter() - began
    return Run(process.returncode, killed, elapsed, peak, _read(out), _read(err))


def tree_mb(root: int) -> float:
    """Return the sum of RSS over the process tree in MB, from /proc."""
    page, total, waiting = os.sysconf("SC_PAGE_SIZE"), 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
            for task in os.listdir(f"/proc/{pid}/task"):
                waiting += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except (OSError, IndexError):
            continue  # the process ended after it was listed
    return total / 1e6


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
