"""Restore one checkpoint of a run: everything is read and checked before anything in the loop is changed.

What is sharded over ranks is read last, by each rank only the parts that it needs; until then, tensors on the meta
device stand for it. The ranks share the work of checking the files' digests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from packager.checkpoint import run_folder, sharded_index, state_tree_file
from packager.checkpoint.ranks import RankGroup
from packager.checkpoint.run_folder import FILES_BY_KIND, CheckpointEntry
from packager.checkpoint.sharded_index import PieceIndex
from packager.checkpoint.training.loop_state import (
    TrainingLoop,
    Trees,
    find_mismatches,
    read_loop_state,
    restore_loop,
)
from packager.checkpoint.training.sharded_targets import allocate_targets, fill_tree
from packager.errors import CheckpointDamaged, TrainingStateDiffers

MetaTensors = dict[str, dict[str, torch.Tensor]]  # by kind (`model`, `ema`, `training`) and name


def restore_checkpoint(entry: CheckpointEntry, loop: TrainingLoop, ranks: RankGroup, *, random_states: bool) -> Any:
    """Load the checkpoint into the loop, all ranks together, and return what was saved as `extra`.

    Raises `CheckpointDamaged` or `TrainingStateDiffers` on every rank if it is damaged, or does not fit, on one.
    """
    with contextlib.ExitStack() as stack:
        ranks.run_on_all(lambda: stack.enter_context(run_folder.lock_for_reading(entry.path)))
        sharded = _list_sharded_files(entry)
        ranks.run_on_all(lambda: _check_share_of_files(entry, sharded, ranks))
        indexes = ranks.run_on_all(lambda: {kind: _read_index(entry, names) for kind, names in sharded.items()})
        meta = {kind: _make_meta_tensors(index) for kind, index in indexes.items()}
        trees = ranks.run_on_all(lambda: _read_trees(entry, meta))
        state = read_loop_state(loop, ranks)
        ranks.run_on_all(lambda: _check_match(entry, find_mismatches(loop, state, trees, ranks.rank)))
        if indexes:
            trees = _read_shards(entry, trees, indexes, meta, allocate_targets(loop, state, trees), ranks)
    restore_loop(loop, state, trees, ranks.rank, random_states=random_states)
    return trees["training"]["extra"]


def _list_sharded_files(entry: CheckpointEntry) -> dict[str, list[str]]:
    """Return, for each kind that is sharded, its index, its unsharded file, and the files of the shards."""
    parts = {kind: run_folder.list_parts(entry, file) for kind, file in FILES_BY_KIND.items() if file in entry.digests}
    return {kind: names for kind, names in parts.items() if len(names) > 1}


def _check_share_of_files(entry: CheckpointEntry, sharded: Mapping[str, Sequence[str]], ranks: RankGroup) -> None:
    """Check the digests of this rank's share of the files. Raises `CheckpointDamaged`."""
    share = [name for names in sharded.values() for name in names][ranks.rank :: ranks.count]
    damage = run_folder.find_damage(entry, share) if share else None
    if damage:
        raise CheckpointDamaged(str(entry.path), damage)


def _read_index(entry: CheckpointEntry, names: Sequence[str]) -> PieceIndex:
    path, shard_files = entry.path / names[0], [*names[2:]]
    try:
        index = sharded_index.read_piece_index(path)
    except (OSError, ValueError) as error:
        raise CheckpointDamaged(str(path), str(error)) from None
    if index.files() != shard_files:
        raise CheckpointDamaged(str(path), f"it lists {index.files()}, but the checkpoint has {shard_files}")
    return index


def _make_meta_tensors(index: PieceIndex) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(tensor.shape, dtype=state_tree_file.TORCH_DTYPES[tensor.dtype], device="meta")
        for name, tensor in index.tensors.items()
    }


def _read_trees(entry: CheckpointEntry, meta: MetaTensors) -> Trees:
    """Return the state as it was saved, with meta tensors for those that are sharded."""
    return {
        kind: state_tree_file.read_tree(entry.path / file, entry.digests[file], meta.get(kind, {}))
        for kind, file in FILES_BY_KIND.items()
        if file in entry.digests
    }


def _check_match(entry: CheckpointEntry, mismatches: Sequence[str]) -> None:
    if mismatches:
        raise TrainingStateDiffers(str(entry.path), mismatches)


def _read_shards(
    entry: CheckpointEntry,
    trees: Trees,
    indexes: Mapping[str, PieceIndex],
    meta: MetaTensors,
    targets: Mapping[int, torch.Tensor],
    ranks: RankGroup,
) -> Trees:
    """Read the shards into the targets, and return the trees with them; all ranks together."""
    from packager.checkpoint.training import sharded_io  # torch.distributed.checkpoint takes a second

    for kind, index in indexes.items():
        by_name = {name: targets[id(tensor)] for name, tensor in meta[kind].items() if id(tensor) in targets}
        sharded_io.load_sharded(entry.path, index, by_name, ranks)
    return {kind: fill_tree(tree, targets) for kind, tree in trees.items()}
