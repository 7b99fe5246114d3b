"""Read and load the state of a FullyShardedDataParallel (FSDP1), which hides a module's parameters in flat ones.

torch's own functions (`torch.distributed.checkpoint.state_dict`) take the flat parameters apart and put them back. The
result is the state of any other module: weights under their own names, and the moments of an optimizer by the number
of the parameter, counted in the order of the names. A run can therefore continue without FSDP, and the reverse.

Every function that communicates must be called by all ranks together.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from packager.checkpoint.ranks import RankGroup, is_sharded


def contains_fsdp1(module: torch.nn.Module) -> bool:
    """Return whether the module, or a part of it, is wrapped in FSDP1. This does not communicate."""
    # By name: importing the class takes seconds.
    return any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules())


def get_weights(module: torch.nn.Module) -> dict[str, Any]:
    """Return the state dict under the module's names without FSDP, its tensors sharded over the ranks."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    with _suppress_warnings():
        return dict(get_model_state_dict(module))


def load_weights(module: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict of `get_weights`, or one of whole tensors that every rank has."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=not any(map(is_sharded, state.values())))
    with _suppress_warnings():
        set_model_state_dict(module, dict(state), options=options)


def get_optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: RankGroup
) -> tuple[dict[str, Any], list[str]]:
    """Return the optimizer's state by parameter number, as without FSDP, and the parameters' names in that order."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    has_state = any(ranks.gather(bool(optimizer.state)))
    with _suppress_warnings():
        named: Any = get_optimizer_state_dict(module, optimizer)
    if not has_state:  # to find the names, torch takes a step without effect, which leaves a state
        optimizer.state.clear()
    order = {name: position for position, name in enumerate(get_weights(module))}
    groups: list[Any] = [
        {**group, "params": sorted(group["params"], key=lambda name: order[name])} for group in named["param_groups"]
    ]
    names = [name for group in groups for name in group["params"]]
    number = {name: position for position, name in enumerate(names)}
    states: Any = named["state"] if has_state else {}
    return {
        "state": {number[name]: states[name] for name in names if name in states},
        "param_groups": [{**group, "params": [number[name] for name in group["params"]]} for group in groups],
    }, names


def load_optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Load a state by parameter number; `names` are those that `get_optimizer_state` returned for this optimizer."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    numbers = [number for group in state["param_groups"] for number in group["params"]]
    name = dict(zip(numbers, names, strict=True))
    groups = [{**group, "params": [name[number] for number in group["params"]]} for group in state["param_groups"]]
    if not state["state"]:
        optimizer.state.clear()
        for current, group in zip(optimizer.param_groups, groups, strict=True):
            current.update({key: value for key, value in group.items() if key != "params"})
        return
    moments = {name[number]: values for number, values in state["state"].items()}
    named: Any = {"state": moments, "param_groups": groups}
    with _suppress_warnings():
        set_optimizer_state_dict(module, optimizer, named, options=StateDictOptions(strict=False))


@contextlib.contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Ignore the warnings of torch about its own use of what it has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
