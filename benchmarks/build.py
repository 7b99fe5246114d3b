"""Measure the cost of a cold build and of a prediction, compared with other tools, for docs/benchmarks.md.

    python benchmarks/build.py [--runs 5] [--no-write]

Builds: `package build --no-cache`, `optimum-cli export onnx` and a hand-written script with the same steps alternate,
each in its own process, on ResNet-50 (random weights, saved once) and on MiniLM. Predictions: the MiniLM graph that
ships, the plain torch.export graph, the eager module and TorchScript, at three shapes.

Packager and Optimum each get their own environment under benchmarks/work, with the same versions of torch,
transformers, onnx and onnxruntime: importing transformers takes most of the time of both, and neither can change that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import venv
from dataclasses import dataclass
from pathlib import Path

from report import put
from variables import variables

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = HERE / "work"
TRANSFORMERS = "transformers==4.57.6"  # the newest that optimum-onnx 0.1.0 accepts
SAMPLE_SECONDS = 0.01
LEAST_ENGINE_RUNS = 9  # all predictions of one process may be a few per cent faster or slower than those of the next


@dataclass(frozen=True)
class Run:
    """The cost of one process tree: wall-clock seconds, and the peak of the sum of its processes' RSS in MB."""

    seconds: float
    peak_mb: float


def main() -> None:
    """Set up, measure, print, and write this part of docs/benchmarks.md."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--no-write", action="store_true", help="print, and leave docs/benchmarks.md as it is")
    options = arguments.parse_args()
    WORK.mkdir(exist_ok=True)
    own = environment("own", ["-e", f"{ROOT}[build]", TRANSFORMERS], constrained=True)
    peer = environment("peer", ["optimum-onnx==0.1.0", "onnx", "onnxruntime", TRANSFORMERS], constrained=True)
    projects = prepare(own)
    rows = {name: builds(name, folder, own, peer, options.runs) for name, folder in projects.items()}
    speeds = inference(own, projects["minilm"], max(options.runs, LEAST_ENGINE_RUNS))
    text = render(rows, speeds, options.runs)
    print(text)
    if not options.no_write:
        put("build", text)


def environment(name: str, packages: list[str], *, constrained: bool) -> Path:
    """Create a virtual environment under work/ unless it exists, and return its bin folder."""
    folder = WORK / name
    ready = folder / ".ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        versions = WORK / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        loose = ("transformers", "huggingface_hub", "tokenizers", "hf-xet", "fsspec", "typer")
        versions.write_text("\n".join(line for line in lines if not line.startswith(loose)) + "\n")
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["-c", str(versions)] if constrained else []
        subprocess.run([*pip, "torch", "hatchling", "editables"], check=True)
        subprocess.run([*pip, "--no-build-isolation", *packages], check=True)
        ready.touch()
    return folder / "bin"


def prepare(own: Path) -> dict[str, Path]:
    """Prepare both projects, each with its checkpoint in a Hugging Face folder for Optimum; returns them by name."""
    resnet = WORK / "resnet50"
    if not (resnet / "pretrained" / "model.safetensors").exists():
        resnet.mkdir(exist_ok=True)
        code = (
            "import torch, transformers; torch.manual_seed(0);"
            "transformers.ResNetForImageClassification(transformers.ResNetConfig()).save_pretrained('pretrained')"
        )
        subprocess.run([own / "python", "-c", code], cwd=resnet, check=True)
    shutil.copyfile(HERE / "resnet50" / "model.py", resnet / "model.py")
    shutil.copyfile(HERE / "resnet50" / "package.yaml", resnet / "package.yaml")
    minilm = WORK / "minilm"
    shutil.copytree(ROOT / "examples" / "minilm", minilm, dirs_exist_ok=True)
    if not (minilm / "pretrained" / "model.safetensors").exists():
        subprocess.run([sys.executable, "fetch.py"], cwd=minilm, check=True)
    return {"resnet50": resnet, "minilm": minilm}


def builds(name: str, folder: Path, own: Path, peer: Path, runs: int) -> dict[str, list[Run]]:
    """Run every tool `runs` times, alternating, after one round that only warms the disk cache."""
    task = {"resnet50": "image-classification", "minilm": "feature-extraction"}[name]
    pretrained = str(folder / "pretrained")
    commands = {
        "package build": [own / "package", "build", "package.yaml", "--no-cache", "-o", str(WORK / "dist")],
        "optimum-cli": [
            peer / "optimum-cli", "export", "onnx", "--model", pretrained, "--task", task, str(WORK / "optimum")
        ],
        "by hand": [own / "python", str(HERE / "by_hand.py"), name, str(WORK / "by-hand")],
    }  # fmt: skip
    measured: dict[str, list[Run]] = {tool: [] for tool in commands}
    for turn in range(runs + 1):
        for tool, command in commands.items():
            shutil.rmtree(WORK / "optimum", ignore_errors=True)
            run = measure([str(one) for one in command], folder)
            print(f"{name} {tool}: {run.seconds:.2f} s, {run.peak_mb:.0f} MB", file=sys.stderr, flush=True)
            if turn > 0:
                measured[tool].append(run)
    return measured


def measure(command: list[str], folder: Path) -> Run:
    """Run a command in a folder and measure its process tree."""
    began = time.perf_counter()
    with (WORK / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=variables(HF_HUB_OFFLINE="1"))
        peak = [0]
        watcher = threading.Thread(target=watch, args=(process, peak))
        watcher.start()
        status = process.wait()
        seconds = time.perf_counter() - began
        watcher.join()
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{(WORK / 'log').read_text()}")
    return Run(seconds, peak[0] / 1e6)


def watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Keep the largest sum of RSS over the process tree in `peak`, in bytes.

    It reads /proc directly, which slows the measured processes less than a library would.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    while process.returncode is None:
        total, waiting = 0, [process.pid]
        while waiting:
            pid = waiting.pop()
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
                for task in os.listdir(f"/proc/{pid}/task"):
                    waiting += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            except (OSError, IndexError):
                continue  # the process ended after it was listed
        peak[0] = max(peak[0], total)
        time.sleep(SAMPLE_SECONDS)


def inference(own: Path, folder: Path, runs: int) -> dict[str, list[float]]:
    """Return the milliseconds of a prediction by engine, at the three shapes: medians over `runs` processes."""
    bundle = WORK / "dist" / "minilm-1.0.0"
    engines = ("shipped", "torch-export", "eager", "torchscript")
    subprocess.run([own / "python", str(HERE / "predict.py"), "prepare", str(bundle)], cwd=folder, check=True)
    found: dict[str, list[list[float]]] = {engine: [] for engine in engines}
    for _ in range(runs):
        for engine in engines:
            command = [own / "python", str(HERE / "predict.py"), engine, str(bundle)]
            printed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
            found[engine].append(json.loads(printed.splitlines()[-1]))
    return {engine: [statistics.median(column) for column in zip(*rows, strict=True)] for engine, rows in found.items()}


def render(rows: dict[str, dict[str, list[Run]]], speeds: dict[str, list[float]], runs: int) -> str:
    """Return this part of docs/benchmarks.md."""
    lines = [
        "## Cold builds and predictions", "",
        f"Measured by `make bench`: medians of {runs} alternating runs, each in its own process, on an "
        f"{platform.machine()} machine with {os.cpu_count()} cores and Python {platform.python_version()}. Ratios are "
        "ratios of medians within this measurement. Both environments have the same torch, onnx, onnxruntime and "
        f"{TRANSFORMERS.replace('==', ' ')}. Peak RSS is the sum over the process tree, sampled every "
        f"{SAMPLE_SECONDS * 1000:.0f} ms.", "",
        "### A cold build", "",
        "`package build --no-cache` exports, simplifies, optimizes, makes the fallback, and proves both artifacts on "
        "every test case. `optimum-cli export onnx` exports, and compares one random batch. `by hand` is a script that "
        "takes the same steps as packager, using the libraries directly (benchmarks/by_hand.py).", "",
    ]  # fmt: skip
    for name, tools in rows.items():
        base = tools["optimum-cli"]
        lines += [
            f"#### {name}",
            "",
            "| | wall | vs. Optimum | peak RSS | vs. Optimum |",
            "| --- | --- | --- | --- | --- |",
        ]
        for tool, measured in tools.items():
            seconds, peak = median(measured)
            base_seconds, base_peak = median(base)
            lines.append(
                f"| {tool} | {seconds:.2f} s | {seconds / base_seconds:.2f} | {peak:.0f} MB | {peak / base_peak:.2f} |"
            )
        lines.append("")
    lines += [
        "### A prediction", "",
        f"MiniLM with 2 threads, in milliseconds at (batch, sequence): medians of {max(runs, LEAST_ENGINE_RUNS)} "
        "alternating processes. `shipped` is the bundle's model.onnx. `torch-export` is the result of "
        "`torch.onnx.export(dynamo=True)` for the same module.", "",
        "| | (1, 16) | (1, 128) | (8, 128) |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [f"| {engine} | " + " | ".join(f"{one:.2f}" for one in row) + " |" for engine, row in speeds.items()]
    return "\n".join(lines) + "\n"


def median(measured: list[Run]) -> tuple[float, float]:
    """Return the median seconds and the median peak in MB."""
    return statistics.median(one.seconds for one in measured), statistics.median(one.peak_mb for one in measured)


if __name__ == "__main__":
    main()
