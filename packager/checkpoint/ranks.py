"""One run on several ranks: what they say to each other while they save and restore.

All of it goes through a group of its own, on the CPU: what is said here, also in the background, never comes between
what training says. Where one rank fails, all of them fail, and none waits for an answer that does not come.

Under FSDP a rank holds a piece of each tensor: a DTensor, or a ShardedTensor where FSDP1 was given no mesh. Such a
tensor is never put together; see `packager.checkpoint.training.sharded_io`.
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
    """This process among those of the run; alone, it is rank 0 of 1, without a group.

    The group is torch.distributed's, which ends it with all others in `destroy_process_group`. It is not held
    beyond that: where one lives until the interpreter ends, gloo's threads end the process with SIGABRT.
    """

    rank: int = 0
    count: int = 1
    group_reference: weakref.ref[Any] | None = None

    @property
    def is_alone(self) -> bool:
        """Whether this is a run without torch.distributed."""
        return self.group_reference is None

    @property
    def has_ended(self) -> bool:
        """Whether the run that these ranks were of has ended, or has only now begun."""
        return self.is_alone == is_distributed() or (
            self.group_reference is not None and self.group_reference() is None
        )

    @property
    def group(self) -> Any:
        """The process group; None without torch.distributed. Raises `RankFailed` where it was ended."""
        found = None if self.group_reference is None else self.group_reference()
        if self.group_reference is not None and found is None:
            raise RankFailed("another rank of the run cannot be reached", "destroy_process_group() was called")
        return found

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes what is there once."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, by rank."""
        if self.is_alone:
            return [value]
        found: list[Any] = [None] * self.count
        with translate_rank_errors():
            distributed.all_gather_object(found, value, group=self.group)
        return found

    def run_on_all(self, work: Callable[[], T]) -> T:
        """What the work gives on this rank. Raises on every rank where it raises on one."""
        value, error = _capture_error(work)
        for rank, other in enumerate(self.gather(_transferable_error(error))):
            if other is not None:
                raise error or _revive_error(other, rank)
        return value  # type: ignore[return-value]  # there is one where there is no error

    def run_on_first(self, work: Callable[[], T]) -> T:
        """What the work gives on rank 0, which alone does it, on every rank; it raises on every rank too."""
        value, error = _capture_error(work) if self.is_first else (None, None)
        if not self.is_alone:
            told = [(value, _transferable_error(error))]
            with translate_rank_errors():
                distributed.broadcast_object_list(told, group_src=0, group=self.group)
            value, other = told[0]
            error = error or (None if other is None else _revive_error(other, 0))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # there is one where there is no error


def is_distributed() -> bool:
    """Whether this process is one of a run of torch.distributed."""
    return distributed.is_available() and distributed.is_initialized()


def create_rank_group() -> RankGroup:
    """The ranks of this run, in a group that is made here: every rank must call this, at the same point."""
    if not is_distributed():
        return RankGroup()
    with translate_rank_errors():
        group = distributed.new_group(backend="gloo")
    return RankGroup(distributed.get_rank(), distributed.get_world_size(), weakref.ref(group))


@contextlib.contextmanager
def translate_rank_errors() -> Iterator[None]:
    """While open, a failure of torch.distributed is a rank that cannot be reached: `RankFailed`."""
    try:
        yield
    except RuntimeError as error:  # gloo raises no other class where a connection breaks
        text = str(error).strip().partition("\n")[0]
        raise RankFailed("another rank of the run cannot be reached", text) from error


def is_sharded(value: object) -> bool:
    """Whether a tensor is spread over ranks, and this one holds a piece of it."""
    # By name: importing torch.distributed.tensor takes seconds that a run on one rank need not wait.
    return isinstance(value, torch.Tensor) and type(value).__name__ in ("DTensor", "ShardedTensor")


def local_shard(piece: Any) -> torch.Tensor:
    """What of a spread tensor lies on this rank; empty where nothing does."""
    if type(piece).__name__ == "DTensor":
        local: torch.Tensor = piece.to_local()
        return local
    shards = piece.local_shards()
    return shards[0].tensor if shards else torch.empty(0, dtype=piece.dtype)


def shard_like(value: Any, like: Any) -> Any:
    """A whole tensor as the DTensor that `like` is; anything else, and what has another shape, as it is."""
    if type(like).__name__ != "DTensor" or not isinstance(value, torch.Tensor) or is_sharded(value):
        return value
    if value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _capture_error(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 (raised again, when the other ranks have heard of it)
        return None, error


def _transferable_error(error: Exception | None) -> PackagerError | str | None:
    """An error as it can be sent to another process: ours as they are, and the text of any other."""
    if error is None or isinstance(error, PackagerError):
        return error
    return f"{type(error).__name__}: {error}"


def _revive_error(error: PackagerError | str, rank: int) -> PackagerError:
    return error if isinstance(error, PackagerError) else RankFailed(f"rank {rank} of the run failed", error)
