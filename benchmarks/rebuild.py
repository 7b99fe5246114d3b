"""Measure rebuilds after no change, or after a new description, number of samples or opset, against a cold build.

    python benchmarks/rebuild.py [--runs 5]

Every build runs in its own process, and every example has its own cache. The lower bound is a Python process that
imports click, pydantic and yaml, which every command of this kind has to import.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from report import put
from variables import variables

ROOT = Path(__file__).resolve().parent.parent
EDITS = {
    "nothing changed": {},
    "description": {"description": "Another one"},
    "parity.samples": {"parity": {"samples": 40}},
    "opset": {"export": {"opset": 18}},
}


def main() -> None:
    """Measure digits and MiniLM, print, and write this part of docs/benchmarks.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    runs = arguments.parse_args().runs
    base = statistics.median(
        seconds([sys.executable, "-c", "import click, pydantic, yaml"], {}) for _ in range(3 * runs)
    )
    rows = {name: measure(name, runs) for name in ("digits", "minilm")}
    text = render(base, rows, runs)
    print(text)
    put("rebuild", text)


def measure(name: str, runs: int) -> dict[str, float]:
    """Return the median seconds by kind of change."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(shutil.copytree(ROOT / "examples" / name, Path(scratch) / name))
        manifest, out = project / "package.yaml", Path(scratch) / "out"
        original = manifest.read_text()
        environment = {"PACKAGER_CACHE": str(Path(scratch) / "cache")}
        command = [str(Path(sys.executable).with_name("package")), "build", str(manifest), "-o", str(out), "--json"]
        time.sleep(3)  # the digest of a file that has just been written is not cached
        for turn in range(runs + 1):
            shutil.rmtree(environment["PACKAGER_CACHE"], ignore_errors=True)
            round_ = {
                "cold": seconds([*command, "--no-cache"], environment),
                "cold, filling the cache": seconds(command, environment, cached=False),
            }
            time.sleep(3)
            seconds(command, environment, cached=True)
            for edit, fields in EDITS.items():
                manifest.write_text(yaml.safe_dump({**yaml.safe_load(original), **fields}, sort_keys=False))
                if not fields:
                    manifest.write_text(original)
                round_[edit] = seconds(command, environment, cached=not fields)
            manifest.write_text(original)
            if turn > 0:
                for what, took in round_.items():
                    found.setdefault(what, []).append(took)
    return {what: statistics.median(times) for what, times in found.items()}


def seconds(command: list[str], environment: dict[str, str], *, cached: bool | None = None) -> float:
    """Return the wall-clock seconds of one process; `cached` says whether its bundle must come from the cache."""
    began = time.perf_counter()
    done = subprocess.run(command, env=variables(**environment), check=True, capture_output=True, text=True)
    took = time.perf_counter() - began
    if cached is not None and json.loads(done.stdout)["cached"] != cached:
        raise SystemExit(f"{command}: `cached` should be {cached}: {done.stdout}")
    return took


def render(base: float, rows: dict[str, dict[str, float]], runs: int) -> str:
    """Return this part of docs/benchmarks.md."""
    lines = [
        "## Rebuilds", "",
        f"Measured by benchmarks/rebuild.py: medians of {runs} alternating processes, on an {platform.machine()} "
        f"machine with {os.cpu_count()} cores and Python {platform.python_version()}. A Python process that imports "
        f"click, pydantic and yaml took {base:.3f} s. `cold` is `--no-cache`. Each of the others, except `cold, "
        "filling the cache`, starts from the cache that a build of the unchanged manifest filled.", "",
        "| | " + " | ".join(f"{name} | vs. cold" for name in rows) + " |",
        "| --- |" + " --- | --- |" * len(rows),
    ]  # fmt: skip
    for what in next(iter(rows.values())):
        cells = [f"{row[what]:.2f} s | {row[what] / row['cold']:.3f}" for row in rows.values()]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    ratios = ", ".join(f"{name} {row['nothing changed'] / base:.2f}" for name, row in rows.items())
    lines += ["", f"Nothing changed, as a multiple of that Python process: {ratios}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
