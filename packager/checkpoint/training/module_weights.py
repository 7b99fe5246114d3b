"""Read and load a module's weights under the names that they have without wrappers.

`DataParallel`, `DistributedDataParallel`, `torch.compile` and `AveragedModel` put `module.` or `_orig_mod.` before the
names of what they wrap. None of that is part of a model: a run may continue with other wrappers, or with none.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from packager.checkpoint.ranks import is_sharded, shard_like
from packager.checkpoint.training import fsdp1
from packager.checkpoint.wrappers import wrapped_attribute
from packager.errors import StateNotExpressible


def unwrap_module(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside its wrappers."""
    while (attribute := _wrapped_attribute(module)) is not None:
        module = module.get_submodule(attribute)
    return module


def get_weights(module: torch.nn.Module) -> dict[str, Any]:
    """Return the state dict, nothing of it copied, by names without wrappers; all ranks together.

    Raises `StateNotExpressible` for an AveragedModel around FSDP1.
    """
    if fsdp1.contains_fsdp1(module):
        if isinstance(module, AveragedModel):
            raise StateNotExpressible("ema", "an AveragedModel of a FullyShardedDataParallel")
        return fsdp1.get_weights(module)
    state = module.state_dict()
    return {name: state[key] for key, name in _unwrapped_names(module).items()}


def get_averaging_counters(module: torch.nn.Module) -> dict[str, Any]:
    """Return what an AveragedModel counts in addition to the weights it averages; nothing for other modules."""
    if fsdp1.contains_fsdp1(module):
        return {}
    names = _unwrapped_names(module)
    return {key: value for key, value in module.state_dict().items() if key not in names}


def load_weights(module: torch.nn.Module, weights: Mapping[str, Any], counters: Mapping[str, Any]) -> None:
    """Load weights by names without wrappers, whole or sharded, and the counters of an AveragedModel."""
    if fsdp1.contains_fsdp1(module):
        fsdp1.load_weights(module, weights)
        return
    current = module.state_dict()
    state = OrderedDict(
        (key, shard_like(weights[name], current[key])) for key, name in _unwrapped_names(module).items()
    )
    state.update(counters)
    state._metadata = getattr(current, "_metadata", None)  # type: ignore[attr-defined]  # the version of each submodule
    module.load_state_dict(state)


def count_parameters(module: torch.nn.Module, weights: Mapping[str, Any]) -> int:
    """Return how many values the parameters have, on all ranks together. `weights` are those of `get_weights`."""
    if fsdp1.contains_fsdp1(module):
        return sum(math.prod(tensor.shape) for tensor in weights.values() if is_sharded(tensor))
    return sum(parameter.numel() for parameter in module.parameters())


def find_weight_mismatches(label: str, current: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Return what differs in names, dtypes and shapes, one message each; `label` says of what, such as `ema`."""
    mismatches = [f"{label}: missing from the checkpoint: {name}" for name in current if name not in saved]
    mismatches += [f"{label}: only in the checkpoint: {name}" for name in saved if name not in current]
    for name, value in current.items():
        types = [_tensor_type(tensor) for tensor in (saved.get(name), value) if isinstance(tensor, torch.Tensor)]
        if len(set(types)) > 1:
            mismatches.append(f"{label}: {name}: saved {types[0]}, here {types[1]}")
    return mismatches


def _tensor_type(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _unwrapped_names(module: torch.nn.Module) -> dict[str, str]:
    """Return the name without wrappers of each key of the state dict, except for those of an AveragedModel itself."""
    prefixes = []  # with wrapper → without
    for name, submodule in module.named_modules(remove_duplicate=False):
        if attribute := _wrapped_attribute(submodule):
            prefix = f"{name}." if name else ""
            prefixes.append((f"{prefix}{attribute}.", prefix))
    prefixes.sort(key=lambda pair: -len(pair[0]))  # the innermost first
    names = {}
    for key in module.state_dict():
        if isinstance(module, AveragedModel) and not key.startswith("module."):
            continue
        names[key] = key
        for wrapped, prefix in prefixes:
            if names[key].startswith(wrapped):
                names[key] = prefix + names[key][len(wrapped) :]
    return names


def _wrapped_attribute(module: torch.nn.Module) -> str | None:
    return "module" if isinstance(module, AveragedModel) else wrapped_attribute(module)
