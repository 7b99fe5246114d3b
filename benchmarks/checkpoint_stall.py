"""Measure what a checkpoint costs a training step: CheckpointManager, torch.save and torch.distributed.checkpoint.

    python benchmarks/checkpoint_stall.py [--runs 5] [--parameters 25]

All save the same state: a model with `--parameters` million parameters and its AdamW, on the CPU. `stall` is the time
until the call returns, and `complete` the time until the checkpoint is written. The savers alternate in one process.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed
import torch.distributed.checkpoint as dcp
from report import put
from torch import nn

from packager.checkpoint.training.manager import CheckpointManager
from packager.checkpoint.training.retention import Retention

Saver = Callable[[Path], Callable[[], object]]  # saves into a folder, and returns a function that waits for the end


def main() -> None:
    """Measure every saver, print, and write this part of docs/benchmarks.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--parameters", type=int, default=25, help="millions")
    asked = arguments.parse_args()
    warnings.filterwarnings("ignore", module="torch.distributed")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    model = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(asked.parameters)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 1000)).sum().backward()
    optimizer.step()
    found: dict[str, list[tuple[float, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        CheckpointManager(Path(scratch) / "runs", keep=Retention(latest=1)) as manager,
    ):
        savers = savers_of(model, optimizer, manager)
        for turn in range(asked.runs + 1):  # the first fills caches and allocates memory, and is not counted
            for name, save in savers.items():
                folder = Path(scratch) / "other"
                began = time.perf_counter()
                wait = save(folder)
                stall = time.perf_counter() - began
                wait()
                complete = time.perf_counter() - began
                if turn > 0:
                    found.setdefault(name, []).append((stall, complete))
                shutil.rmtree(folder, ignore_errors=True)
                os.sync()  # so that no saver waits for the writes of the one before
    state_bytes = 3 * 4 * sum(one.numel() for one in model.parameters())
    text = render(found, state_bytes, asked.runs)
    print(text)
    put("checkpoint_stall", text)
    torch.distributed.destroy_process_group()


def savers_of(model: nn.Module, optimizer: torch.optim.Optimizer, manager: CheckpointManager) -> dict[str, Saver]:
    """Return the ways to save the state, by name."""
    step = iter(range(1, 1_000_000))

    def ours(*, blocking: bool) -> Saver:
        def save(folder: Path) -> Callable[[], object]:
            manager.save(step=next(step), model=model, optimizer=optimizer, blocking=blocking)
            return manager.wait

        return save

    def plain(folder: Path) -> Callable[[], object]:
        folder.mkdir()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "checkpoint.pt")
        return lambda: None

    def durable(folder: Path) -> Callable[[], object]:
        plain(folder)
        with (folder / "checkpoint.pt").open("rb") as stream:
            os.fsync(stream.fileno())
        return lambda: None

    def distributed(folder: Path) -> Callable[[], object]:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return dcp.async_save(state, checkpoint_id=folder).result

    return {
        "save(blocking=False)": ours(blocking=False),
        "save()": ours(blocking=True),
        "torch.save": plain,
        "torch.save and fsync": durable,
        "torch.distributed.checkpoint.async_save": distributed,
    }


def render(found: dict[str, list[tuple[float, float]]], state_bytes: int, runs: int) -> str:
    """Return this part of docs/benchmarks.md."""
    base = statistics.median(stall for stall, _ in found["torch.save"])
    lines = [
        "## What a checkpoint costs a training step", "",
        f"Measured by benchmarks/checkpoint_stall.py: medians of {runs} alternating saves, on an {platform.machine()} "
        f"machine with {os.cpu_count()} cores, Python {platform.python_version()} and torch {torch.__version__}. The "
        f"state is {state_bytes / 1e6:.0f} MB of weights and AdamW moments on the CPU. `stall` is the time until "
        "the call returns, `complete` the time until the checkpoint is written. Both forms of `save` compute SHA-256, "
        "fsync each file, and rename the folder into place. torch.save does none of these. async_save belongs to "
        "torch.distributed.checkpoint and runs with its defaults.",
        "",
        "| | stall | vs. torch.save | complete |",
        "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, times in found.items():
        stall, complete = (statistics.median(one) for one in zip(*times, strict=True))
        lines.append(f"| {name} | {stall * 1000:.0f} ms | {stall / base:.2f} | {complete * 1000:.0f} ms |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
