"""One checkpoint of a run → the loop: everything is read, checked and found to fit before anything is changed.

What is spread over ranks is read last, each rank the parts that it needs: until then a tensor without values stands
for it. Whose files are whole is shared out among the ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from packager.checkpoint import run_folder, sharded_index, state_tree_file
from packager.checkpoint.ranks import RankGroup
from packager.checkpoint.run_folder import FILES_BY_KIND, CheckpointEntry
from packager.checkpoint.training.loop_state import (
    TrainingLoop,
    Trees,
    allocate_targets,
    fill_tree,
    find_mismatches,
    read_loop_state,
    restore_loop,
)
from packager.errors import CheckpointDamaged, TrainingStateDiffers

MetaTensors = dict[str, dict[str, torch.Tensor]]
"""By kind and name, the tensors without values."""


def restore_checkpoint(one: CheckpointEntry, loop: TrainingLoop, ranks: RankGroup, *, random_states: bool) -> Any:
    """Put the checkpoint into the loop, on every rank together; returns what was saved as `extra`.

    Raises `CheckpointDamaged` or `TrainingStateDiffers`, on every rank, where it does not fit on one.
    """
    with contextlib.ExitStack() as until_read:
        ranks.run_on_all(lambda: until_read.enter_context(run_folder.lock_for_reading(one.path)))
        spread = _sharded_files(one)
        ranks.run_on_all(lambda: _check_file_share(one, spread, ranks))
        indexes = ranks.run_on_all(lambda: {kind: _read_index(one, names) for kind, names in spread.items()})
        empty = {kind: _make_meta_tensors(index) for kind, index in indexes.items()}
        trees = ranks.run_on_all(lambda: _read_trees(one, empty))
        now = read_loop_state(loop, ranks)
        ranks.run_on_all(lambda: _refuse_mismatches(one, find_mismatches(loop, now, trees, ranks.rank)))
        if indexes:
            trees = _fill_trees(one, trees, indexes, empty, allocate_targets(loop, now, trees), ranks)
    restore_loop(loop, now, trees, ranks.rank, random_states=random_states)
    return trees["training"]["extra"]


def _sharded_files(one: CheckpointEntry) -> dict[str, list[str]]:
    """For each kind that is in pieces, the index and the files that it leads to."""
    parts = {kind: run_folder.list_parts(one, file) for kind, file in FILES_BY_KIND.items() if file in one.digests}
    return {kind: names for kind, names in parts.items() if len(names) > 1}


def _check_file_share(one: CheckpointEntry, spread: Mapping[str, Sequence[str]], ranks: RankGroup) -> None:
    """See whether this rank's share of the files is what was saved."""
    mine = [name for names in spread.values() for name in names][ranks.rank :: ranks.count]
    broken = run_folder.find_damage(one, mine) if mine else None
    if broken:
        raise CheckpointDamaged(str(one.path), broken)


def _read_index(one: CheckpointEntry, names: Sequence[str]) -> sharded_index.PieceIndex:
    path, files = one.path / names[0], [*names[2:]]
    try:
        found = sharded_index.read_piece_index(path)
    except (OSError, ValueError) as error:
        raise CheckpointDamaged(str(path), str(error)) from None
    if found.files() != files:
        raise CheckpointDamaged(str(path), f"it names {found.files()}, and there are {files}")
    return found


def _make_meta_tensors(index: sharded_index.PieceIndex) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(one.shape, dtype=state_tree_file.TORCH_DTYPES[one.dtype], device="meta")
        for name, one in index.tensors.items()
    }


def _read_trees(one: CheckpointEntry, empty: MetaTensors) -> Trees:
    """The state as it was saved, without what is in pieces."""
    return {
        kind: state_tree_file.read_tree(one.path / file, one.digests[file], empty.get(kind, {}))
        for kind, file in FILES_BY_KIND.items()
        if file in one.digests
    }


def _refuse_mismatches(one: CheckpointEntry, differ: Sequence[str]) -> None:
    if differ:
        raise TrainingStateDiffers(str(one.path), differ)


def _fill_trees(
    one: CheckpointEntry,
    trees: Trees,
    indexes: Mapping[str, sharded_index.PieceIndex],
    empty: MetaTensors,
    room: Mapping[int, torch.Tensor],
    ranks: RankGroup,
) -> Trees:
    """The state with what there is room for read from the pieces."""
    from packager.checkpoint.training import sharded_io  # torch.distributed.checkpoint takes a second

    for kind, index in indexes.items():
        targets = {name: room[id(place)] for name, place in empty[kind].items() if id(place) in room}
        sharded_io.load_sharded(one.path, index, targets, ranks)
    return {kind: fill_tree(tree, room) for kind, tree in trees.items()}
