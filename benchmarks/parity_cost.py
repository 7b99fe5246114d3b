"""Measure what the parity check costs a cold build of MiniLM, for docs/parity.md.

    python benchmarks/parity_cost.py [--runs 5] [--no-write]

Builds alternate: one as usual, and one without the parity check. The latter still runs the two forward passes that
every build needs, but no other test cases, no evaluations and no checks. The difference is the cost of the check. The
seconds spent in the functions of the check are added up too, in both processes of the build: a module that Python
loads at its start (sitecustomize) wraps or replaces the functions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from report import put
from variables import variables

ROOT = Path(__file__).resolve().parent.parent
_CHECK_ONNX = "check.check_onnx"
_TIMED = {
    "packager.parity.cost": {"count_forward_cost": "cost.count_forward_cost"},
    "packager.parity.reference": {
        "measure_noise": "reference.measure_noise",
        "measure_probe": "reference.measure_probe",
        "measure_reference": "reference.measure_reference",
    },
    "packager.parity.coverage": {
        "add_extra_cases": "coverage.add_extra_cases",
        "measure_coverage": "coverage.measure_coverage",
        "count_constant_channels": "coverage.count_constant_channels",
    },
    "packager.runtime.check": {
        "check_onnx": _CHECK_ONNX,
        "open_onnx_session": _CHECK_ONNX,
        "check_onnx_session": _CHECK_ONNX,
        "check_torchscript": "check.check_torchscript",
    },
}
"""The functions of the parity check that a build calls, by module, each with its row in the table.

`check_onnx` opens a session and checks it. A build also takes these two steps one by one, so they share its row. Only
the outermost call counts.
"""

_ROWS = {row for rows in _TIMED.values() for row in rows.values()}
_REPLACED = (
    "packager.parity.cases.sample_grid",
    "packager.parity.cost",
    "packager.parity.forward",
    "packager.parity.noise_variants",
    "packager.parity.reference",
    "packager.parity.coverage",
    "packager.runtime.check",
)
"""The modules whose functions a build without the parity check replaces."""

_SITECUSTOMIZE = '''
import functools, importlib.abc, importlib.machinery, json, os, sys, threading, time

TIMED = json.loads(os.environ["PARITY_TIMED"])
running = threading.local()


def timed(row, function):
    """Add the wall-clock seconds of each call to the file of times, unless another timed function makes the call."""
    @functools.wraps(function)
    def call(*arguments, **keywords):
        if getattr(running, "timed", False):
            return function(*arguments, **keywords)
        running.timed = True
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds = time.perf_counter() - start
            running.timed = False
            with open(os.environ["PARITY_TIMES"], "a") as stream:  # at once: both processes end without cleaning up
                stream.write(json.dumps([row, seconds]) + "\\n")

    return call


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in TIMED else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                for function, row in TIMED[name].items():
                    setattr(module, function, timed(row, getattr(module, function)))

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''
_NO_CHECK = """
import dataclasses, importlib.abc, importlib.machinery, json, os, sys


def keep_two_cases(module):
    build_grid = module.build_grid

    def build_small_grid(project):
        grid = build_grid(project)
        needed = (grid.example_case.name, grid.probe_case.name)
        return dataclasses.replace(grid, cases=tuple(case for case in grid.cases if case.name in needed))

    return {"build_grid": build_small_grid}


def skip_count(module):
    return {"count_forward_cost": lambda *arguments: module.ForwardCost(0, 0.0)}


def skip_repetition(module):
    return {"check_repeatable": lambda *arguments: None}


def skip_evaluations(module):
    return {"evaluate_variants": lambda *arguments: (module.Evaluation("none", {}),)}


def skip_probe(module):
    return {"measure_probe": lambda *arguments, **keywords: ()}


def skip_coverage(module):
    return {
        "add_extra_cases": lambda project, model, grid, cost: grid,
        "measure_coverage": lambda *arguments: module.ChannelCoverage(1, 1, {}, "nothing"),
    }


def skip_checks(module):
    def passed(*arguments, **keywords):
        return module.ParityResult(True, "", {}, None)

    names = ("check_onnx", "open_onnx_session", "check_onnx_session", "check_torchscript")
    return dict.fromkeys(names, passed)


CHANGES = {
    "packager.parity.cases.sample_grid": keep_two_cases,
    "packager.parity.cost": skip_count,
    "packager.parity.forward": skip_repetition,
    "packager.parity.noise_variants": skip_evaluations,
    "packager.parity.reference": skip_probe,
    "packager.parity.coverage": skip_coverage,
    "packager.runtime.check": skip_checks,
}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in CHANGES else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                for function, replacement in CHANGES[name](module).items():
                    getattr(module, function)  # raises an error if it has a different name by now
                    setattr(module, function, replacement)
                with open(os.environ["PARITY_TIMES"], "a") as stream:
                    stream.write(json.dumps([name, 0.0]) + "\\n")

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def measure(count: int) -> str:
    """Build MiniLM `count` times with and without the parity check, and return the medians as Markdown."""
    project = ROOT / "examples" / "minilm"
    if not (project / "pretrained").exists():
        subprocess.run([sys.executable, str(project / "fetch.py")], check=True)
    checked, unchecked, spent = [], [], []
    for _ in range(count):
        wall, seconds = cold_build(project / "package.yaml", _SITECUSTOMIZE, _ROWS)
        checked.append(wall)
        spent.append(seconds)
        unchecked.append(cold_build(project / "package.yaml", _NO_CHECK, _REPLACED)[0])
    wall, bare = statistics.median(checked), statistics.median(unchecked)
    rows = [(row, statistics.median(seconds[row] for seconds in spent)) for row in spent[0]]
    lines = [
        "## Cost of the parity check", "",
        f"Measured by benchmarks/parity_cost.py: medians of {count} cold builds of MiniLM with and without the parity "
        f"check, alternating, on an {platform.machine()} machine with {os.cpu_count()} cores and Python "
        f"{platform.python_version()}.", "",
        "| | seconds | of the build |", "| --- | --- | --- |",
        f"| a cold build | {wall:.2f} | |",
        f"| without the parity check: two forward passes, nothing compared | {bare:.2f} | {bare / wall:.1%} |",
        f"| **the parity check** | {wall - bare:.2f} | {(wall - bare) / wall:.1%} |", "",
        "The time is spent in these functions, in seconds of wall clock. Much of it overlaps with other stages and "
        "runs in the build's second process, so the sum is larger than the cost of the parity check.", "",
        "| | seconds |", "| --- | --- |",
        *(f"| {row} | {seconds:.2f} |" for row, seconds in rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def cold_build(manifest: Path, customize: str, expected: Iterable[str]) -> tuple[float, dict[str, float]]:
    """Build once without the cache, with `customize` as sitecustomize.py.

    Returns the seconds of the build, and those that sitecustomize.py recorded, by name. All `expected` names must be
    among them: otherwise something has a different name by now, and the measurement would be wrong.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "sitecustomize.py").write_text(customize)
        times = folder / "times"
        times.touch()
        environment = variables(
            PYTHONPATH=os.pathsep.join([scratch, str(ROOT)]), PARITY_TIMES=str(times), PARITY_TIMED=json.dumps(_TIMED)
        )
        command = [sys.executable, "-m", "packager", "build", str(manifest), "-o", f"{scratch}/out", "--no-cache"]
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        wall = time.perf_counter() - start
        recorded: defaultdict[str, float] = defaultdict(float)
        for line in times.read_text().splitlines():
            name, seconds = json.loads(line)
            recorded[name] += seconds
    missing = [name for name in expected if name not in recorded]
    if missing:
        raise SystemExit(f"the build never reached {', '.join(missing)}: nothing was measured")
    return wall, dict(recorded)


def main() -> None:
    """Measure, print, and write this part of docs/parity.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--no-write", action="store_true", help="print, and leave docs/parity.md as it is")
    options = arguments.parse_args()
    text = measure(options.runs)
    print(text)
    if not options.no_write:
        put("parity_cost", text, "parity.md")


if __name__ == "__main__":
    main()
