"""What forward() returns → named tensors in a fixed order.

A module may return a tensor, a tuple or list, a dict, a dataclass (transformers' ModelOutput is
both), or these inside each other. A bundle has a flat list of named outputs. This module flattens
and names without looking inside the tensors, so that the build, which has torch, and the loader's
TorchScript fallback share it; it imports neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


class NotATensor(Exception):
    """forward() returned something that is no tensor; `path` says where in its return value."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"{path or 'the return value'} is a {found}, not a tensor")


class DuplicateOutputName(Exception):
    """Two tensors of what forward() returns would have one name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"two tensors of the return value would be called {name}")


class OutputNamesMismatch(Exception):
    """The names asked for are neither keys of what forward() returns nor as many as it returns."""

    def __init__(self, asked: Sequence[str], returned: Sequence[str]) -> None:
        super().__init__(f"outputs asks for {', '.join(asked)}; forward() returns {', '.join(returned)}")


def flatten_outputs(value: Any) -> dict[str, Any]:
    """Every tensor in `value`, in order, under a name of its own: its keys, or `output_0`, ….

    Nested values join their names with a dot; `None` is left out, as in transformers' outputs.
    Raises `NotTensors` or `NamesClash`.
    """
    if _is_tensor(value):
        return {"output_0": value}
    found: dict[str, Any] = {}
    for name, item in _child_items(value, ""):
        _collect_tensors(name, item, found)
    if not found:
        raise NotATensor("", "value without any tensor")
    return found


def select_outputs(flat: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """The outputs under the names asked for: picked by key, or else renamed in order.

    Raises `NamesDoNotFit`, also where renaming would give one output the key of another.
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


def _collect_tensors(path: str, value: Any, found: dict[str, Any]) -> None:
    if value is None:
        return
    if _is_tensor(value):
        if path in found:
            raise DuplicateOutputName(path)
        found[path] = value
        return
    for name, item in _child_items(value, path):
        _collect_tensors(f"{path}.{name}", item, found)


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
