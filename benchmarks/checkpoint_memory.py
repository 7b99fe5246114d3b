"""Measure how much memory it takes to read a large checkpoint, as a multiple of its size. Run by hand.

    python benchmarks/checkpoint_memory.py [GIBIBYTES=2]

Every format is written by its own library, and read in a separate process, which then looks at every value, as a build
does. `read` is the growth of resident memory when the checkpoint is open, and `used` that of its peak in the end, both
since torch was imported. Pages of a mapped file count once they have been looked at.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

_READ = """
import resource, sys
from pathlib import Path
import torch
from packager import checkpoint
checkpoint.read

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

import safetensors.torch, torch.distributed.checkpoint
before = resident()
state = checkpoint.read(Path(sys.argv[1])).state
mapped = resident() - before
assert all(bool(one.isfinite()) for tensor in state.values() for one in tensor.aminmax())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
print(sum(one.nbytes for one in state.values()), mapped, peak)
"""


def main() -> None:
    """Write and read every format, and print a line for each."""
    import safetensors.torch
    import torch
    import torch.distributed.checkpoint as dcp

    size = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    count, rows = 32, int(size * 2**30 / 32 / 4 / 1024)
    print(f"{'form':<28} {'size':>10} {'read':>6} {'used':>6}   (multiples of the size)")
    for form in ("safetensors", "safetensors, 4 shards", "torch.save", "torch.save, legacy", "distributed"):
        with tempfile.TemporaryDirectory() as folder:
            state = {f"layer.{index}.weight": torch.ones(rows, 1024) for index in range(count)}
            path = Path(folder) / ("best.safetensors" if form == "safetensors" else "best.pt")
            if form == "safetensors":
                safetensors.torch.save_file(state, path)
            elif form == "safetensors, 4 shards":
                path = _sharded(Path(folder), state)
            elif form == "distributed":
                path = Path(folder) / "dcp"
                dcp.save({"model": state}, checkpoint_id=path, no_dist=True)
            else:
                torch.save(state, path, _use_new_zipfile_serialization=form == "torch.save")
            del state
            done = subprocess.run([sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True)
            total, mapped, peak = map(int, done.stdout.split())
            print(f"{form:<28} {total / 2**30:6.2f} GiB {mapped / total:6.2f} {peak / total:6.2f}", flush=True)


def _sharded(folder: Path, state: dict[str, object]) -> Path:
    import json

    import safetensors.torch

    places = {name: f"model-{index % 4}.safetensors" for index, name in enumerate(state)}
    for shard in sorted(set(places.values())):
        safetensors.torch.save_file({name: state[name] for name in state if places[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


if __name__ == "__main__":
    main()
