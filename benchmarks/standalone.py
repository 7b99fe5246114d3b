"""Measure the executable of a bundle against plain onnxruntime in Python, and its server against `package serve`.

python benchmarks/standalone.py [--runs 15] [--seconds 8] [--rounds 3] [--write]

- first prediction: the time from the start of a process to its end with one prediction, and its peak of memory, for the
  digits and a synthetic model of 200 MB. The Python script has numpy and onnxruntime, and the weights inside the model;
  it checks nothing. The executable compares its digests.
- size: the executable against the bundle's archive and onnxruntime's library.
- serving: requests a second of 16 clients (benchmarks/load.c, which needs a C compiler), in JSON and as bytes, and the
  memory (PSS and RSS) of the servers that wait for a request.

Processes and servers take turns, so that noise meets all alike. Ratios are ratios of medians. It needs the digits
(`make demo`) and the native programs (`make runners`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import runtime
import serving
from report import put

from packager.standalone.assemble import make_standalone

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "benchmarks/work/standalone"
PORT = 18900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the results into docs/standalone.md")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    serving.WORK.mkdir(parents=True, exist_ok=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        cases = {
            "digits": runtime.prepare_example("digits", {"image": np.zeros((1, 1, 8, 8), np.float32)}, Path(folder)),
            "200 MB": runtime.prepare_synthetic(0.2, Path(folder)),
        }
        executables = {name: make_executable(case[0], Path(folder) / f"{name}.run") for name, case in cases.items()}
        starts = {name: measure_start(*case[1:], executables[name], arguments.runs) for name, case in cases.items()}
        sizes = {name: measure_size(cases[name][0], path) for name, path in executables.items()}
        served = measure_serving(cases["digits"][0], executables["digits"], arguments.seconds, arguments.rounds)
    results = {"start": starts, "size": sizes, "serving": served}
    print(json.dumps(results, indent=1))
    if arguments.write:
        put("standalone", render(results, arguments.runs, arguments.rounds), "standalone.md")


def make_executable(bundle: Path, target: Path) -> Path:
    make_standalone(bundle, target)
    return target


# -- the first prediction -------------------------------------------------------------------


def measure_start(inline: Path, inputs: Path, executable: Path, runs: int) -> dict[str, float]:
    """Return medians in seconds and MB, and their ratios: executable / Python."""
    commands = {
        "python": [sys.executable, "-c", runtime.PLAIN, str(inline), str(inputs)],
        "executable": [str(executable), "run", "--input", str(inputs), "--output", str(inputs.with_suffix(".out.npz"))],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(runs + 1):  # the first has the files read
        for name, command in commands.items():
            took, peak = run(command)
            if turn:
                seconds[name].append(took)
                memory[name].append(peak)
    result = {f"{name} s": statistics.median(times) for name, times in seconds.items()}
    result |= {f"{name} MB": statistics.median(peaks) for name, peaks in memory.items()}
    result["ratio"] = result["executable s"] / result["python s"]
    result["memory ratio"] = result["executable MB"] / result["python MB"]
    return {name: round(value, 4) for name, value in result.items()}


# A process's peak is never less than the memory of the one that forks it: a small one starts the command.
START = """
import os, sys, time
began = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss / 1024, status)
"""


def run(command: list[str]) -> tuple[float, float]:
    """Run a command from a small process; return its seconds and its peak of memory in MB."""
    started = [sys.executable, "-S", "-E", "-c", START, *command]
    done = subprocess.run(started, capture_output=True, text=True, check=True)
    seconds, peak, status = done.stdout.split()
    if status != "0":
        raise RuntimeError(f"{command[0]}: status {status}\n{done.stderr}")
    return float(seconds), float(peak)


# -- size -----------------------------------------------------------------------------------


def measure_size(bundle: Path, executable: Path) -> dict[str, int]:
    """Return sizes in bytes: the executable, the bundle's archive, onnxruntime's library, and what is beyond them."""
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    archive = executable.with_suffix(".zip")
    subprocess.run([sys.executable, "-m", "packager", "pack", bundle, "-o", archive], check=True, capture_output=True)
    sizes = {"executable": executable, "archive": archive, "library": library}
    result = {name: path.stat().st_size for name, path in sizes.items()}
    result["beyond both"] = result["executable"] - result["archive"] - result["library"]
    return result


# -- serving --------------------------------------------------------------------------------


def measure_serving(bundle: Path, executable: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Return medians by encoding and server, and the memory of the servers that wait."""
    load = serving.build_load()
    (case,) = serving.make_cases(bundle, bundle)[:1]
    path = f"/v2/models/{case.config['name']}/infer"
    commands = {
        "executable": [str(executable), "serve"],
        "package serve": [sys.executable, "-m", "packager", "serve", str(bundle)],
    }
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    memory: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for encoding in ("json", "binary"):
            files = serving.write_requests("packager", encoding, case, path)
            for name, command in commands.items():
                with running(command, files[0]) as (port, process):
                    memory[name].append(resident(process.pid))
                    results.setdefault((encoding, name), []).append(serving.measure(load, port, seconds, files))
    fields = ("per_second", "p50_ms", "p99_ms")
    report = {
        f"{encoding}, {name}": {field: statistics.median(result[field] for result in runs) for field in fields}
        for (encoding, name), runs in results.items()
    }
    report["idle MB"] = {name: round(statistics.median(values), 1) for name, values in memory.items()}
    return report


@contextlib.contextmanager
def running(command: list[str], request: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server on a port of its own until it answers; yields the port and the process."""
    global PORT
    PORT += 1
    log = (WORK / "server.log").open("w")
    process = subprocess.Popen([*command, "--port", str(PORT)], stdout=log, stderr=log)
    try:
        serving.wait_for(PORT, request, [process])
        time.sleep(1)
        yield PORT, process
    finally:
        process.terminate()
        process.wait(30)


def resident(pid: int) -> float:
    """Return the memory in MB that a process has for itself or shares with others (RSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


# -- the page -------------------------------------------------------------------------------


def render(results: dict[str, dict], runs: int, rounds: int) -> str:
    """Return the part of docs/standalone.md."""
    lines = [
        f"Measured by benchmarks/standalone.py on an {platform.machine()} machine with {os.cpu_count()} cores, Python "
        f"{platform.python_version()} and onnxruntime {version('onnxruntime')}: medians of {runs} alternating "
        "processes. The script has numpy and onnxruntime, and checks nothing.",
        "",
        "| first prediction | script | executable | ratio | peak memory, script | executable | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, start in results["start"].items():
        python, executable = (f"{start[f'{way} s'] * 1000:.0f} ms" for way in ("python", "executable"))
        lines.append(
            f"| {name} | {python} | {executable} | {start['ratio']:.2f} "
            f"| {start['python MB']:.0f} MB | {start['executable MB']:.0f} MB | {start['memory ratio']:.2f} |"
        )
    lines += ["", "| size | executable | bundle | library | beyond both |", "| --- | --- | --- | --- | --- |"]
    for name, size in results["size"].items():
        cells = [f"{size[field] / 1e6:.2f} MB" for field in ("executable", "archive", "library", "beyond both")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    served = results["serving"]
    lines += [
        "",
        f"The digits, one row a request, from 16 clients; medians of {rounds} rounds. A server that waits has "
        f"{served['idle MB']['executable']:.0f} MB, and `package serve` {served['idle MB']['package serve']:.0f} MB.",
        "",
        "| encoding | server | requests/s | p50 | p99 | executable / package serve |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for encoding in ("json", "binary"):
        ours, theirs = (served[f"{encoding}, {name}"] for name in ("executable", "package serve"))
        for name, row in (("executable", ours), ("package serve", theirs)):
            ratio = f"{row['per_second'] / theirs['per_second']:.2f}"
            times = f"{row['p50_ms']:.2f} ms | {row['p99_ms']:.2f} ms"
            lines.append(f"| {encoding} | {name} | {row['per_second']:.0f} | {times} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
