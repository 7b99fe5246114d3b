"""What the parity gate costs a cold build of MiniLM: docs/parity.md.

    python benchmarks/parity_cost.py [--runs 5]

Builds in turn as ever, and with the gate taken out: two forward passes as any build needs them, and none of the other
cases, evaluations and judgements. The difference is what the gate costs. The seconds of the gate's functions are added
up too, in both processes of the build: a module that Python loads at its start wraps or replaces them.
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
from pathlib import Path

from report import put
from variables import variables

ROOT = Path(__file__).resolve().parent.parent
_TIMED = {
    "packager.parity.reference": ("measure_floor", "early", "measure"),
    "packager.parity.coverage": ("explore", "measure", "still"),
    "packager.runtime.check": ("judge_onnx", "judge_torchscript"),
}
"""The gate's functions, as a build calls them. They do not call each other."""

_SITECUSTOMIZE = '''
import functools, importlib.abc, importlib.machinery, json, os, sys, time

TIMED = json.loads(os.environ["GATE_TIMED"])


def called(module, function):
    return module.rpartition(".")[2] + "." + function


def timed(name, function):
    """Seconds of the wall clock in the function, without those in which it waits for its next case."""
    @functools.wraps(function)
    def call(*given, **named):
        waited = [0.0]

        def counted(cases):
            while True:
                began = time.perf_counter()
                try:
                    case = next(cases)
                except StopIteration:
                    return
                finally:
                    waited[0] += time.perf_counter() - began
                yield case

        given = [counted(one) if hasattr(one, "__next__") else one for one in given]
        began = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            seconds = time.perf_counter() - began - waited[0]
            with open(os.environ["GATE_TIMES"], "a") as stream:  # at once: the command ends without saying goodbye
                stream.write(json.dumps([name, seconds]) + "\\n")

    return call


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in TIMED else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                for function in TIMED[name]:
                    setattr(module, function, timed(called(name, function), getattr(module, function)))

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())

'''
_NO_GATE = """
import dataclasses, importlib.abc, importlib.machinery, sys


def without_gate(name, module):
    if name == "packager.parity.cases.sample_grid":
        grid = module.grid

        def two_cases(project):
            found = grid(project)
            needed = (found.example.name, found.contrast.name)
            return dataclasses.replace(found, cases=tuple(one for one in found.cases if one.name in needed))

        module.grid = two_cases
    elif name == "packager.parity.noise_variants":
        module.evaluations = lambda *given: (module.Evaluation("none", {}),)
    elif name == "packager.parity.reference":
        module.early = lambda *given, **named: ()
        module.check_repeatable = lambda *given: None
    elif name == "packager.parity.coverage":
        from packager.parity.results import (Coverage)

        module.explore = lambda project, source, grid: grid
        module.measure = lambda *given: Coverage(1, 1, {}, "nothing")
    else:
        from packager.parity.numerics.verdict import Judgement

        module.judge_onnx = module.judge_torchscript = lambda *given, **named: Judgement(True, "", {}, None)


NAMES = ("packager.parity.cases.sample_grid", "packager.parity.noise_variants", "packager.parity.reference", "packager.parity.coverage",
         "packager.runtime.check")


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in NAMES else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                without_gate(name, module)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def measure(count: int) -> str:
    """Medians of so many cold builds of MiniLM, with and without the gate in turn."""
    project = ROOT / "examples" / "minilm"
    if not (project / "pretrained").exists():
        subprocess.run([sys.executable, str(project / "fetch.py")], check=True)
    walls, without, spent = [], [], []
    for _ in range(count):
        wall, times = cold_build(project / "package.yaml", _SITECUSTOMIZE)
        walls.append(wall)
        spent.append(_by_function(times))
        without.append(cold_build(project / "package.yaml", _NO_GATE)[0])
    wall, bare = statistics.median(walls), statistics.median(without)
    rows = [(name, statistics.median(one[name] for one in spent)) for name in spent[0]]
    lines = [
        "## Cost of the parity check", "",
        f"Measured by benchmarks/parity_cost.py: medians of {count} cold builds of MiniLM with and without the parity "
        f"check, alternating, on an {platform.machine()} machine with {os.cpu_count()} cores and Python "
        f"{platform.python_version()}.", "",
        "| | seconds | of the build |", "| --- | --- | --- |",
        f"| a cold build | {wall:.2f} | |",
        f"| without the parity check: two forward passes, nothing compared | {bare:.2f} | {bare / wall:.1%} |",
        f"| **the parity check** | {wall - bare:.2f} | {(wall - bare) / wall:.1%} |", "",
        "The time is spent in these functions, in seconds of wall clock, without the time in which they wait for their "
        "next test case. Much of it overlaps with other stages and runs in the build's second process, so the sum is "
        "larger than the cost of the parity check.", "",
        "| | seconds |", "| --- | --- |",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def cold_build(manifest: Path, customize: str) -> tuple[float, str]:
    """The seconds of one build, and what its functions wrote of their times."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "sitecustomize.py").write_text(customize)
        environment = variables(
            PYTHONPATH=os.pathsep.join([scratch, str(ROOT)]),
            GATE_TIMES=f"{scratch}/times",
            GATE_TIMED=json.dumps(_TIMED),
        )
        command = [sys.executable, "-m", "packager", "build", str(manifest), "-o", f"{scratch}/out", "--no-cache"]
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        wall = time.perf_counter() - began
        times = folder / "times"
        return wall, times.read_text() if times.exists() else ""


def _by_function(times: str) -> dict[str, float]:
    spent: defaultdict[str, float] = defaultdict(float)
    for line in times.splitlines():
        name, seconds = json.loads(line)
        spent[name] += seconds
    wanted = [f"{module.rpartition('.')[2]}.{name}" for module, names in _TIMED.items() for name in names]
    missing = [name for name in wanted if name not in spent]
    if missing:
        raise SystemExit(f"the build never called {', '.join(missing)}: nothing was measured")
    return dict(spent)


def main() -> None:
    """Measure, print, and write docs/parity.md."""
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
