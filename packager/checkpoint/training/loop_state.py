"""What a training loop is made of ↔ trees that `packager.checkpoint.state_tree` can express.

A loop that is to go on as if nothing had happened needs more than weights: the optimizer's moments, the
scheduler's place, the loss scale, the averaged weights, and every generator that dropout, augmentation or
the order of the data draw from. `capture` reads all of it, `differences` says why it could not be put back,
and `give_back` puts it back, the generators last, since anything before may draw from them.

Wrappers are not part of a model: `DataParallel`, `DistributedDataParallel`, `torch.compile` and `AveragedModel`
put `module.` or `_orig_mod.` before names, and they are saved and found without.
"""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from packager.checkpoint.ranks import RankGroup, is_sharded, shard_like
from packager.checkpoint.training import fsdp1
from packager.errors import StateNotExpressible

Generator = torch.Generator | random.Random | np.random.Generator
Trees = dict[str, Any]
_log = logging.getLogger("packager.checkpoint")

# What torch.optim keeps for each element of a parameter.
_MOMENT_NAMES = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "exp_inf"}
)


class Stateful(Protocol):
    """An optimizer, a scheduler, a scaler, or anything else that gives and takes a state dict."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


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
        """Those whose state is taken as it is."""
        named = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return {name: one for name, one in named.items() if one is not None}


@dataclass(frozen=True)
class LoopState:
    """The state that a loop has, as it would be saved, and what its parts are like."""

    model: Trees
    ema: Any
    part_states: Mapping[str, Any]
    parameters: Mapping[int, torch.Tensor]
    """Of the optimizer, by number."""
    fsdp_names: tuple[str, ...]
    """Of these, in their order, where FSDP1 hides the parameters."""


def read_loop_state(loop: TrainingLoop, ranks: RankGroup) -> LoopState:
    """The state of a loop, nothing of it copied; all ranks together. Raises `StateNotExpressible`."""
    model, ema = _get_weights(loop.model), None
    if loop.ema is not None:
        ema = _get_weights(loop.ema) if isinstance(loop.ema, torch.nn.Module) else loop.ema.state_dict()
    helpers = loop.stateful_parts()
    if isinstance(loop.optimizer, torch.optim.Optimizer) and fsdp1.contains_fsdp1(loop.model):
        optimizer = helpers.pop("optimizer")
        state, names = fsdp1.get_optimizer_state(loop.model, optimizer, ranks)  # type: ignore[arg-type]  # just asked
        states = {"optimizer": state, **{name: one.state_dict() for name, one in helpers.items()}}
        return LoopState(model, ema, states, {number: model[name] for number, name in enumerate(names)}, tuple(names))
    states = {name: one.state_dict() for name, one in helpers.items()}
    groups = loop.optimizer.param_groups if isinstance(loop.optimizer, torch.optim.Optimizer) else []
    parameters = dict(enumerate(one for group in groups for one in group["params"]))
    return LoopState(model, ema, states, parameters, ())


def capture_state(loop: TrainingLoop, extra: Any, ranks: RankGroup) -> Trees:
    """The state of a loop as three trees: `model`, `ema` where there is one, and `training`; all ranks together."""
    now = read_loop_state(loop, ranks)
    training: Trees = {
        "classes": {name: type(one).__qualname__ for name, one in loop.stateful_parts().items()},
        **now.part_states,
        "generators": ranks.gather(_get_generator_states(loop)),
        "random": ranks.gather(_get_random_states()),
        "extra": extra,
    }
    trees: Trees = {"model": now.model, "training": training}
    if loop.ema is not None:
        trees["ema"] = now.ema
    if isinstance(loop.ema, torch.nn.Module):
        training["averaging"] = _averaging_counters(loop.ema)
    return trees


def find_mismatches(loop: TrainingLoop, state: LoopState, trees: Trees, rank: int = 0) -> list[str]:
    """Why the trees do not fit the loop, in words; nothing is changed."""
    training = trees["training"]
    found = _find_weight_mismatches("model", state.model, trees["model"])
    if loop.ema is not None and "ema" not in trees:
        found.append("ema: the checkpoint holds none")
    elif isinstance(loop.ema, torch.nn.Module):
        found += _find_weight_mismatches("ema", state.ema, trees["ema"])
        if sorted(_averaging_counters(loop.ema)) != sorted(training.get("averaging", {})):
            found.append(f"ema: it was not saved from a {type(loop.ema).__qualname__}")
    for name, one in loop.stateful_parts().items():
        if name not in training:
            found.append(f"{name}: the checkpoint holds none")
        elif training["classes"][name] != type(one).__qualname__:
            found.append(f"{name}: saved from {training['classes'][name]}, here {type(one).__qualname__}")
        elif isinstance(one, torch.optim.Optimizer):
            groups = _find_group_mismatches(state.part_states[name]["param_groups"], training[name]["param_groups"])
            found += groups or ([] if state.fsdp_names else _find_moment_mismatches(one, training[name]))
    for name in loop.generators or {}:
        if name not in _states_for_rank(training["generators"], rank):
            found.append(f"generators: the checkpoint holds no {name!r}")
    return found


def restore_loop(loop: TrainingLoop, now: LoopState, trees: Trees, rank: int = 0, *, random_states: bool) -> None:
    """Put a state that fits into the loop: each tensor to the device that its place is on."""
    training = trees["training"]
    _load_weights(loop.model, trees["model"], _averaging_counters(loop.model))
    if isinstance(loop.ema, torch.nn.Module):
        _load_weights(loop.ema, trees["ema"], training["averaging"])
    elif loop.ema is not None:
        loop.ema.load_state_dict(trees["ema"])
    for name, one in loop.stateful_parts().items():
        if not isinstance(one, torch.optim.Optimizer):
            one.load_state_dict(training[name])
        elif now.fsdp_names:
            fsdp1.load_optimizer_state(loop.model, one, training[name], now.fsdp_names)
        else:
            one.load_state_dict(_shard_optimizer_state(now, training[name]))
    for name, generator in (loop.generators or {}).items():
        _set_generator_state(generator, _states_for_rank(training["generators"], rank)[name])
    if random_states:
        _set_random_states(_states_for_rank(training["random"], rank))


# -- tensors that are spread over ranks ---------------------------------------------------------


def allocate_targets(loop: TrainingLoop, now: LoopState, trees: Trees) -> dict[int, torch.Tensor]:
    """For each tensor without values (by `id`) that the loop wants, one with room for it, cut as its place is."""
    training = trees["training"]
    pairs = [(trees["model"], now.model), (training["extra"], None)]
    if loop.ema is not None:
        pairs.append((trees["ema"], now.ema))
    for name, one in loop.stateful_parts().items():
        own = _parameter_tree(now, training[name]) if isinstance(one, torch.optim.Optimizer) else now.part_states[name]
        pairs.append((training[name], own))
    return {
        id(empty): _allocate_like(empty, like) for saved, own in pairs for empty, like in _pair_meta_tensors(saved, own)
    }


def fill_tree(tree: Any, values: Mapping[int, torch.Tensor]) -> Any:
    """The tree with these values for tensors without values."""
    if isinstance(tree, dict):
        return type(tree)({key: fill_tree(one, values) for key, one in tree.items()})
    if type(tree) in (list, tuple):
        return type(tree)(fill_tree(one, values) for one in tree)
    return values.get(id(tree), tree) if isinstance(tree, torch.Tensor) else tree


def _pair_meta_tensors(saved: Any, own: Any) -> Iterator[tuple[torch.Tensor, Any]]:
    """Each tensor of a tree that has no values, and what the loop has in its place."""
    if isinstance(saved, torch.Tensor):
        if saved.is_meta:
            yield saved, own
    elif isinstance(saved, Mapping):
        for key, one in saved.items():
            yield from _pair_meta_tensors(one, own.get(key) if isinstance(own, Mapping) else None)
    elif isinstance(saved, (list, tuple)):
        alike = own if isinstance(own, (list, tuple)) and len(own) == len(saved) else [None] * len(saved)
        for one, here in zip(saved, alike, strict=True):
            yield from _pair_meta_tensors(one, here)


def _allocate_like(empty: torch.Tensor, like: Any) -> torch.Tensor:
    if is_sharded(like) and like.shape == empty.shape:
        return torch.empty_like(like, dtype=empty.dtype)
    return torch.empty(empty.shape, dtype=empty.dtype)


def _parameter_tree(now: LoopState, saved: Trees) -> Trees:
    """An optimizer's state with the parameter itself for each of its moments: they are cut as it is."""
    like = _parameters_by_number(now, saved)
    return {"state": {number: dict.fromkeys(state, like.get(number)) for number, state in saved["state"].items()}}


def _parameters_by_number(now: LoopState, saved: Trees) -> dict[int, torch.Tensor]:
    """The parameters by the numbers that the saved state has for them."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    return dict(zip(numbers, now.parameters.values(), strict=True))


# -- weights ----------------------------------------------------------------------------------


def unwrap_module(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside its wrappers."""
    while (inner := _wrapped_attribute(module)) is not None:
        module = module.get_submodule(inner)
    return module


def _wrapped_attribute(module: torch.nn.Module) -> str | None:
    """The attribute under which a wrapper keeps what it wraps."""
    if isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
        return "module"
    return "_orig_mod" if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules else None


def _unwrapped_names(module: torch.nn.Module) -> dict[str, str]:
    """For each key of the module's state dict its name without wrappers; keys of an AveragedModel itself left out."""
    heads = []
    for name, one in module.named_modules(remove_duplicate=False):
        if inner := _wrapped_attribute(one):
            head = f"{name}." if name else ""
            heads.append((f"{head}{inner}.", head))
    heads.sort(key=lambda one: -len(one[0]))  # the innermost first
    names = {}
    for key in module.state_dict():
        if isinstance(module, AveragedModel) and not key.startswith("module."):
            continue
        plain = key
        for wrapped, head in heads:
            if plain.startswith(wrapped):
                plain = head + plain[len(wrapped) :]
        names[key] = plain
    return names


def count_parameters(module: torch.nn.Module, weights: Mapping[str, Any]) -> int:
    """How many values the parameters have, on all ranks together."""
    if fsdp1.contains_fsdp1(module):
        return sum(math.prod(one.shape) for one in weights.values() if is_sharded(one))
    return sum(one.numel() for one in module.parameters())


def _get_weights(module: torch.nn.Module) -> dict[str, Any]:
    if fsdp1.contains_fsdp1(module):
        if isinstance(module, AveragedModel):
            raise StateNotExpressible("ema", "an AveragedModel of a FullyShardedDataParallel")
        return fsdp1.get_weights(module)
    state = module.state_dict()
    return {plain: state[key] for key, plain in _unwrapped_names(module).items()}


def _averaging_counters(module: torch.nn.Module) -> dict[str, Any]:
    """What an AveragedModel counts, beside the weights that it averages."""
    if fsdp1.contains_fsdp1(module):
        return {}
    names = _unwrapped_names(module)
    return {key: one for key, one in module.state_dict().items() if key not in names}


def _load_weights(module: torch.nn.Module, weights: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    if fsdp1.contains_fsdp1(module):
        fsdp1.load_weights(module, weights)
        return
    own = module.state_dict()
    state = OrderedDict((key, shard_like(weights[plain], own[key])) for key, plain in _unwrapped_names(module).items())
    state.update(beside)
    state._metadata = getattr(own, "_metadata", None)  # type: ignore[attr-defined]  # the versions of the layers' formats
    module.load_state_dict(state)


def _find_weight_mismatches(what: str, own: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    found = [f"{what}: not in the checkpoint: {name}" for name in own if name not in saved]
    found += [f"{what}: only in the checkpoint: {name}" for name in saved if name not in own]
    for name, here in own.items():
        there = saved.get(name)
        if (
            isinstance(here, torch.Tensor)
            and isinstance(there, torch.Tensor)
            and _tensor_type(here) != _tensor_type(there)
        ):
            found.append(f"{what}: {name}: saved {_tensor_type(there)}, here {_tensor_type(here)}")
    return found


def _tensor_type(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _find_group_mismatches(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[str]:
    if len(own) != len(saved):
        return [f"optimizer: saved with {len(saved)} parameter groups, here {len(own)}"]
    found = []
    for index, (here, there) in enumerate(zip(own, saved, strict=True)):
        if len(here["params"]) != len(there["params"]):
            counts = f"saved with {len(there['params'])} parameters, here {len(here['params'])}"
            found.append(f"optimizer: group {index}: {counts}")
        elif here.get("param_names") != there.get("param_names"):
            found.append(
                f"optimizer: group {index}: saved for {there.get('param_names')}, here {here.get('param_names')}"
            )
    return found


def _find_moment_mismatches(optimizer: torch.optim.Optimizer, saved: Trees) -> list[str]:
    """An optimizer knows its parameters by their place alone: in another order, they would get each other's moments."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    found = []
    for number, parameter in zip(numbers, parameters, strict=True):
        for name in _MOMENT_NAMES & set(saved["state"].get(number, {})):
            there = saved["state"][number][name]
            whole = type(there) is torch.Tensor and type(parameter) in (torch.Tensor, torch.nn.Parameter)
            if whole and there.shape != parameter.shape:
                shapes = f"saved in the shape {list(there.shape)}, and the parameter is {list(parameter.shape)}"
                found.append(f"optimizer: {name} of parameter {number}: {shapes}")
    return sorted(found)


def _shard_optimizer_state(now: LoopState, saved: Trees) -> Trees:
    """An optimizer's state in which the moments of a parameter are cut as the parameter is."""
    like = _parameters_by_number(now, saved)
    states = {
        number: {name: shard_like(one, like.get(number)) for name, one in state.items()}
        for number, state in saved["state"].items()
    }
    return {**saved, "state": states}


# -- generators -------------------------------------------------------------------------------


def _get_generator_states(loop: TrainingLoop) -> Trees:
    return {name: _get_generator_state(one) for name, one in (loop.generators or {}).items()}


def _states_for_rank(states: list[Trees], rank: int) -> Trees:
    """A run restored on more ranks than it was saved on has nothing for the others."""
    if rank >= len(states):
        _log.warning(
            "random states of %d ranks were saved, and this is rank %d: it has those of rank 0", len(states), rank
        )
        return states[0]
    return states[rank]


def _get_random_states() -> Trees:
    found: Trees = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types there
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def _set_random_states(states: Trees) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    cuda, devices = states.get("cuda", []), torch.cuda.device_count()
    if cuda and len(cuda) != devices:
        _log.warning("random states of %d CUDA devices were saved, and %d are here", len(cuda), devices)
    for index, state in enumerate(cuda[:devices]):
        torch.cuda.set_rng_state(state, index)


def _get_generator_state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def _set_generator_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
