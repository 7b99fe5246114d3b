"""Allocate the tensors that the shards of a checkpoint are read into.

A checkpoint is first read with a tensor on the meta device for every tensor that is sharded over ranks. Each of them
gets a target, sharded as the loop has the tensor now, or whole; once the targets are filled, they replace it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from packager.checkpoint.ranks import is_sharded
from packager.checkpoint.training.loop_state import LoopState, TrainingLoop, Trees, parameters_by_number


def allocate_targets(loop: TrainingLoop, state: LoopState, trees: Trees) -> dict[int, torch.Tensor]:
    """Return an empty tensor for each meta tensor (by its `id`) in a part of the trees that the loop restores.

    It has the same dtype and shape, and is sharded as its counterpart in the loop's current `state`.
    """
    training = trees["training"]
    pairs = [(trees["model"], state.model), (training["extra"], None)]
    if loop.ema is not None:
        pairs.append((trees["ema"], state.ema))
    for name, part in loop.stateful_parts().items():
        is_optimizer = isinstance(part, torch.optim.Optimizer)
        counterpart = _parameter_tree(state, training[name]) if is_optimizer else state.part_states[name]
        pairs.append((training[name], counterpart))
    return {
        id(meta): _allocate_like(meta, tensor)
        for saved, current in pairs
        for meta, tensor in _pair_meta_tensors(saved, current)
    }


def fill_tree(tree: Any, values: Mapping[int, torch.Tensor]) -> Any:
    """Return the tree with `values`, by the `id` of the meta tensors that they replace."""
    if isinstance(tree, dict):
        return type(tree)({key: fill_tree(value, values) for key, value in tree.items()})
    if type(tree) in (list, tuple):
        return type(tree)(fill_tree(item, values) for item in tree)
    return values.get(id(tree), tree) if isinstance(tree, torch.Tensor) else tree


def _pair_meta_tensors(saved: Any, current: Any) -> Iterator[tuple[torch.Tensor, Any]]:
    """Yield each meta tensor of a tree, and what the current state has in its position, or None."""
    if isinstance(saved, torch.Tensor):
        if saved.is_meta:
            yield saved, current
    elif isinstance(saved, Mapping):
        for key, value in saved.items():
            yield from _pair_meta_tensors(value, current.get(key) if isinstance(current, Mapping) else None)
    elif isinstance(saved, (list, tuple)):
        is_alike = isinstance(current, (list, tuple)) and len(current) == len(saved)
        for value, counterpart in zip(saved, current if is_alike else [None] * len(saved), strict=True):
            yield from _pair_meta_tensors(value, counterpart)


def _allocate_like(meta: torch.Tensor, counterpart: Any) -> torch.Tensor:
    if is_sharded(counterpart) and counterpart.shape == meta.shape:
        return torch.empty_like(counterpart, dtype=meta.dtype)
    return torch.empty(meta.shape, dtype=meta.dtype)


def _parameter_tree(state: LoopState, saved: Trees) -> Trees:
    """Return an optimizer's state with the parameter in place of each of its moments: they are sharded alike."""
    parameters = parameters_by_number(state, saved)
    moments = saved["state"].items()
    return {"state": {number: dict.fromkeys(names, parameters.get(number)) for number, names in moments}}
