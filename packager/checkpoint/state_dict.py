"""Find the state dict in what a training script saved.

A file may be a state dict or hold one under a key: PyTorch's tutorials use `model_state_dict`, Lightning `state_dict`,
timm `state_dict_ema`, and many scripts `model`. `auto` selects the file itself if it is a state dict, and otherwise the
first of the usual keys that holds one.

Averaged weights (EMA) come in three forms: a state dict; the state dict of torch's `AveragedModel`, which adds the
counter `n_averaged` and puts `module.` before every name; and a shadow, which has the parameters alone, so that the
buffers come from the model's state dict in the same file.
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
from packager.errors import (
    CheckpointDigestWrong,
    CheckpointUnreadable,
    WeightsNotFound,
    did_you_mean,
    escape_unprintable,
)

MODEL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module")
_MAX_NAME_CHARACTERS = 10_000
_log = logging.getLogger("packager.checkpoint")
_BUFFER_NAMES = ("running_mean", "running_var", "num_batches_tracked")  # torch.nn's buffers that checkpoints hold


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, the key it was found under (empty for the file itself), and what was saved beside it.

    `beside` lists the other names in the file, and `about` describes them. `from_model_weights` lists the tensors that
    averaged weights lack and that come from the model's state dict. `format` names the file format, and `metadata`
    holds the strings of a safetensors file. As in torch, `state._metadata` has the version of each module by its path,
    if the file has it.
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
    """Read a checkpoint from a path or a URL, and select its state dict.

    `weights` is `auto`, `model`, `ema` or a dotted key, and `trust_pickle` lets the file run code, as in the manifest:
    see `packager.project.manifest.CheckpointSection`. Errors name the field `where`. `sha256` is the digest that the
    checkpoint must have; a URL with a digest is downloaded only once. Raises `CheckpointNotFound`,
    `CheckpointUnreadable`, `CheckpointNeedsCode`, `CheckpointDigestWrong` or `WeightsNotFound`, and for a URL whatever
    `packager.checkpoint.remote.fetch.fetch_remote` raises.
    """
    if isinstance(path, str) and urls.is_url(path):
        from packager.checkpoint.remote import fetch

        with fetch.fetch_remote(fetch.RemoteCheckpoint(path, sha256, where), StageReporter(ignore_event)) as fetched:
            return read(fetched, weights, trust_pickle=trust_pickle, where=where, sha256=sha256)
    path = Path(path)
    located = locate_files(path, where=where, weights=weights)
    if sha256 is not None and (digest := digest_checkpoint(located, sha256_file)) != sha256:
        raise CheckpointDigestWrong(str(path), where, sha256, digest)
    return read_located(located, weights, trust_pickle=trust_pickle, where=where)


def read_located(
    located: LocatedCheckpoint, weights: str, *, trust_pickle: bool, where: str | None, allow_empty: bool = False
) -> Checkpoint:
    """Read the files that `locate_files` returned, and select the state dict; the arguments are those of `read`.

    `allow_empty` accepts a file that holds nothing, which is the state dict of a module without weights. Raises
    `CheckpointUnreadable`, `CheckpointNeedsCode` or `WeightsNotFound`.
    """
    path = located.path
    for message in located.skipped_checkpoints:
        _log.warning("passed over: %s", escape_unprintable(message, keep_line_breaks=True))
    # A run that continues must not delete the checkpoint before it is open; mapped files then stay readable.
    with run_folder.lock_for_reading(located.head.parent) if located.from_run else nullcontext():
        opened = open_checkpoint(located, trust_pickle=trust_pickle, where=where)
        about = describe_run_checkpoint(located.head.parent) if located.from_run else None
    content = opened.content
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise CheckpointUnreadable(str(path), where, f"it holds a {type(content).__name__}, not a state dict")
    if allow_empty and not content and weights in ("auto", "model"):
        selected = Checkpoint(_with_metadata({}, content), "", ())
    else:
        selected = _select_state(content, "auto" if located.from_run else weights, where)
    _check_tensors(selected.state, str(path), where)
    beside = content if selected.key else {name: content[name] for name in selected.beside}
    about = about or describe_contents(beside, opened.metadata)
    return replace(selected, about=about, format=opened.format, metadata=dict(opened.metadata))


def _select_state(content: Mapping[Any, Any], weights: str, where: str | None) -> Checkpoint:
    if weights in ("auto", "model") or (weights == "ema" and _is_averaged(content)):
        if _is_state_dict(content):
            state = _extract_tensors(content)
            return Checkpoint(state, "", tuple(str(key) for key in content if key not in state))
        return _select_first(content, MODEL_KEYS, weights, where)
    if weights == "ema":
        return _select_ema(content, where)
    return _select_by_path(content, weights, where)


def _check_tensors(state: Mapping[str, torch.Tensor], path: str, where: str | None) -> None:
    """Refuse tensors that are not plain dense arrays of values."""
    for name, tensor in state.items():
        if len(name) > _MAX_NAME_CHARACTERS:
            why = f"a tensor has a name of {len(name)} characters: {name[:50]}…"
            raise CheckpointUnreadable(path, where, why)
        if tensor.is_meta:
            raise CheckpointUnreadable(path, where, f"{name} has no values: it was saved on the meta device")
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").replace("_", " ")
            raise CheckpointUnreadable(path, where, f"{name} is a {kind} tensor: save it dense, with to_dense()")
        if tensor.is_quantized:
            raise CheckpointUnreadable(path, where, f"{name} is quantized: save it with dequantize()")


# -- state dicts ----------------------------------------------------------------------------


def _is_state_dict(value: Any) -> bool:
    """Tell whether a value maps names to tensors, and contains no dict, one level down, that does so too."""
    return _has_tensors(value) and not any(_has_tensors(child) for child in value.values())


def _has_tensors(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(child, torch.Tensor) for child in value.values())
    )


def _is_averaged(value: Any) -> bool:
    """Tell whether a value is the state dict of an `AveragedModel`."""
    return (
        _is_state_dict(value)
        and isinstance(value.get(AVERAGED_COUNTER_KEY), torch.Tensor)
        and all(key == AVERAGED_COUNTER_KEY or key.startswith("module.") for key in value)
    )


def _extract_tensors(value: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    counter = {AVERAGED_COUNTER_KEY} if _is_averaged(value) else set()
    tensors = {
        name: tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor) and name not in counter
    }
    return _with_metadata(tensors, value)


def saved_metadata(value: object) -> dict[str, Mapping[str, Any]]:
    """Return the metadata that `state_dict()` attaches for each module, by its path; torch.save keeps the attribute."""
    metadata = getattr(value, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return {}
    return {path: entry for path, entry in metadata.items() if isinstance(path, str) and isinstance(entry, Mapping)}


def _with_metadata(state: Mapping[str, torch.Tensor], *sources: object) -> Mapping[str, torch.Tensor]:
    """Return the state with the metadata of the first of `sources` that has any."""
    copy = OrderedDict(state)
    vars(copy)["_metadata"] = next(filter(None, map(saved_metadata, sources)), {})
    return copy


def _as_state_dict(value: Any) -> Mapping[str, torch.Tensor] | None:
    """Return the state dict that a value is, or that of a module; None for anything else."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    return _extract_tensors(value) if _is_state_dict(value) else None


# -- keys -----------------------------------------------------------------------------------


def _select_first(content: Mapping[Any, Any], keys: tuple[str, ...], weights: str, where: str | None) -> Checkpoint:
    for key in keys:
        state = _as_state_dict(content.get(key))
        if state is not None:
            return Checkpoint(state, key, _other_keys(content, key))
    entries = [f"{key}: {type(value).__name__}" for key, value in content.items()]
    why = f"looked for: {', '.join(keys)}\nthe file holds: {', '.join(entries[:20]) or 'nothing'}"
    raise WeightsNotFound(weights, where, why, "name the key: checkpoint.weights: dotted.key")


def _select_by_path(content: Mapping[Any, Any], dotted: str, where: str | None) -> Checkpoint:
    value: Any = content
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            keys = [str(name) for name in value] if isinstance(value, Mapping) else []
            raise WeightsNotFound(dotted, where, f"there is no {key!r}", did_you_mean(key, keys[:20]))
        value = value[key]
    state = _as_state_dict(value)
    if state is None:
        raise WeightsNotFound(dotted, where, f"it is a {type(value).__name__} without tensors")
    return Checkpoint(state, dotted, _other_keys(content, None))


def _other_keys(content: Mapping[Any, Any], selected: str | None) -> tuple[str, ...]:
    return tuple(str(key) for key in content if key != selected)


# -- averaged weights -----------------------------------------------------------------------


def _select_ema(content: Mapping[Any, Any], where: str | None) -> Checkpoint:
    """Select averaged weights under one of the usual keys: a state dict, or a shadow of the parameters."""
    for key in EMA_KEYS:
        value = content.get(key)
        if isinstance(value, Mapping) and "shadow_params" in value:
            shadow = _name_shadow_tensors(value["shadow_params"], content, f"{key}.shadow_params", where)
            return _add_buffers(shadow, f"{key}.shadow_params", key, content)
        if isinstance(value, Mapping) and _as_state_dict(value.get("shadow")) is not None:
            return _add_buffers(_extract_tensors(value["shadow"]), f"{key}.shadow", key, content)
        state = _as_state_dict(value)
        if state is not None:
            return _add_buffers(state, key, key, content)
    return _select_first(content, EMA_KEYS, "ema", where)


def _add_buffers(shadow: Mapping[str, torch.Tensor], dotted: str, key: str, content: Mapping[Any, Any]) -> Checkpoint:
    """Complete a shadow of the parameters from the model's state dict, if that has all of its names."""
    model_state = _find_model_state(content)
    same_names = set(shadow) <= set(model_state)
    added = tuple(name for name in model_state if name not in shadow) if same_names else ()
    state = {name: shadow.get(name, tensor) for name, tensor in model_state.items()} if added else shadow
    if same_names:  # a shadow is often a plain dict: then the model's state dict has the versions
        state = _with_metadata(state, shadow, model_state)
    return Checkpoint(state, dotted, _other_keys(content, key), from_model_weights=added)


def _name_shadow_tensors(
    shadow: Any, content: Mapping[Any, Any], dotted: str, where: str | None
) -> Mapping[str, torch.Tensor]:
    """Name the list that torch_ema keeps, in the order of the parameters, after the model's state dict."""
    model_state = _find_model_state(content)
    names = [
        name for name, tensor in model_state.items()
        if tensor.is_floating_point() and name.rpartition(".")[2] not in _BUFFER_NAMES
    ]  # fmt: skip
    tensors = list(shadow) if isinstance(shadow, (list, tuple)) else []
    shapes = [tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else None for tensor in tensors]
    if not tensors or shapes != [tuple(model_state[name].shape) for name in names]:
        why = (
            f"it is a list of {len(tensors)} tensors without names, and the model in the file has "
            f"{len(names)} parameters{' of different shapes' if len(tensors) == len(names) else ''}"
        )
        hint = "save the averaged weights with their names: ema.copy_to(), then state_dict()"
        raise WeightsNotFound(dotted, where, why, hint)
    return dict(zip(names, tensors, strict=True))


def _find_model_state(content: Mapping[Any, Any]) -> Mapping[str, torch.Tensor]:
    states = (_as_state_dict(content.get(key)) for key in MODEL_KEYS)
    return next((state for state in states if state is not None), {})
