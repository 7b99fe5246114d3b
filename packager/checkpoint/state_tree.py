"""Encode a state dict as tensors and JSON, exactly and without pickle, and decode it.

A state dict is a tree: dicts, lists and tuples of tensors and plain values. `encode_tree` takes the tensors out, each
named by its path, and describes the rest as JSON. A type that JSON lacks becomes an object with one key, a tag, such as
`{"tuple": [1, 2]}` or `{"tensor": "state.0.exp_avg"}`; dicts are tagged too, so that no saved value can be mistaken for
a tag. `decode_tree` restores the same types, the same bits and the same order; a tensor that occurred twice is shared
again. A value that cannot be expressed is refused with its path and class: a pickle would accept it, and run code when
it is read.
"""

from __future__ import annotations

import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from packager.checkpoint.ranks import is_sharded, local_shard
from packager.errors import StateNotExpressible

SAFETENSORS_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16", torch.int16: "I16",
    torch.uint32: "U32", torch.int32: "I32", torch.uint64: "U64", torch.int64: "I64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_PLAIN_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_MAX_EXACT_JSON_INT = 2**53  # larger integers lose digits in readers of JSON that use float64


@dataclass(frozen=True)
class EncodedTree:
    """The tensors of a tree by name, and the tree itself as JSON.

    Tensors are contiguous, apart from those that are sharded over ranks, which are left as they are.
    """

    tensors: Mapping[str, torch.Tensor]
    document: Any

    @property
    def sharded(self) -> dict[str, torch.Tensor]:
        """The tensors that are sharded over ranks."""
        return {name: tensor for name, tensor in self.tensors.items() if is_sharded(tensor)}

    @property
    def unsharded(self) -> EncodedTree:
        """The same tree without the sharded tensors."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if not is_sharded(tensor)}
        return EncodedTree(tensors, self.document)


def encode_tree(tree: Any, label: str = "") -> EncodedTree:
    """Encode a tree; contiguous tensors are not copied. `label` names the tree in errors.

    Raises `StateNotExpressible`.
    """
    encoder = _Encoder(label)
    try:
        return EncodedTree(encoder.tensors, encoder.walk(tree, ""))
    except RecursionError:
        raise encoder.refusal("", "nested endlessly") from None


def decode_tree(encoded: EncodedTree) -> Any:
    """Return the tree that was encoded.

    Raises LookupError, TypeError or ValueError for a document that `encode_tree` did not write.
    """
    return _Decoder(encoded.tensors).walk(encoded.document)


class _Encoder:
    """One encoding: the tensors so far, by name, and the tag of each by its memory."""

    def __init__(self, label: str) -> None:
        self._label = label
        self.tensors: dict[str, torch.Tensor] = {}
        self._seen: dict[Any, dict[str, Any]] = {}

    def walk(self, value: Any, path: str) -> Any:
        """Return the JSON of a value at a path; its tensors are added to `tensors`."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if abs(value) < _MAX_EXACT_JSON_INT else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if kind is str:
            return self._text(value, path)
        if kind is list:
            return [self.walk(item, _join_path(path, index)) for index, item in enumerate(value)]
        if kind is dict:
            return self._dict(value, path)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(value, path)
        return self._tagged(value, path)

    def refusal(self, path: str, description: str) -> StateNotExpressible:
        """Return the error for a value at a path."""
        return StateNotExpressible(".".join(filter(None, (self._label, path))) or "the state", description)

    def _tagged(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in (tuple, torch.Size):
            tag = "tuple" if kind is tuple else "size"
            return {tag: [self.walk(item, _join_path(path, index)) for index, item in enumerate(value)]}
        if kind in (OrderedDict, Counter):
            return {"ordered" if kind is OrderedDict else "counter": self._dict(dict(value), path)}
        if kind is bytes:
            return {"bytes": value.hex()}
        if kind is complex:
            return {"complex": struct.pack(">dd", value.real, value.imag).hex()}
        if kind is torch.dtype:
            return {"dtype": str(value).removeprefix("torch.")}
        if kind is torch.device:
            return {"device": str(value)}
        raise self.refusal(path, f"a {_class_name(value)}")

    def _text(self, value: str, path: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.refusal(path, "a str that UTF-8 cannot encode") from None
        return value

    def _dict(self, value: dict[Any, Any], path: str) -> Any:
        for key in value:
            if type(key) not in (str, int):
                raise self.refusal(path, f"a dict with the key {key!r}, a {_class_name(key)}")
        items = [[self.walk(key, path), self.walk(item, _join_path(path, key))] for key, item in value.items()]
        return {"dict": dict(items)} if all(type(key) is str for key in value) else {"items": items}

    def _tensor(self, value: torch.Tensor, path: str) -> dict[str, Any]:
        if is_sharded(value):
            return self._sharded_tensor(value, path)
        if type(value) not in _PLAIN_TENSOR_TYPES or value.layout is not torch.strided or value.is_quantized:
            raise self.refusal(path, f"a {_class_name(value)} of layout {value.layout}")
        if value.is_meta:
            raise self.refusal(path, "a tensor on the meta device, without values")
        value = value.detach()
        # Two views of the same memory with the same strides are one tensor: tied weights stay tied.
        view = (
            value.data_ptr(),
            value.dtype,
            value.shape,
            value.stride(),
            value.device,
            value.is_conj(),
            value.is_neg(),
        )
        if value.numel() > 0 and view in self._seen:
            return self._seen[view]
        tag: dict[str, Any] = {"tensor": self._name(path)}
        flat = value.resolve_conj().resolve_neg()
        if flat.is_complex():
            flat, tag["complex"] = torch.view_as_real(flat), True
        if flat.dtype not in SAFETENSORS_DTYPES:
            raise self.refusal(path, f"a tensor of {str(value.dtype).removeprefix('torch.')}")
        # A different order of the dimensions in memory, such as channels_last, is kept, and nothing is copied.
        strides = flat.stride()
        order = sorted(range(flat.dim()), key=lambda axis: -strides[axis])
        if not flat.is_contiguous() and flat.permute(order).is_contiguous():
            flat, tag["order"] = flat.permute(order), order
        self.tensors[tag["tensor"]] = flat.contiguous()
        self._seen[view] = tag
        return tag

    def _sharded_tensor(self, value: Any, path: str) -> dict[str, Any]:
        local = local_shard(value)
        placements = [type(placement).__name__ for placement in getattr(value, "placements", ())]
        if not set(placements) <= {"Shard", "Replicate"}:
            raise self.refusal(path, f"a tensor with the placements {', '.join(placements)}")
        if (
            type(local) not in _PLAIN_TENSOR_TYPES
            or local.layout is not torch.strided
            or value.dtype not in SAFETENSORS_DTYPES
        ):
            raise self.refusal(path, f"a sharded {_class_name(local)} of {str(value.dtype).removeprefix('torch.')}")
        view = (local.data_ptr(), value.dtype, value.shape, local.stride(), local.device)
        if local.numel() > 0 and view in self._seen:
            return self._seen[view]
        tag = self._seen[view] = {"tensor": self._name(path)}
        self.tensors[tag["tensor"]] = value
        return tag

    def _array(self, value: Any, path: str) -> dict[str, Any]:
        exact = type(value) is np.ndarray or isinstance(value, np.generic)
        try:
            tensor = torch.from_numpy(np.array(value, order="C")) if exact else None
        except (TypeError, ValueError):  # objects, strings, dates, non-native byte order
            tensor = None
        if tensor is None:
            raise self.refusal(path, f"a {_class_name(value)} of {value.dtype}")
        return {"array" if type(value) is np.ndarray else "scalar": self._tensor(tensor, path)}

    def _name(self, path: str) -> str:
        """Return the path, with a number appended if a tensor has that name already: {"a.b": …, "a": {"b": …}}."""
        number, name = 2, path or "value"
        while name in self.tensors or name == "__metadata__":  # which safetensors reserves
            number, name = number + 1, f"{path}#{number}"
        return name


class _Decoder:
    """One decoding: the tensors of the tree, and those restored so far, which are shared."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._seen: dict[str, torch.Tensor] = {}

    def walk(self, value: Any) -> Any:
        """Return the value that the JSON stands for."""
        if isinstance(value, list):
            return [self.walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return self._tensor(value)
        ((tag, body),) = value.items()
        return self._tagged(tag, body)

    def _tagged(self, tag: str, body: Any) -> Any:
        if tag == "dict":
            return {key: self.walk(item) for key, item in body.items()}
        if tag == "items":
            return {self.walk(key): self.walk(item) for key, item in body}
        if tag in ("ordered", "counter"):
            return (OrderedDict if tag == "ordered" else Counter)(self.walk(body))
        if tag in ("tuple", "size"):
            return (tuple if tag == "tuple" else torch.Size)(self.walk(body))
        if tag in ("array", "scalar"):
            array = self.walk(body).numpy()
            return array if tag == "array" else array[()]
        if tag == "int":
            return int(body, 16)
        if tag == "float":
            return struct.unpack(">d", bytes.fromhex(body))[0]
        if tag == "complex":
            return complex(*struct.unpack(">dd", bytes.fromhex(body)))
        if tag == "bytes":
            return bytes.fromhex(body)
        if tag == "device":
            return torch.device(body)
        if tag == "dtype" and isinstance(getattr(torch, body), torch.dtype):
            return getattr(torch, body)
        raise ValueError(f"{tag!r} is not a tag of schema 1")

    def _tensor(self, tag: dict[str, Any]) -> torch.Tensor:
        name = tag["tensor"]
        if name not in self._seen:
            value = self._tensors[name]
            if "order" in tag:
                inverse = sorted(range(len(tag["order"])), key=lambda axis: tag["order"][axis])
                value = value.permute(inverse)
            self._seen[name] = torch.view_as_complex(value) if "complex" in tag else value
        return self._seen[name]


def _join_path(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _class_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
