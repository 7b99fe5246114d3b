"""Measure loading and calling a bundle against a plain onnxruntime script on the same graph, in one run, as ratios.

    python benchmarks/runtime.py [--runs 15] [--large GIGABYTES] [--write]

- cold start: from the start of the process to the first prediction, wall-clock, medians of runs in turn. The plain
  script has the weights inside the model, as exporters write them, and checks nothing; packager verifies.
- a call: what `Bundle.run` adds to `session.run` on the same session, in microseconds.
- workers: the memory of four processes that have the same bundle, as the sum of their proportional set sizes (PSS),
  against one.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from report import put

ROOT = Path(__file__).parent.parent

PEAK = """
if len(sys.argv) > 3:  # what os.wait4 reports is never less than the memory of the process that forks
    from pathlib import Path
    status = Path("/proc/self/status").read_text()
    Path(sys.argv[3]).write_text(status.partition("VmHWM:")[2].split()[0])
"""
PLAIN = f"""
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
session.run(None, dict(np.load(sys.argv[2])))
{PEAK}"""
OURS = f"""
import sys
import numpy as np
import packager
bundle = packager.load(sys.argv[1])
bundle.run(dict(np.load(sys.argv[2])))
{PEAK}"""
HASH = """
import hashlib, sys
from pathlib import Path
for path in sys.argv[1:]:
    with open(path, "rb") as stream:
        hashlib.file_digest(stream, "sha256")
"""
WORKER = """
import sys
import numpy as np
import packager
options = {} if sys.argv[3] == "default" else {"session_options": {"session.disable_prepacking": "1"}}
bundle = packager.load(sys.argv[1], threads=1, **options)
feed = dict(np.load(sys.argv[2]))
if sys.argv[4] == "0":
    bundle.run(feed)
    print("ready", flush=True)
    sys.stdin.readline()
else:
    import os
    children = []
    for _ in range(int(sys.argv[4])):
        read, write = os.pipe()
        if os.fork() == 0:
            bundle.run(feed)
            os.write(write, b"x")
            sys.stdin.readline()
            os._exit(0)
        os.read(read, 1)
    print("ready", flush=True)
    sys.stdin.readline()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--large", type=float, default=0, help="also a model of so many GB")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(ROOT / "packager", quiet=2)  # as an installed package is
    with tempfile.TemporaryDirectory(dir=ROOT / "benchmarks" / "work") as folder:
        cases = {
            "digits": prepare_example("digits", {"image": np.zeros((1, 1, 8, 8), np.float32)}, Path(folder)),
            "minilm": prepare_example(
                "minilm", {name: np.ones((1, 16), np.int64) for name in ("input_ids", "attention_mask")}, Path(folder)
            ),
            "200 MB": prepare_synthetic(0.2, Path(folder)),
        }
        results = {name: {"cold start": measure_cold_start(*case, arguments.runs)} for name, case in cases.items()}
        if arguments.large:
            large = prepare_synthetic(arguments.large, Path(folder))
            results[f"{arguments.large} GB"] = {"cold start": measure_cold_start(*large, 3, hashing=True)}
        results["digits"]["call"] = measure_call(cases["digits"][0], cases["digits"][2])
        results["minilm"]["workers"] = measure_workers(cases["minilm"][0], cases["minilm"][2])
    print(json.dumps(results, indent=1))
    if arguments.write:
        put("runtime", render(results, arguments.runs))


def render(results: dict[str, dict[str, dict[str, float]]], runs: int) -> str:
    """Return the part of docs/benchmarks.md."""
    lines = [
        "## Loading and calling a bundle",
        "",
        f"Measured by benchmarks/runtime.py: medians of {runs} alternating processes, on an {platform.machine()} "
        f"machine with {os.cpu_count()} cores, Python {platform.python_version()} and onnxruntime "
        f"{version('onnxruntime')}. "
        "`plain` is a script with numpy and onnxruntime, and the weights inside the model; it checks nothing. "
        "`packager` is `packager.load`, which verifies. Both are measured from the start of the process to the first "
        "prediction.",
        "",
        "| model | plain | packager | ratio | peak memory, plain | packager | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        start = result["cold start"]
        lines.append(
            f"| {name} | {start['plain s']:.3f} s | {start['packager s']:.3f} s | {start['ratio']:.2f} "
            f"| {start['plain MB']:.0f} MB | {start['packager MB']:.0f} MB | {start['memory ratio']:.2f} |"
        )
    for name, result in results.items():
        start = result["cold start"]
        if "hash s" in start:
            lines += [
                "",
                f"The plain script of {name} maps external weights, as protobuf holds no more than 2 GB. Reading and "
                f"hashing them takes {start['hash s']:.2f} s. "
                f"packager takes {start['against plain and hashing']:.2f} × the sum.",
            ]
    call, workers = results["digits"]["call"], results["minilm"]["workers"]
    lines += [
        "",
        f"A call of the digits model takes {call['run µs']:.1f} µs, where `session.run` takes "
        f"{call['session.run µs']:.1f}: the checks add {call['added µs']:.1f} µs. "
        f"With `check_values=True` it takes {call['run(check_values=True) µs']:.1f}, "
        f"with `out=` {call['run(out=) µs']:.1f}.",
        "",
        "Memory for the weights of MiniLM, as the sum of proportional set sizes, with `threads=1`:",
        "",
        "| workers | one | four | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for title in (name.removesuffix(", ratio") for name in workers if name.endswith(", ratio")):
        one, four = workers[f"{title}, one MB"], workers[f"{title}, four MB"]
        lines.append(f"| {title} | {one:.0f} MB | {four:.0f} MB | {four / one:.2f} |")
    return "\n".join(lines)


def prepare_example(name: str, feed: dict[str, np.ndarray], folder: Path) -> tuple[Path, Path, Path]:
    """Return the bundle of an example, its graph with the weights inside, and inputs."""
    (bundle,) = (path for path in (ROOT / "examples" / name / "dist").iterdir() if path.is_dir())
    inline, inputs = folder / f"{name}.onnx", folder / f"{name}.npz"
    write_inline(bundle / "model.onnx", inline)
    np.savez(inputs, **feed)
    return bundle, inline, inputs


def prepare_synthetic(gigabytes: float, folder: Path) -> tuple[Path, Path, Path]:
    """Build a bundle of one embedding and dense layers, half of the weights each."""
    project = folder / f"synthetic-{gigabytes}"
    project.mkdir()
    layers = max(1, int(gigabytes * 1e9 / 2 / 4 / 1024**2))
    (project / "model.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, layers, rows):\n        super().__init__()\n"
        "        self.table = torch.nn.Embedding(rows, 1024)\n"
        "        self.layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(layers)))\n\n"
        "    def forward(self, ids):\n        return self.layers(self.table(ids))\n"
    )
    rows = int(gigabytes * 1e9 / 2 / 4 / 1024)
    code = (
        f"import sys, torch; sys.path.insert(0, {str(project)!r}); from model import Net; torch.manual_seed(0)\n"
        "from safetensors.torch import save_file\n"
        f"save_file(Net({layers}, {rows}).state_dict(), {str(project / 'weights.safetensors')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    manifest = {
        "schema": 1, "name": "synthetic", "version": "1.0.0",
        "model": {"entry": "model.py:Net", "kwargs": {"layers": layers, "rows": rows}},
        "checkpoint": {"path": "weights.safetensors"},
        "inputs": {"ids": {"dtype": "int64", "shape": ["batch"], "range": [0, rows]}},
        "torchscript": {"method": "none"}, "parity": {"effort": "quick"},
    }  # fmt: skip
    (project / "package.yaml").write_text(json.dumps(manifest))
    command = [
        sys.executable,
        "-m",
        "packager",
        "build",
        str(project / "package.yaml"),
        "-o",
        str(project / "dist"),
        "--no-cache",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (project / "weights.safetensors").unlink()
    bundle, inputs = project / "dist" / "synthetic-1.0.0", project / "inputs.npz"
    np.savez(inputs, ids=np.array([1, 2, 3]))
    inline = project / "inline.onnx"
    if gigabytes < 2:
        write_inline(bundle / "model.onnx", inline)
    else:  # protobuf's limit: the plain script maps external weights, too
        shutil.copy(bundle / "model.onnx", inline)
        os.link(bundle / "model.onnx_data", project / "model.onnx_data")
    return bundle, inline, inputs


def write_inline(source: Path, target: Path) -> None:
    import onnx

    onnx.save(onnx.load(source), target)


def measure_cold_start(
    bundle: Path, inline: Path, inputs: Path, runs: int, *, hashing: bool = False
) -> dict[str, float]:
    commands = {"plain": (PLAIN, inline, inputs), "packager": (OURS, bundle, inputs)}
    if hashing:
        commands["hash"] = (HASH, *(path for path in bundle.iterdir() if path.name.startswith("model.onnx")))
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory = {name: measure_peak(command) for name, command in commands.items() if name != "hash"}
    for _ in range(runs):
        for name, command in commands.items():
            seconds[name].append(run(command))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {f"{name} s": round(median, 3) for name, median in medians.items()}
    result |= {f"{name} MB": round(peak, 1) for name, peak in memory.items()}
    result["ratio"] = round(medians["packager"] / medians["plain"], 3)
    result["memory ratio"] = round(memory["packager"] / memory["plain"], 3)
    if hashing:
        result["against plain and hashing"] = round(medians["packager"] / (medians["plain"] + medians["hash"]), 3)
    return result


def run(command: tuple[str | Path, ...]) -> float:
    """Run a script; return the seconds that it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", *map(str, command)], check=True)
    return time.perf_counter() - start


def measure_peak(command: tuple[str | Path, ...]) -> float:
    """Run a script; return its peak of memory in MB. Its files are in the page cache then."""
    with tempfile.NamedTemporaryFile("r") as stream:
        run((*command, stream.name))
        return int(stream.read()) / 1024


def measure_call(bundle_path: Path, inputs: Path, rounds: int = 300, calls: int = 50) -> dict[str, float]:
    import packager

    bundle = packager.load(bundle_path)
    session, feed = bundle._backend._session, dict(np.load(inputs))
    out = {name: array.copy() for name, array in bundle.run(feed).items()}
    ways = {
        "session.run": lambda: session.run(None, feed),
        "run": lambda: bundle.run(feed),
        "run(out=)": lambda: bundle.run(feed, out=out),
        "run(check_values=True)": lambda: bundle.run(feed, check_values=True),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(calls):
                way()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {f"{name} µs": round(median, 2) for name, median in medians.items()}
    result["added µs"] = round(medians["run"] - medians["session.run"], 2)
    return result


def measure_workers(bundle: Path, inputs: Path) -> dict[str, float]:
    """Return the memory in MB that one and four workers take beyond a process without a model."""
    result = {}
    for title, options, forked in (
        ("spawned", "default", False),
        ("spawned, without prepacking", "shared", False),
        ("forked after load", "default", True),
    ):
        one = sum_memory(bundle, inputs, options, 1, forked)
        four = sum_memory(bundle, inputs, options, 4, forked)
        result |= {f"{title}, one MB": round(one, 1), f"{title}, four MB": round(four, 1)}
        result[f"{title}, ratio"] = round(four / one, 2)
    return result


def sum_memory(bundle: Path, inputs: Path, options: str, count: int, forked: bool) -> float:
    """Sum what maps the weights or holds copies of them, in MB: PSS without that of libraries and the interpreter."""
    starts = 1 if forked else count
    command = [sys.executable, "-c", WORKER, str(bundle), str(inputs), options, str(count if forked else 0)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(starts)]
    base = subprocess.Popen(
        [sys.executable, "-c", "import packager.runtime.loader, onnxruntime; print(); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for process in (*processes, base):
        process.stdout.readline()
    pids = [process.pid for process in processes]
    pids += [
        int(pid)
        for pid in subprocess.run(
            ["pgrep", "-P", ",".join(map(str, pids))], capture_output=True, text=True
        ).stdout.split()
    ]
    total = sum(weights_memory(pid) for pid in pids) - len(processes) * weights_memory(base.pid)
    for process in (*processes, base):
        process.kill()
    for pid in pids:
        subprocess.run(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL)
    return total


def weights_memory(pid: int) -> float:
    """Return the PSS in MB of anonymous memory and of mapped model files."""
    total, counts = 0.0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            name = fields[5] if len(fields) > 5 else ""
            counts = not name or name == "[heap]" or "model.onnx" in name
        elif fields[0] == "Pss:" and counts:
            total += int(fields[1]) / 1024
    return total


if __name__ == "__main__":
    main()
