"""Read the state of a training loop as trees that `packager.checkpoint.state_tree` can express, and restore it.

A loop that is to continue as if it had never stopped needs more than weights: the optimizer's moments, the position of
the scheduler, the loss scale, the averaged weights, and every generator that dropout, augmentation or the order of
the data draw from. `capture_state` reads all of it, `find_mismatches` says why a saved state cannot be restored, and
`restore_loop` restores it, the generators last, because everything before may draw from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from packager.checkpoint.ranks import RankGroup, shard_like
from packager.checkpoint.training import fsdp1
from packager.checkpoint.training.module_weights import (
    find_weight_mismatches,
    get_averaging_counters,
    get_weights,
    load_weights,
)
from packager.checkpoint.training.random_states import (
    Generator,
    get_generator_state,
    get_random_states,
    set_generator_state,
    set_random_states,
    states_for_rank,
)

Trees = dict[str, Any]

# The entries of torch.optim's state that have a value for each element of a parameter.
_MOMENT_NAMES = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "exp_inf"}
)


class Stateful(Protocol):
    """An optimizer, a scheduler, a scaler, or anything else that returns and loads a state dict."""

    def state_dict(self) -> Any:
        """Return the state, as torch's classes do."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Load what `state_dict` returned."""


@dataclass(frozen=True)
class TrainingLoop:
    """The parts of a training loop that have a state."""

    model: torch.nn.Module
    optimizer: Stateful | None = None
    scheduler: Stateful | None = None
    ema: Stateful | None = None
    scaler: Stateful | None = None
    generators: Mapping[str, Generator] | None = None

    def stateful_parts(self) -> dict[str, Stateful]:
        """Return the parts, by name, whose own state dict is saved as it is."""
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class LoopState:
    """The current state of a loop, as it would be saved.

    `part_states` are state dicts by the names of `stateful_parts`. `parameters` are those of the optimizer by their
    number; `fsdp_names` are their names in the same order if FSDP1 hides the parameters, and empty otherwise.
    """

    model: Trees
    ema: Any
    part_states: Mapping[str, Any]
    parameters: Mapping[int, torch.Tensor]
    fsdp_names: tuple[str, ...]


def read_loop_state(loop: TrainingLoop, ranks: RankGroup) -> LoopState:
    """Return the state of a loop, nothing of it copied; all ranks together. Raises `StateNotExpressible`."""
    model, ema = get_weights(loop.model), None
    if loop.ema is not None:
        ema = get_weights(loop.ema) if isinstance(loop.ema, torch.nn.Module) else loop.ema.state_dict()
    parts = loop.stateful_parts()
    if isinstance(loop.optimizer, torch.optim.Optimizer) and fsdp1.contains_fsdp1(loop.model):
        del parts["optimizer"]
        state, names = fsdp1.get_optimizer_state(loop.model, loop.optimizer, ranks)
        states = {"optimizer": state, **{name: part.state_dict() for name, part in parts.items()}}
        return LoopState(model, ema, states, {number: model[name] for number, name in enumerate(names)}, tuple(names))
    states = {name: part.state_dict() for name, part in parts.items()}
    groups = loop.optimizer.param_groups if isinstance(loop.optimizer, torch.optim.Optimizer) else []
    parameters = dict(enumerate(parameter for group in groups for parameter in group["params"]))
    return LoopState(model, ema, states, parameters, ())


def capture_state(loop: TrainingLoop, extra: Any, ranks: RankGroup) -> Trees:
    """Return the state of a loop as trees: `model`, `ema` if the loop has one, and `training`; all ranks together."""
    state = read_loop_state(loop, ranks)
    generators = {name: get_generator_state(generator) for name, generator in (loop.generators or {}).items()}
    training: Trees = {
        "classes": {name: type(part).__qualname__ for name, part in loop.stateful_parts().items()},
        **state.part_states,
        "generators": ranks.gather(generators),
        "random": ranks.gather(get_random_states()),
        "extra": extra,
    }
    trees: Trees = {"model": state.model, "training": training}
    if loop.ema is not None:
        trees["ema"] = state.ema
    if isinstance(loop.ema, torch.nn.Module):
        training["averaging"] = get_averaging_counters(loop.ema)
    return trees


def restore_loop(loop: TrainingLoop, state: LoopState, trees: Trees, rank: int = 0, *, random_states: bool) -> None:
    """Load trees that fit into the loop; each tensor goes to the device of its counterpart.

    `state` is the loop's own state before. `random_states` says whether to set the global generators, too.
    """
    training = trees["training"]
    load_weights(loop.model, trees["model"], get_averaging_counters(loop.model))
    if isinstance(loop.ema, torch.nn.Module):
        load_weights(loop.ema, trees["ema"], training["averaging"])
    elif loop.ema is not None:
        loop.ema.load_state_dict(trees["ema"])
    for name, part in loop.stateful_parts().items():
        if not isinstance(part, torch.optim.Optimizer):
            part.load_state_dict(training[name])
        elif state.fsdp_names:
            fsdp1.load_optimizer_state(loop.model, part, training[name], state.fsdp_names)
        else:
            part.load_state_dict(_shard_optimizer_state(state, training[name]))
    for name, generator in (loop.generators or {}).items():
        set_generator_state(generator, states_for_rank(training["generators"], rank)[name])
    if random_states:
        set_random_states(states_for_rank(training["random"], rank))


def parameters_by_number(state: LoopState, saved: Trees) -> dict[int, torch.Tensor]:
    """Return the optimizer's parameters by the numbers that its saved state uses for them."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    return dict(zip(numbers, state.parameters.values(), strict=True))


def _shard_optimizer_state(state: LoopState, saved: Trees) -> Trees:
    """Return an optimizer's saved state with the moments of each parameter sharded as the parameter is."""
    parameters = parameters_by_number(state, saved)
    states = {
        number: {name: shard_like(moment, parameters.get(number)) for name, moment in moments.items()}
        for number, moments in saved["state"].items()
    }
    return {**saved, "state": states}


# -- what does not fit ------------------------------------------------------------------------


def find_mismatches(loop: TrainingLoop, state: LoopState, trees: Trees, rank: int = 0) -> list[str]:
    """Return why the trees do not fit the loop, one message each; nothing is changed."""
    training = trees["training"]
    mismatches = find_weight_mismatches("model", state.model, trees["model"])
    if loop.ema is not None and "ema" not in trees:
        mismatches.append("ema: missing from the checkpoint")
    elif isinstance(loop.ema, torch.nn.Module):
        mismatches += find_weight_mismatches("ema", state.ema, trees["ema"])
        if sorted(get_averaging_counters(loop.ema)) != sorted(training.get("averaging", {})):
            mismatches.append(f"ema: it was not saved from a {type(loop.ema).__qualname__}")
    for name, part in loop.stateful_parts().items():
        if name not in training:
            mismatches.append(f"{name}: missing from the checkpoint")
        elif training["classes"][name] != type(part).__qualname__:
            mismatches.append(f"{name}: saved from {training['classes'][name]}, here {type(part).__qualname__}")
        elif isinstance(part, torch.optim.Optimizer):
            groups = _find_group_mismatches(state.part_states[name]["param_groups"], training[name]["param_groups"])
            mismatches += groups or ([] if state.fsdp_names else _find_moment_mismatches(part, training[name]))
    for name in loop.generators or {}:
        if name not in states_for_rank(training["generators"], rank):
            mismatches.append(f"generators: {name!r} is missing from the checkpoint")
    return mismatches


def _find_group_mismatches(current: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[str]:
    if len(current) != len(saved):
        return [f"optimizer: saved with {len(saved)} parameter groups, here {len(current)}"]
    mismatches = []
    for index, (group, saved_group) in enumerate(zip(current, saved, strict=True)):
        if len(group["params"]) != len(saved_group["params"]):
            counts = f"saved with {len(saved_group['params'])} parameters, here {len(group['params'])}"
            mismatches.append(f"optimizer: group {index}: {counts}")
        elif group.get("param_names") != saved_group.get("param_names"):
            names = f"saved for {saved_group.get('param_names')}, here {group.get('param_names')}"
            mismatches.append(f"optimizer: group {index}: {names}")
    return mismatches


def _find_moment_mismatches(optimizer: torch.optim.Optimizer, saved: Trees) -> list[str]:
    """Return which moments cannot belong to their parameter.

    An optimizer identifies its parameters by position alone: in a different order, they would get each other's.
    """
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    mismatches = []
    for number, parameter in zip(numbers, parameters, strict=True):
        for name in _MOMENT_NAMES & set(saved["state"].get(number, {})):
            moment = saved["state"][number][name]
            is_whole = type(moment) is torch.Tensor and type(parameter) in (torch.Tensor, torch.nn.Parameter)
            if is_whole and moment.shape != parameter.shape:
                shapes = f"saved with shape {list(moment.shape)}, but the parameter has {list(parameter.shape)}"
                mismatches.append(f"optimizer: {name} of parameter {number}: {shapes}")
    return sorted(mismatches)
