"""Find and move the external weights of a serialized ONNX model, without onnx, in protobuf's wire format.

An ONNX model may keep weights in other files: a tensor then has a location, an offset and a length. Whoever follows
them without checking reads any file of the machine. `find_external_tensors` finds them wherever a model may have
tensors (in subgraphs, functions and attributes too), and accepts those alone that lie inside the one file of a bundle
and have the length that their shape and dtype ask for. `move_tensors` makes them refer to another file.

The field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from packager.common.protobuf_wire import FieldReader, ProtobufMalformed, encode_bytes, read_varint

MAX_NESTING = 100
"""How deep messages may be nested, as in Google's parser."""
_MAX_SIZE = 1 << 62
_MAX_FIELDS = 2_000_000
_MAX_WEIGHTS = 100_000
_MAX_DIMS = 64

_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "subgraph", 2: "subgraph"},
    "graph": {1: "node", 5: "initializer", 15: "sparse"},
    "subgraph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""The kind of message in each field that can lead to a tensor, by the kind of message that it is in."""

_GRAPH, _INITIALIZER = 7, 5  # of ModelProto and of GraphProto
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14  # of TensorProto
_EXTERNAL = 1
_LOCATION = re.compile(b"location")  # the key of the entry that every external tensor has

_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""The size of an element by TensorProto.DataType; dtypes that no bundle has are left out."""


class WeightsUnsafe(ValueError):
    """The model refers to weights outside of its bundle, or is not valid protobuf."""


@dataclass(frozen=True)
class ExternalTensor:
    """A weight in the data file: its TensorProto.DataType, its shape, and its bytes from `offset` on."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    offset: int
    length: int


def find_external_tensors(model: bytes, data_name: str | None, data_size: int) -> list[ExternalTensor]:
    """Find the weights that a model keeps in the file `data_name` of `data_size` bytes; None if there is no such file.

    Raises `WeightsUnsafe` for a weight anywhere else, or that is not an initializer of the main graph.
    """
    if not _LOCATION.search(model):
        return []
    tensors: dict[str, ExternalTensor] = {}
    reader = FieldReader(_MAX_FIELDS)
    try:
        for kind, message in _iter_tensors(memoryview(model), reader):
            tensor = _read_tensor(message, reader, data_name, data_size)
            if tensor is None:
                continue
            if kind == "tensor":
                raise WeightsUnsafe(f"{tensor.name!r} has external data, and is not a weight of the main graph")
            if tensor.name in tensors:
                raise WeightsUnsafe(f"there are two weights {tensor.name!r}")
            tensors[tensor.name] = tensor
            if len(tensors) > _MAX_WEIGHTS:
                raise WeightsUnsafe(f"the model has more than {_MAX_WEIGHTS} weights outside of it")
    except ProtobufMalformed as error:
        raise WeightsUnsafe(str(error)) from None
    return list(tensors.values())


def _iter_tensors(model: memoryview, reader: FieldReader) -> Iterator[tuple[str, memoryview]]:
    """Yield every TensorProto that may have external data, as an "initializer" of the main graph or any other "tensor".

    Only one message of each level is kept open, so that their number takes no memory.
    """
    pending = [("model", reader.read(model))]
    while pending:
        kind, fields = pending[-1]
        field, value = next(fields, (0, 0))
        if field == 0:
            pending.pop()
            continue
        inner = _MESSAGES[kind].get(field)
        if inner is None or not isinstance(value, memoryview):
            continue
        if inner in ("initializer", "tensor"):
            yield inner, value
        elif inner != "node" or _LOCATION.search(value):
            pending.append((inner, reader.read(value)))
            if len(pending) > MAX_NESTING + 1:
                raise WeightsUnsafe(f"the model is nested more than {MAX_NESTING} levels deep")


def move_tensors(model: bytes, location: str, shift: int) -> bytes:
    """Return a model whose external weights are in the file `location`, each `shift` bytes later than before.

    `find_external_tensors` must have accepted the model, so that all external tensors are weights of the main graph.
    """

    def move_weights(graph: memoryview) -> bytes:
        return _replace_field(graph, _INITIALIZER, lambda tensor: _move_tensor(tensor, location, shift))

    return _replace_field(memoryview(model), _GRAPH, move_weights)


def _move_tensor(tensor: memoryview, location: str, shift: int) -> bytes:
    entries: dict[str, str] = {}
    kept: list[bytes | memoryview] = []
    reader, start = FieldReader(_MAX_FIELDS), 0
    for field, value, end in reader.read_spans(tensor):
        if field == _EXTERNAL_DATA and isinstance(value, memoryview):
            entries.update([_read_entry(value, reader)])
        else:
            kept.append(tensor[start:end])
        start = end
    if not entries:
        return bytes(tensor)
    entries |= {"location": location, "offset": str(int(entries.get("offset", "0")) + shift)}
    pairs = [encode_bytes(1, key.encode()) + encode_bytes(2, text.encode()) for key, text in entries.items()]
    return b"".join([*kept, *(encode_bytes(_EXTERNAL_DATA, pair) for pair in pairs)])


def _replace_field(message: memoryview, field: int, replace: Callable[[memoryview], bytes]) -> bytes:
    """Copy a message with the messages in one of its fields replaced."""
    parts: list[bytes | memoryview] = []
    start = 0
    for number, value, end in FieldReader(_MAX_FIELDS).read_spans(message):
        if number == field and isinstance(value, memoryview):
            parts.append(encode_bytes(field, replace(value)))
        else:
            parts.append(message[start:end])
        start = end
    return b"".join(parts)


def _read_tensor(
    message: memoryview, reader: FieldReader, data_name: str | None, data_size: int
) -> ExternalTensor | None:
    """Read a TensorProto; return None if its values are inside the model. Raises `WeightsUnsafe`."""
    name, data_type, location = "", 0, 0
    dims: list[int] = []
    entries: dict[str, str] = {}
    for field, value in reader.read(message):
        if field == _DIMS:
            dims += [value] if isinstance(value, int) else _read_packed(value)
            if len(dims) > _MAX_DIMS:
                raise WeightsUnsafe("a weight has an impossible shape")
        elif field == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif field == _DATA_LOCATION and isinstance(value, int):
            location = value
        elif field == _NAME and isinstance(value, memoryview):
            name = _decode(value)
        elif field == _EXTERNAL_DATA and isinstance(value, memoryview):
            key, text = _read_entry(value, reader)
            if key in entries:
                raise WeightsUnsafe(f"{name!r} has {key!r} twice")
            entries[key] = text
    if location != _EXTERNAL and not entries:
        return None
    return _check_tensor(name, data_type, dims, entries, data_name, data_size)


def _read_entry(message: memoryview, reader: FieldReader) -> tuple[str, str]:
    """Read a StringStringEntryProto: a key and its value."""
    pair = {number: _decode(text) for number, text in reader.read(message) if isinstance(text, memoryview)}
    return pair.get(1, ""), pair.get(2, "")


def _check_tensor(
    name: str, data_type: int, dims: list[int], entries: Mapping[str, str], data_name: str | None, data_size: int
) -> ExternalTensor:
    shown = f"the weight {name[:100]!r}"
    location = entries.get("location", "")
    if location != data_name:
        raise WeightsUnsafe(f"{shown} is in the file {location[:100]!r}, which is not a file of this bundle")
    if data_type not in _ITEM_BYTES:
        raise WeightsUnsafe(f"{shown} has the unsupported dtype {data_type}")
    if any(dim >= _MAX_SIZE for dim in dims):  # negative numbers are large ones, as in the file
        raise WeightsUnsafe(f"{shown} has an impossible shape")
    length = math.prod(dims) * _ITEM_BYTES[data_type]
    offset = _read_number(entries.get("offset", "0"), shown)
    if "length" in entries and _read_number(entries["length"], shown) != length:
        raise WeightsUnsafe(f"{shown} has {entries['length']} bytes, and its shape and dtype need {length}")
    if offset + length > data_size:
        raise WeightsUnsafe(f"{shown} ends at byte {offset + length} of {data_name}, which has {data_size}")
    if offset % _ITEM_BYTES[data_type]:
        raise WeightsUnsafe(f"{shown} is not aligned to its dtype")
    return ExternalTensor(name, data_type, tuple(dims), offset, length)


def _read_number(text: str, shown: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise WeightsUnsafe(f"{shown} has the offset or length {text[:100]!r}")
    return int(text)


def _decode(value: memoryview) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise WeightsUnsafe("the model contains text that is not UTF-8") from None


def _read_packed(value: memoryview) -> list[int]:
    numbers: list[int] = []
    position = 0
    while position < len(value) and len(numbers) <= _MAX_DIMS:
        number, position = read_varint(value, position)
        numbers.append(number)
    return numbers
