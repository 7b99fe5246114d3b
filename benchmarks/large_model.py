"""Measure the peak memory of building and verifying a large module, as a multiple of its weights. Run by hand.

    python benchmarks/large_model.py [MEGABYTES=3200] [--transformer] [--stages] [--keep FOLDER]

The module is a chain of linear layers of 49 MB each or, with `--transformer`, of the layers of an
`nn.TransformerEncoder`, 50 MB each, which multiplies batches of sequences with transposed weights. Build and verify
each run in a process of their own, and so does `base`, which imports torch and onnxruntime and does nothing. What is
measured is the proportional set size of the process and all its children, sampled every 20 ms: memory that processes
share counts once, and pages of mapped files count as long as they are resident. `own` is the part of it that is not
backed by a file, which the system cannot take back. `--stages` prints the peak of each stage, too.

The targets: build no more than base + 2.5 × weights, verify no more than base + 1.3 × weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_WIDTH = 3500
_INTERVAL_SECONDS = 0.02
_MODULE = f"""
import torch


class Net(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear({_WIDTH}, {_WIDTH}) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x
"""
_LAYER_BYTES = _WIDTH * _WIDTH * 4
_TRANSFORMER_WIDTH = 1024
_TRANSFORMER = f"""
import torch


class Net(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer({_TRANSFORMER_WIDTH}, 16, {4 * _TRANSFORMER_WIDTH}, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, layers)

    def forward(self, x):
        return self.encoder(x)
"""
_TRANSFORMER_LAYER_BYTES = 12 * _TRANSFORMER_WIDTH * _TRANSFORMER_WIDTH * 4
_MANIFEST = """
schema: 1
name: large
version: 1.0.0
model: {entry: "model.py:Net", kwargs: {layers: %d}}
checkpoint: {path: best.safetensors}
inputs:
  x: {dtype: float32, shape: %s}
"""
_SAVE = """
import sys
import safetensors.torch
import torch
sys.path.insert(0, sys.argv[1])
import model
torch.manual_seed(0)
net = model.Net(int(sys.argv[2]))
for parameter in net.parameters():  # an exporter writes equal weights once, and an encoder's layers are copies
    parameter.data.add_(torch.randn(parameter.shape), alpha=0.01)
safetensors.torch.save_file(net.state_dict(), sys.argv[1] + "/best.safetensors")
"""
_BASE = "import torch, onnxruntime"
_BUILD = """
import sys
from packager.builder.api import build
from packager.common.progress import StageStarted

def listen(event):
    if isinstance(event, StageStarted):
        print(event.stage, flush=True)

print("import", flush=True)
build(sys.argv[1] + "/package.yaml", sys.argv[1] + "/dist", cache="off", listener=listen)
"""
_VERIFY = """
import sys
import packager
print("verify", flush=True)
report = packager.verify(sys.argv[1] + "/dist/large-1.0.0", trust_program=True)
assert report.ok and set(report.parity.values()) <= {"pass", "not-checked"}, report
"""


@dataclass
class Peak:
    """The peak of a run, in bytes: all of it, and what no file backs; and both by stage. Seconds of wall-clock time."""

    total: int = 0
    own: int = 0
    seconds: float = 0.0
    stages: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, stage: str, total: int, own: int) -> None:
        """Count one sample."""
        self.total, self.own = max(self.total, total), max(self.own, own)
        before = self.stages.get(stage, (0, 0))
        self.stages[stage] = max(before[0], total), max(before[1], own)


def main() -> None:
    """Write the module, build and verify it, and print the peaks."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("megabytes", type=int, nargs="?", default=3200)
    arguments.add_argument("--transformer", action="store_true")
    arguments.add_argument("--stages", action="store_true")
    arguments.add_argument("--keep", type=Path, help="use this folder, and leave it there")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        weights = write_project(folder, options.megabytes, transformer=options.transformer)
        base = run(_BASE, folder)
        print(f"weights {weights / 1e6:.0f} MB, base {base.total / 1e6:.0f} MB", flush=True)
        print(f"{'':<12} {'seconds':>8} {'peak':>9} {'own':>9}   (peak - base) / weights")
        for name, code in (("build", _BUILD), ("verify", _VERIFY)):
            peak = run(code, folder)
            print(format_row(name, peak.total, peak.own, base.total, weights, f"{peak.seconds:.0f}"), flush=True)
            for stage, (total, own) in peak.stages.items() if options.stages else ():
                print(format_row(f"  {stage}", total, own, base.total, weights, ""))


def format_row(name: str, total: int, own: int, base: int, weights: int, seconds: str) -> str:
    """Return a line of the table; bytes come in, megabytes and multiples of the weights are printed."""
    share = (total - base) / weights
    return f"{name:<12} {seconds:>8} {total / 1e6:>6.0f} MB {own / 1e6:>6.0f} MB   {share:.2f} × the weights"


def write_project(folder: Path, megabytes: int, *, transformer: bool) -> int:
    """Write module, weights and manifest, unless they are there. Returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = max(1, round(megabytes * 1e6 / (_TRANSFORMER_LAYER_BYTES if transformer else _LAYER_BYTES)))
    shape = f"[batch, 16, {_TRANSFORMER_WIDTH}]" if transformer else f"[batch, {_WIDTH}]"
    (folder / "model.py").write_text(_TRANSFORMER if transformer else _MODULE)
    (folder / "package.yaml").write_text(_MANIFEST % (layers, shape))
    path = folder / "best.safetensors"
    if not path.exists():
        subprocess.run([sys.executable, "-c", _SAVE, str(folder), str(layers)], check=True)
    return path.stat().st_size


def run(code: str, folder: Path) -> Peak:
    """Run Python code in a process, and sample the memory of its process tree until it ends."""
    peak, started = Peak(), time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    stage = ["start"]
    assert child.stdout is not None
    reader = threading.Thread(target=_follow_stages, args=(child.stdout, stage), daemon=True)
    reader.start()
    while child.poll() is None:
        samples = [_read_memory(pid) for pid in _list_tree(child.pid)]
        peak.add(stage[0], sum(total for total, _ in samples), sum(own for _, own in samples))
        time.sleep(_INTERVAL_SECONDS)
    if child.returncode:
        sys.exit(f"failed with exit status {child.returncode}")
    peak.seconds = time.monotonic() - started
    return peak


def _follow_stages(stream: IO[str], stage: list[str]) -> None:
    for line in stream:
        stage[0] = line.strip()


def _list_tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                pids += map(int, children.read_text().split())
            except OSError:
                continue  # the thread has ended
    return pids


def _read_memory(pid: int) -> tuple[int, int]:
    """Return a process's proportional set size, and what of it no file backs, in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    return sizes.get("Pss", 0), sizes.get("Pss_Anon", 0)


if __name__ == "__main__":
    main()
