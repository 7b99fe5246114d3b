"""Several ranks: sharded weights are saved whole, and every rank goes on with its own random numbers."""

import socket
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from projects import ROOT

from packager.checkpoint.manager import CheckpointManager

RANK = """
import sys, torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from packager.checkpoint.manager import CheckpointManager
from packager.errors import StateNotExpressible

rank, port, folder, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")

def loop(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 3))
    model = nn.parallel.DistributedDataParallel(model) if kind == "ddp" else fully_shard(
        model, mesh=distributed.init_device_mesh("cpu", (2,))
    )
    torch.manual_seed(seed + rank)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)

def train(model, optimizer, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 5)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

model, optimizer = loop(0)
train(model, optimizer, 3)
manager = CheckpointManager(folder)
manager.save(step=3, model=model, optimizer=optimizer, blocking=False)
expected = train(model, optimizer, 3)
other, fresh = loop(100)
assert manager.restore(model=other, optimizer=fresh).step == 3
assert train(other, fresh, 3) == expected, rank
manager.save(step=6, model=other, optimizer=fresh)
assert [one.step for one in manager.list()] == [3, 6]
if kind == "fully_shard":
    try:
        manager.save(step=7, model=FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu")))
    except StateNotExpressible as error:
        assert error.why == "it is a FullyShardedDataParallel; fully_shard, its successor, can be saved", error.why
    else:
        raise AssertionError("FSDP1 was saved")
print(*expected)
distributed.destroy_process_group()
"""


def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fully_shard"])
def test_two_ranks_go_on_as_if_nothing_had_happened(kind, tmp_path):
    command = [sys.executable, "-c", RANK]
    where = [str(port()), str(tmp_path), kind]
    ranks = [
        subprocess.Popen(
            [*command, str(one), *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for one in range(2)
    ]
    said = [one.communicate(timeout=120) for one in ranks]
    assert [one.returncode for one in ranks] == [0, 0], said
    assert said[0][0] != said[1][0]  # each rank drew numbers of its own
    weights = safetensors.torch.load_file(tmp_path / "step-00000006/model.safetensors")
    assert {name: list(one.shape) for name, one in weights.items()} == {
        "0.weight": [7, 5], "0.bias": [7], "2.weight": [3, 7], "2.bias": [3],
    }  # fmt: skip
    alone = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Dropout(0.5), torch.nn.Linear(7, 3))
    CheckpointManager(tmp_path).restore(model=alone, optimizer=torch.optim.AdamW(alone.parameters()))
    assert all(torch.equal(one, weights[name]) for name, one in alone.state_dict().items())
