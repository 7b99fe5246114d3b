"""Copy the tensors of a checkpoint for a save in the background, while training goes on changing the originals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from packager.checkpoint.ranks import RankGroup, local_shard
from packager.checkpoint.state_tree import EncodedTree


@dataclass(frozen=True)
class FileToWrite:
    """One file of a checkpoint: the part that rank 0 writes, the sharded tensors, and their shards on this rank.

    The sharded tensors only say how they are sharded; the values that are written are those of the shards.
    """

    unsharded: EncodedTree
    sharded: Mapping[str, torch.Tensor]
    local: Mapping[str, torch.Tensor]


def select_local(encoded: EncodedTree, ranks: RankGroup) -> FileToWrite:
    """Select what this rank writes of a file; nothing is copied unless a shard is not contiguous."""
    local = {name: local_shard(tensor).detach().contiguous() for name, tensor in encoded.sharded.items()}
    return FileToWrite(encoded.unsharded if ranks.is_first else EncodedTree({}, None), encoded.sharded, local)


class StagingMemory:
    """Host memory for the copies, pinned for tensors on a GPU. The next save reuses it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def clear(self) -> None:
        """Free the memory."""
        self._buffers.clear()

    def copy(self, name: str, file: FileToWrite) -> FileToWrite:
        """Return the file, which is called `name`, with its values copied into this memory."""
        copies = self._copy_tensors(name, {**file.unsharded.tensors, **file.local})
        unsharded = {name: copies[name] for name in file.unsharded.tensors}
        local = {name: copies[name] for name in file.local}
        return FileToWrite(EncodedTree(unsharded, file.unsharded.document), file.sharded, local)

    def _copy_tensors(self, file: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get((file, name))
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[file, name] = buffer
            copies[name] = buffer.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies
