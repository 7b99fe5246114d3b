"""Run several processes that execute the text of a test and communicate over loopback."""

import socket
import subprocess
import sys
import textwrap
from pathlib import Path

from projects import ROOT

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 3))

    def forward(self, x):
        return self.inner(self.norm(self.first(x)))
"""
_BEFORE = """
import os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from torch import distributed, nn
from packager.checkpoint import CheckpointManager, Retention
from packager.errors import *
rank, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
arguments = sys.argv[5:]
torch.set_num_threads(1)
if count > 1:
    distributed.init_process_group("gloo", rank=rank, world_size=count, init_method=f"tcp://127.0.0.1:{port}")
"""
_LOOP = """
def shard(kind, module):
    if count == 1 or kind == "alone":
        return module
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(module)
    mesh = distributed.init_device_mesh("cpu", (count,))
    if kind == "fully_shard":
        from torch.distributed.fsdp import fully_shard
        fully_shard(module.inner, mesh=mesh)
        return fully_shard(module, mesh=mesh)
    from torch.distributed.fsdp import FullyShardedDataParallel
    settings = {"device_id": torch.device("cpu"), "use_orig_params": "original" in kind}
    settings["device_mesh"] = mesh if "mesh" in kind else None
    module.inner = FullyShardedDataParallel(module.inner, **settings)
    return FullyShardedDataParallel(module, **settings)

def loop(kind, seed, average=False):
    torch.manual_seed(seed)
    model = shard(kind, Net())
    ema = {"ema": shard(kind, Net())} if average else {}
    torch.manual_seed(seed + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer, **ema}

def train(state, steps):
    model, optimizer, losses = state["model"], state["optimizer"], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 5)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
"""
_AFTER = """
if count > 1:
    distributed.destroy_process_group()
"""


def start(count: int, text: str, folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start processes that each run the text; it can use `rank`, `count`, `folder`, `arguments`, `loop` and `train`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = _BEFORE + NET + _LOOP + textwrap.dedent(text) + _AFTER
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(count), str(port), str(folder), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank in range(count)
    ]  # fmt: skip


def run(count: int, text: str, folder: Path, *arguments: str) -> list[str]:
    """Run the text in `count` processes, and return what each printed; all of them must succeed."""
    processes = start(count, text, folder, *arguments)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(error for _, error in outputs)
    return [out for out, _ in outputs]
