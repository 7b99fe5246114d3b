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
from packager.checkpoint.ranks import Ranks
from packager.checkpoint.run_folder import FILES, Entry
from packager.checkpoint.training.loop_state import Loop, Trees, differences, filled, give_back, present, wanted
from packager.errors import CheckpointDamaged, TrainingStateDiffers

Empty = dict[str, dict[str, torch.Tensor]]
"""By kind and name, the tensors without values."""


def resume(one: Entry, loop: Loop, ranks: Ranks, *, random_states: bool) -> Any:
    """Put the checkpoint into the loop, on every rank together; returns what was saved as `extra`.

    Raises `CheckpointDamaged` or `TrainingStateDiffers`, on every rank, where it does not fit on one.
    """
    with contextlib.ExitStack() as until_read:
        ranks.together(lambda: until_read.enter_context(run_folder.reading(one.path)))
        spread = _sharded_files(one)
        ranks.together(lambda: _check_file_share(one, spread, ranks))
        indexes = ranks.together(lambda: {kind: _read_index(one, names) for kind, names in spread.items()})
        empty = {kind: _make_meta_tensors(index) for kind, index in indexes.items()}
        trees = ranks.together(lambda: _read_trees(one, empty))
        now = present(loop, ranks)
        ranks.together(lambda: _refuse_mismatches(one, differences(loop, now, trees, ranks.rank)))
        if indexes:
            trees = _fill_trees(one, trees, indexes, empty, wanted(loop, now, trees), ranks)
    give_back(loop, now, trees, ranks.rank, random_states=random_states)
    return trees["training"]["extra"]


def _sharded_files(one: Entry) -> dict[str, list[str]]:
    """For each kind that is in pieces, the index and the files that it leads to."""
    parts = {kind: run_folder.parts(one, file) for kind, file in FILES.items() if file in one.digests}
    return {kind: names for kind, names in parts.items() if len(names) > 1}


def _check_file_share(one: Entry, spread: Mapping[str, Sequence[str]], ranks: Ranks) -> None:
    """See whether this rank's share of the files is what was saved."""
    mine = [name for names in spread.values() for name in names][ranks.rank :: ranks.count]
    broken = run_folder.damage(one, mine) if mine else None
    if broken:
        raise CheckpointDamaged(str(one.path), broken)


def _read_index(one: Entry, names: Sequence[str]) -> sharded_index.Index:
    path, files = one.path / names[0], [*names[2:]]
    try:
        found = sharded_index.read(path)
    except (OSError, ValueError) as error:
        raise CheckpointDamaged(str(path), str(error)) from None
    if found.files() != files:
        raise CheckpointDamaged(str(path), f"it names {found.files()}, and there are {files}")
    return found


def _make_meta_tensors(index: sharded_index.Index) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(one.shape, dtype=state_tree_file.DTYPE_NAMED[one.dtype], device="meta")
        for name, one in index.tensors.items()
    }


def _read_trees(one: Entry, empty: Empty) -> Trees:
    """The state as it was saved, without what is in pieces."""
    return {
        kind: state_tree_file.read(one.path / file, one.digests[file], empty.get(kind, {}))
        for kind, file in FILES.items()
        if file in one.digests
    }


def _refuse_mismatches(one: Entry, differ: Sequence[str]) -> None:
    if differ:
        raise TrainingStateDiffers(str(one.path), differ)


def _fill_trees(
    one: Entry,
    trees: Trees,
    indexes: Mapping[str, sharded_index.Index],
    empty: Empty,
    room: Mapping[int, torch.Tensor],
    ranks: Ranks,
) -> Trees:
    """The state with what there is room for read from the pieces."""
    from packager.checkpoint.training import sharded_io  # torch.distributed.checkpoint takes a second

    for kind, index in indexes.items():
        targets = {name: room[id(place)] for name, place in empty[kind].items() if id(place) in room}
        sharded_io.load(one.path, index, targets, ranks)
    return {kind: filled(tree, room) for kind, tree in trees.items()}
