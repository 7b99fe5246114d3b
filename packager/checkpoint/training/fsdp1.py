"""FullyShardedDataParallel (FSDP1), which hides the parameters of a module in flat ones.

torch's own functions take them apart and put them back, one wrapped module at a time; what comes out is what any other
module has: weights under its own names, and the moments of an optimizer by the number of the parameter, counted in
the order of the names. So such a run goes on without FSDP, and the other way round.

Every function here is for all ranks together.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from packager.checkpoint.ranks import RankGroup, is_sharded


def contains_fsdp1(module: torch.nn.Module) -> bool:
    """Whether FSDP1 is in the module."""
    # By name: importing it takes seconds.
    return any(type(one).__name__ == "FullyShardedDataParallel" for one in module.modules())


def get_weights(module: torch.nn.Module) -> dict[str, Any]:
    """The state dict under the names of the module alone, spread over the ranks."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    with _suppress_warnings():
        return dict(get_model_state_dict(module))


def load_weights(module: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Put such a state dict back; it may also be a whole one, on every rank."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    with _suppress_warnings():
        set_model_state_dict(
            module, dict(state), options=StateDictOptions(full_state_dict=not any(map(is_sharded, state.values())))
        )


def get_optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: RankGroup
) -> tuple[dict[str, Any], list[str]]:
    """The optimizer's state by number, as without FSDP, and the name of the parameter of each number."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    begun = any(ranks.gather(bool(optimizer.state)))
    with _suppress_warnings():
        named: Any = get_optimizer_state_dict(module, optimizer)
    if not begun:  # to find the names, torch makes a step without an effect, of which nothing is to be left
        optimizer.state.clear()
    order = {name: place for place, name in enumerate(get_weights(module))}
    groups: list[Any] = [
        {**group, "params": sorted(group["params"], key=lambda name: order[name])} for group in named["param_groups"]
    ]
    names = [name for group in groups for name in group["params"]]
    number = {name: place for place, name in enumerate(names)}
    states: Any = named["state"] if begun else {}
    return {
        "state": {number[name]: states[name] for name in names if name in states},
        "param_groups": [{**group, "params": [number[name] for name in group["params"]]} for group in groups],
    }, names


def load_optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Put a state by number back; `names` are those that `optimizer_state` gave."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    numbers = [number for group in state["param_groups"] for number in group["params"]]
    name = dict(zip(numbers, names, strict=True))
    groups = [{**group, "params": [name[one] for one in group["params"]]} for group in state["param_groups"]]
    if not state["state"]:
        optimizer.state.clear()
        for own, group in zip(optimizer.param_groups, groups, strict=True):
            own.update({key: one for key, one in group.items() if key != "params"})
        return
    found: Any = {"state": {name[key]: one for key, one in state["state"].items()}, "param_groups": groups}
    with _suppress_warnings():
        set_optimizer_state_dict(module, optimizer, found, options=StateDictOptions(strict=False))


@contextlib.contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Torch warns of itself where it uses what it has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
