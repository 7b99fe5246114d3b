"""Find the state dict in what a training script saved.

A file may be a state dict or hold one under a key of its own: PyTorch's tutorials use
`model_state_dict`, Lightning `state_dict`, timm `state_dict_ema`, and many scripts `model`. `auto`
takes the file itself where it is one, and otherwise the first of the usual keys that holds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packager.checkpoint.files import open_file
from packager.errors import CheckpointUnreadable, WeightsNotFound, did_you_mean

MODEL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module")
EMA_KEYS = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema_state", "shadow")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, the key it was found under (empty for the file itself), and what lay beside it."""

    state: Mapping[str, torch.Tensor]
    key: str
    beside: tuple[str, ...]


def read(path: Path, weights: str = "auto", *, trust_pickle: bool = False, where: str | None = None) -> Checkpoint:
    """Read a checkpoint and pick its state dict; see `packager.manifest.Checkpoint.weights`.

    Raises `CheckpointNotFound`, `CheckpointUnreadable`, `CheckpointNeedsCode` or `WeightsNotFound`.
    """
    found = open_file(path, trust_pickle=trust_pickle, where=where)
    if isinstance(found, torch.nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping):
        raise CheckpointUnreadable(str(path), where, f"it holds a {type(found).__name__}, not a state dict")
    if weights in ("auto", "model"):
        if _is_state_dict(found):
            state = _tensors(found)
            return Checkpoint(state, "", tuple(key for key in found if key not in state))
        return _first_of(found, MODEL_KEYS, weights, where)
    if weights == "ema":
        return _first_of(found, EMA_KEYS, weights, where)
    return _at(found, weights, where)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) for key in value)
        and any(isinstance(one, torch.Tensor) for one in value.values())
        and not any(_is_state_dict(one) for one in value.values())
    )


def _tensors(value: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {key: one for key, one in value.items() if isinstance(one, torch.Tensor)}


def _first_of(found: Mapping[str, Any], keys: tuple[str, ...], weights: str, where: str | None) -> Checkpoint:
    for key in keys:
        inner = found.get(key)
        if isinstance(inner, torch.nn.Module):
            inner = inner.state_dict()
        if isinstance(inner, Mapping) and _is_state_dict(inner):
            return Checkpoint(_tensors(inner), key, tuple(str(one) for one in found if one != key))
    described = [f"{key}: {type(value).__name__}" for key, value in found.items()]
    why = f"looked for: {', '.join(keys)}\nthe file holds: {', '.join(described[:20]) or 'nothing'}"
    raise WeightsNotFound(weights, where, why, "name the key: checkpoint.weights: dotted.key")


def _at(found: Mapping[str, Any], dotted: str, where: str | None) -> Checkpoint:
    value: Any = found
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [str(key) for key in value] if isinstance(value, Mapping) else []
            why = f"there is no {part!r}"
            raise WeightsNotFound(dotted, where, why, did_you_mean(part, known[:20]))
        value = value[part]
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if not _is_state_dict(value):
        raise WeightsNotFound(dotted, where, f"it is a {type(value).__name__} without tensors")
    return Checkpoint(_tensors(value), dotted, tuple(str(key) for key in found))
