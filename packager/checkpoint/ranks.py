"""One run on several ranks: every rank calls `save` and `restore`, rank 0 writes, and every rank reads.

Under `fully_shard` (FSDP2) a rank holds a piece of each tensor, a DTensor. It is put together to be saved, so that a
checkpoint is the same whatever the number of ranks, and cut again where it is restored. The price is one whole
state in the memory of every rank while it is saved; torch.distributed.checkpoint, which writes the pieces, is the
better way for a state that does not fit. FSDP1 hides the pieces in tensors of its own and is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import distributed

from packager.errors import StateNotExpressible


def several() -> bool:
    """Whether this process is one rank of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Of this process; 0 where it is alone."""
    return distributed.get_rank() if several() else 0


def meet() -> None:
    """Go on when every rank is here."""
    if several():
        distributed.barrier()


def of_every_rank(value: Any) -> list[Any]:
    """What each rank has, by rank."""
    if not several():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def whole(tree: Any) -> Any:
    """A state dict with each DTensor put together; every rank must call this."""
    if type(tree) in (dict, OrderedDict):
        return {key: whole(one) for key, one in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(whole(one) for one in tree)
    return tree.full_tensor() if _is_piece(tree) else tree


def cut_like(value: Any, like: Any) -> Any:
    """A whole tensor as the DTensor that `like` is; anything else, and what has another shape, as it is."""
    if not _is_piece(like) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def refuse_hidden_pieces(module: torch.nn.Module) -> None:
    """FSDP1's optimizer states are pieces that do not say so. Raises `StateNotExpressible`."""
    if any(type(one).__name__ == "FullyShardedDataParallel" for one in module.modules()):
        raise StateNotExpressible("model", "a FullyShardedDataParallel; fully_shard, its successor, can be saved")


def _is_piece(value: object) -> bool:
    # By name: importing torch.distributed.tensor takes seconds that a run on one rank need not wait.
    return isinstance(value, torch.Tensor) and type(value).__name__ == "DTensor"
