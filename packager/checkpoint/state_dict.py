"""Find the state dict in what a training script saved.

A file may be a state dict or hold one under a key of its own: PyTorch's tutorials use
`model_state_dict`, Lightning `state_dict`, timm `state_dict_ema`, and many scripts `model`. `auto`
takes the file itself where it is one, and otherwise the first of the usual keys that holds one.

Averaged weights come in three forms: a state dict of their own; that of torch's `AveragedModel`, which counts
in `n_averaged` and puts `module.` before every name; and a shadow of the parameters alone, whose buffers are
then those of the model's own state dict in the same file.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from packager.checkpoint import run_folder
from packager.checkpoint.locate import LocatedCheckpoint, digest_checkpoint, locate_files
from packager.checkpoint.metadata import (
    AVERAGED_COUNTER_KEY,
    EMA_KEYS,
    About,
    describe_contents,
    describe_run_checkpoint,
)
from packager.checkpoint.open_files import open_checkpoint
from packager.checkpoint.remote import urls
from packager.common.hashing import sha256_file
from packager.common.progress import StageReporter, ignore_event
from packager.errors import CheckpointDigestWrong, CheckpointUnreadable, WeightsNotFound, did_you_mean

MODEL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module")
_log = logging.getLogger("packager.checkpoint")
_BUFFER_NAMES = ("running_mean", "running_var", "num_batches_tracked")  # those of torch.nn that checkpoints hold


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, the key it was found under (empty for the file itself), and what lay beside it.

    `beside` are names, `about` is what is known of them; `borrowed` are the names that a shadow of the
    parameters took from the model's own state dict; `metadata` are the strings of a safetensors file. As in torch,
    `state._metadata` holds the version of each module by its path, where the file says it.
    """

    state: Mapping[str, torch.Tensor]
    key: str
    beside: tuple[str, ...]
    about: About = field(default_factory=About)
    from_model_weights: tuple[str, ...] = ()
    format: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def read(
    path: str | Path,
    weights: str = "auto",
    *,
    trust_pickle: bool = False,
    where: str | None = None,
    sha256: str | None = None,
) -> Checkpoint:
    """Read a checkpoint, at a path or a URL, and pick its state dict; see `packager.project.manifest.Checkpoint`.

    `sha256` is the digest that it must have; a URL of which that is known is downloaded once and for all.
    Raises `CheckpointNotFound`, `CheckpointUnreadable`, `CheckpointNeedsCode`, `CheckpointDigestWrong` or
    `WeightsNotFound`, and for a URL what `packager.checkpoint.remote.fetch.at_hand` raises.
    """
    if isinstance(path, str) and urls.is_url(path):
        from packager.checkpoint.remote import fetch

        with fetch.fetch_remote(fetch.RemoteCheckpoint(path, sha256, where), StageReporter(ignore_event)) as fetched:
            return read(fetched, weights, trust_pickle=trust_pickle, where=where, sha256=sha256)
    path = Path(path)
    located = locate_files(path, where=where, weights=weights)
    if sha256 is not None and (found := digest_checkpoint(located, sha256_file)) != sha256:
        raise CheckpointDigestWrong(str(path), where, sha256, found)
    return read_located(located, weights, trust_pickle=trust_pickle, where=where)


def read_located(located: LocatedCheckpoint, weights: str, *, trust_pickle: bool, where: str | None) -> Checkpoint:
    """Read the files of a checkpoint and pick its state dict; `where` is the manifest's field that names it.

    Raises `CheckpointUnreadable`, `CheckpointNeedsCode` or `WeightsNotFound`.
    """
    path = located.path
    for damaged in located.skipped_checkpoints:
        _log.warning("passed over: %s", damaged)
    # A run that goes on must not delete it meanwhile; what is mapped then stays.
    with run_folder.lock_for_reading(located.head.parent) if located.from_run else nullcontext():
        opened = open_checkpoint(located, trust_pickle=trust_pickle, where=where)
        told = describe_run_checkpoint(located.head.parent) if located.from_run else None
    content = opened.content
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise CheckpointUnreadable(str(path), where, f"it holds a {type(content).__name__}, not a state dict")
    chosen = _select_state(content, "auto" if located.from_run else weights, where)
    _check_tensors(chosen.state, str(path), where)
    beside = {name: content[name] for name in chosen.beside} if not chosen.key else content
    return replace(
        chosen, about=told or describe_contents(beside, opened.metadata), format=opened.format, metadata=dict(opened.metadata)
    )  # fmt: skip


def _select_state(found: Mapping[Any, Any], weights: str, where: str | None) -> Checkpoint:
    if weights in ("auto", "model") or (weights == "ema" and _is_averaged(found)):
        if _is_state_dict(found):
            state = _extract_tensors(found)
            return Checkpoint(state, "", tuple(str(key) for key in found if key not in state))
        return _select_first(found, MODEL_KEYS, weights, where)
    if weights == "ema":
        return _select_ema(found, where)
    return _select_by_path(found, weights, where)


def _check_tensors(state: Mapping[str, torch.Tensor], named: str, where: str | None) -> None:
    """Refuse tensors that are no plain arrays of values."""
    for name, one in state.items():
        if one.is_meta:
            raise CheckpointUnreadable(named, where, f"{name} has no values: it was saved on the meta device")
        if one.layout is not torch.strided or one.is_nested:
            kind = "nested" if one.is_nested else str(one.layout).removeprefix("torch.").replace("_", " ")
            raise CheckpointUnreadable(named, where, f"{name} is a {kind} tensor: save it dense, with to_dense()")
        if one.is_quantized:
            raise CheckpointUnreadable(named, where, f"{name} is quantized: save it with dequantize()")


# -- state dicts ----------------------------------------------------------------------------


def _is_state_dict(value: Any) -> bool:
    """Whether it has tensors under names, and no other dict that does: looks one level down and no deeper."""
    return _has_tensors(value) and not any(_has_tensors(one) for one in value.values())


def _has_tensors(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(one, torch.Tensor) for one in value.values())
    )


def _is_averaged(value: Any) -> bool:
    """Whether it is the state dict of an `AveragedModel`."""
    return (
        _is_state_dict(value)
        and isinstance(value.get(AVERAGED_COUNTER_KEY), torch.Tensor)
        and all(key == AVERAGED_COUNTER_KEY or key.startswith("module.") for key in value)
    )


def _extract_tensors(value: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    counter = {AVERAGED_COUNTER_KEY} if _is_averaged(value) else set()
    tensors = {key: one for key, one in value.items() if isinstance(one, torch.Tensor) and key not in counter}
    return _with_metadata(tensors, value)


def saved_metadata(value: object) -> dict[str, Mapping[str, Any]]:
    """Return what `state_dict()` noted of each module, by its path: torch.save keeps it as an attribute."""
    metadata = getattr(value, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return {}
    return {path: one for path, one in metadata.items() if isinstance(path, str) and isinstance(one, Mapping)}


def _with_metadata(state: Mapping[str, torch.Tensor], *saved: object) -> Mapping[str, torch.Tensor]:
    """Return the state with the metadata of the first of `saved` that has some."""
    noted = OrderedDict(state)
    vars(noted)["_metadata"] = next((one for one in map(saved_metadata, saved) if one), {})
    return noted


def _as_state_dict(value: Any) -> Mapping[str, torch.Tensor] | None:
    """The state dict that a value is, or has; None where it has none."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    return _extract_tensors(value) if _is_state_dict(value) else None


# -- where it is ----------------------------------------------------------------------------


def _select_first(found: Mapping[Any, Any], keys: tuple[str, ...], weights: str, where: str | None) -> Checkpoint:
    for key in keys:
        state = _as_state_dict(found.get(key))
        if state is not None:
            return Checkpoint(state, key, _other_keys(found, key))
    described = [f"{key}: {type(value).__name__}" for key, value in found.items()]
    why = f"looked for: {', '.join(keys)}\nthe file holds: {', '.join(described[:20]) or 'nothing'}"
    raise WeightsNotFound(weights, where, why, "name the key: checkpoint.weights: dotted.key")


def _select_by_path(found: Mapping[Any, Any], dotted: str, where: str | None) -> Checkpoint:
    value: Any = found
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [str(key) for key in value] if isinstance(value, Mapping) else []
            why = f"there is no {part!r}"
            raise WeightsNotFound(dotted, where, why, did_you_mean(part, known[:20]))
        value = value[part]
    state = _as_state_dict(value)
    if state is None:
        raise WeightsNotFound(dotted, where, f"it is a {type(value).__name__} without tensors")
    return Checkpoint(state, dotted, _other_keys(found, None))


def _other_keys(found: Mapping[Any, Any], key: str | None) -> tuple[str, ...]:
    return tuple(str(one) for one in found if one != key)


# -- averaged weights -----------------------------------------------------------------------


def _select_ema(found: Mapping[Any, Any], where: str | None) -> Checkpoint:
    """Averaged weights under a usual key: a state dict, or a shadow of the parameters."""
    for key in EMA_KEYS:
        inner = found.get(key)
        if isinstance(inner, Mapping) and "shadow_params" in inner:
            shadow = _name_shadow_tensors(inner["shadow_params"], found, f"{key}.shadow_params", where)
            return _add_buffers(shadow, f"{key}.shadow_params", key, found)
        if isinstance(inner, Mapping) and _as_state_dict(inner.get("shadow")) is not None:
            return _add_buffers(_extract_tensors(inner["shadow"]), f"{key}.shadow", key, found)
        state = _as_state_dict(inner)
        if state is not None:
            return _add_buffers(state, key, key, found)
    return _select_first(found, EMA_KEYS, "ema", where)


def _add_buffers(
    shadow: Mapping[str, torch.Tensor], dotted: str, key: str, found: Mapping[Any, Any]
) -> Checkpoint:  # fmt: skip
    """A shadow of the parameters, and the rest from the model's own state dict, where the names are the same."""
    own = _find_model_state(found)
    same_names = set(shadow) <= set(own)
    borrowed = tuple(name for name in own if name not in shadow) if same_names else ()
    state = {name: shadow.get(name, one) for name, one in own.items()} if borrowed else shadow
    if same_names:  # a shadow is often a plain dict: the versions are those of the model's own state dict then
        state = _with_metadata(state, shadow, own)
    return Checkpoint(state, dotted, _other_keys(found, key), from_model_weights=borrowed)


def _name_shadow_tensors(
    values: Any, found: Mapping[Any, Any], dotted: str, where: str | None
) -> Mapping[str, torch.Tensor]:
    """torch_ema keeps a list in the order of the parameters: the names are those of the model's own state dict."""
    own = _find_model_state(found)
    names = [
        name for name, one in own.items()
        if one.is_floating_point() and name.rpartition(".")[2] not in _BUFFER_NAMES
    ]  # fmt: skip
    tensors = list(values) if isinstance(values, (list, tuple)) else []
    shapes = [tuple(one.shape) if isinstance(one, torch.Tensor) else None for one in tensors]
    if not tensors or shapes != [tuple(own[name].shape) for name in names]:
        why = (
            f"it is a list of {len(tensors)} tensors without names, and beside it are {len(names)} parameters"
            f"{', in other shapes' if len(tensors) == len(names) else ''}"
        )
        raise WeightsNotFound(
            dotted, where, why, "save the averaged weights with their names: ema.copy_to(), then state_dict()"
        )
    return dict(zip(names, tensors, strict=True))


def _find_model_state(found: Mapping[Any, Any]) -> Mapping[str, torch.Tensor]:
    states = (_as_state_dict(found.get(key)) for key in MODEL_KEYS)
    return next((one for one in states if one is not None), {})
