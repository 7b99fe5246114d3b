"""Flatten what forward() returns into named tensors in a fixed order.

A module may return a tensor, a tuple or list, a dict, a dataclass (transformers' ModelOutput is both), or any
nesting of these. A bundle has a flat list of named outputs. A tensor is anything with a dtype and a shape, so this
module needs neither torch nor numpy; the build and the TorchScript fallback of the loader share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


class NotATensor(Exception):
    """forward() returned something that is not a tensor; `path` is its position in the return value."""

    def __init__(self, path: str, actual: str) -> None:
        super().__init__(f"{path or 'the return value'} must be a tensor, got {actual}")


class DuplicateOutputName(Exception):
    """Two tensors in the return value of forward() would get the same name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"two tensors of the return value would be called {name}")


class OutputNamesMismatch(Exception):
    """The requested names are not keys of the return value of forward(), and cannot rename its tensors in order."""

    def __init__(self, requested: Sequence[str], returned: Sequence[str]) -> None:
        super().__init__(f"outputs requests {', '.join(requested)}; forward() returns {', '.join(returned)}")
        self.requested, self.returned = tuple(requested), tuple(returned)


def flatten_outputs(value: Any) -> dict[str, Any]:
    """Return every tensor in `value` by name, in order. Names are keys and fields, or `output_0`, `output_1`, ….

    Names of nested values are joined with a dot; `None` is left out, as in transformers' outputs.
    Raises `NotATensor` or `DuplicateOutputName`.
    """
    if _is_tensor(value):
        return {"output_0": value}
    tensors: dict[str, Any] = {}
    for name, item in _child_items(value, ""):
        _collect_tensors(name, item, tensors)
    if not tensors:
        raise NotATensor("", "a value without tensors")
    return tensors


def select_outputs(flat: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Select outputs by name, or rename all of them in order if the names are not their keys.

    None returns all outputs unchanged. Raises `OutputNamesMismatch`, also if renaming would give an output the
    key of a different one.
    """
    if names is None:
        return dict(flat)
    if all(name in flat for name in names):
        return {name: flat[name] for name in names}
    if len(names) != len(flat) or any(name in flat and name != key for name, key in zip(names, flat, strict=True)):
        raise OutputNamesMismatch(names, list(flat))
    return dict(zip(names, flat.values(), strict=True))


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _collect_tensors(path: str, value: Any, tensors: dict[str, Any]) -> None:
    if value is None:
        return
    if _is_tensor(value):
        if path in tensors:
            raise DuplicateOutputName(path)
        tensors[path] = value
        return
    for name, item in _child_items(value, path):
        _collect_tensors(f"{path}.{name}", item, tensors)


def _child_items(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(name, getattr(value, name)) for name in value._fields]
    if isinstance(value, (tuple, list)):
        return [(f"output_{index}" if not path else str(index), item) for index, item in enumerate(value)]
    raise NotATensor(path, type(value).__name__)
