"""Let the ranks of a distributed run agree while they save and restore.

They communicate through a gloo group of their own, on the CPU, so that this traffic, which also runs in the
background, never mixes with that of the training. If one rank fails, all of them fail: no rank waits for an answer
that never comes.

Under FSDP a rank holds a piece of each tensor, as a DTensor, or as a ShardedTensor if FSDP1 was given no device mesh.
Such a tensor is never assembled on one rank; see `packager.checkpoint.training.sharded_io`.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from packager.errors import PackagerError, RankFailed

T = TypeVar("T")


@dataclass(frozen=True)
class RankGroup:
    """This process's rank among `count`; a run without torch.distributed is rank 0 of 1, without a group.

    The group is referenced weakly, so that it ends in `destroy_process_group`, with all others: if a group lives until
    the interpreter exits, gloo's threads abort the process with SIGABRT.
    """

    rank: int = 0
    count: int = 1
    group_reference: weakref.ref[Any] | None = None

    @property
    def is_alone(self) -> bool:
        """Whether the run is without torch.distributed."""
        return self.group_reference is None

    @property
    def has_ended(self) -> bool:
        """Whether the run of these ranks has ended, or torch.distributed was initialized since."""
        return self.is_alone == is_distributed() or (
            self.group_reference is not None and self.group_reference() is None
        )

    @property
    def group(self) -> Any:
        """The process group; None without torch.distributed. Raises `RankFailed` if it was destroyed."""
        if self.group_reference is None:
            return None
        group = self.group_reference()
        if group is None:
            raise RankFailed("another rank of the run cannot be reached", "destroy_process_group() was called")
        return group

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files that exist once per checkpoint."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks. Every rank must call it. Raises `RankFailed`."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.count
        with translate_rank_errors():
            distributed.all_gather_object(values, value, group=self.group)
        return values

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Call `work` on every rank and return this rank's result. If it raises on one rank, this raises on all."""
        value, error = _capture_error(work)
        for rank, other in enumerate(self.gather(_transferable_error(error))):
            if other is not None:
                raise error or _revive_error(other, rank)
        return value  # type: ignore[return-value]  # work() returned a T, or there is an error

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 alone and return its result on every rank. If it raises, this raises on all."""
        value, error = _capture_error(work) if self.is_first else (None, None)
        if not self.is_alone:
            outcome = [(value, _transferable_error(error))]
            with translate_rank_errors():
                distributed.broadcast_object_list(outcome, group_src=0, group=self.group)
            value, other = outcome[0]
            error = error or (None if other is None else _revive_error(other, 0))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # work() returned a T, or there is an error


def is_distributed() -> bool:
    """Tell whether this process is a rank of torch.distributed."""
    return distributed.is_available() and distributed.is_initialized()


def create_rank_group() -> RankGroup:
    """Create the group of all ranks of this run. Every rank must call it, at the same point. Raises `RankFailed`."""
    if not is_distributed():
        return RankGroup()
    with translate_rank_errors():
        group = distributed.new_group(backend="gloo")
    return RankGroup(distributed.get_rank(), distributed.get_world_size(), weakref.ref(group))


@contextlib.contextmanager
def translate_rank_errors() -> Iterator[None]:
    """Raise a failure of torch.distributed inside the block as `RankFailed`."""
    try:
        yield
    except RuntimeError as error:  # gloo raises no other class where a connection breaks
        text = str(error).strip().partition("\n")[0]
        raise RankFailed("another rank of the run cannot be reached", text) from error


def is_sharded(value: object) -> bool:
    """Tell whether a value is a tensor that is sharded over ranks: a DTensor or a ShardedTensor."""
    # Compared by name, because importing torch.distributed.tensor takes seconds, which a run on one rank can save.
    return isinstance(value, torch.Tensor) and type(value).__name__ in ("DTensor", "ShardedTensor")


def local_shard(tensor: Any) -> torch.Tensor:
    """Return the piece of a sharded tensor that this rank holds; empty if it holds none."""
    if type(tensor).__name__ == "DTensor":
        local: torch.Tensor = tensor.to_local()
        return local
    shards = tensor.local_shards()
    return shards[0].tensor if shards else torch.empty(0, dtype=tensor.dtype)


def shard_like(value: Any, like: Any) -> Any:
    """Return a whole tensor sharded like the DTensor `like`.

    A value that is not a tensor, is sharded already or differs from `like` in shape is returned as it is.
    """
    if type(like).__name__ != "DTensor" or not isinstance(value, torch.Tensor) or is_sharded(value):
        return value
    if value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _capture_error(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 (raised again once the other ranks are informed)
        return None, error


def _transferable_error(error: Exception | None) -> PackagerError | str | None:
    """Return an error as it can be pickled: a `PackagerError` itself, or the text of any other."""
    if error is None or isinstance(error, PackagerError):
        return error
    return f"{type(error).__name__}: {error}"


def _revive_error(error: PackagerError | str, rank: int) -> PackagerError:
    return error if isinstance(error, PackagerError) else RankFailed(f"rank {rank} of the run failed", error)
