"""Describe an ONNX file from its bytes. onnx is not used: it makes 150 bytes of an empty node, which takes two.

The field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from packager.common.protobuf_wire import FieldReader, Value

_MAX_FIELDS = 2_500_000  # of everything but weights: those of a node and its attributes are about ten
_MAX_LISTED = 10_000
"""How many inputs, outputs, opsets and kinds of operators a model may have, and dims each of them."""
_EMPTY = memoryview(b"")

_IR_VERSION, _PRODUCER, _GRAPH, _OPSET = 1, 2, 7, 8  # of ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # of GraphProto
_OPERATOR, _WEIGHT_NAME = 4, 8  # of NodeProto and TensorProto

_DTYPES = (
    "undefined", "float", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "double",
    "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2",
    "float8e5m2fnuz", "uint4", "int4", "float4e2m1", "float8e8m0", "uint2", "int2", "float6e2m3", "float6e3m2",
)  # fmt: skip
"""By TensorProto.DataType."""


def describe_model(model: memoryview) -> dict[str, Any]:
    """Return the description of a serialized ModelProto that `package inspect` prints.

    Raises ValueError if it is not valid protobuf, contains no graph, or more than can be read in a moment.
    """
    reader = FieldReader(_MAX_FIELDS)
    ir_version, producer = _read_last(reader, model, _IR_VERSION, _PRODUCER)
    opsets = [_read_last(reader, opset, 1, 2) for opset in _iter_limited(reader, model, _OPSET)]
    graphs = list(_iter_limited(reader, model, _GRAPH))
    if not graphs:  # an empty file is valid protobuf
        raise ValueError("it contains no graph")
    graph = graphs[-1]
    inputs = [_describe_value(reader, value) for value in _iter_limited(reader, graph, _INPUT)]
    names = {tensor["name"] for tensor in inputs}
    weights: set[str] = set()  # that are inputs too, as in old files
    operators: Counter[str] = Counter()
    initializers = 0
    for number, value in reader.read(graph):
        if number == _NODE:
            (operator,) = _read_last(reader, value, _OPERATOR)
            operators[_as_text(operator)] += 1
            _check_count(len(operators))
        elif number == _INITIALIZER:
            initializers += 1
            (name,) = _read_last(reader, value, _WEIGHT_NAME)
            weights |= {_as_text(name)} & names
    return {
        "kind": "onnx",
        "producer": _as_text(producer),
        "ir_version": _as_int(ir_version),
        "opset": {_as_text(domain) or "ai.onnx": _as_int(version) for domain, version in opsets},
        "inputs": [tensor for tensor in inputs if tensor["name"] not in weights],
        "outputs": [_describe_value(reader, value) for value in _iter_limited(reader, graph, _OUTPUT)],
        "nodes": operators.total(),
        "operators": dict(operators.most_common()),
        "initializers": initializers,
    }


def _describe_value(reader: FieldReader, value: Value) -> dict[str, Any]:
    """Describe a ValueInfoProto: an input or output."""
    name, kind = _read_last(reader, value, 1, 2)
    (tensor,) = _read_last(reader, kind, 1)
    elem_type, shape = _read_last(reader, tensor, 1, 2)
    number = _as_int(elem_type)
    dims = [_read_last(reader, dim, 1, 2) for dim in _iter_limited(reader, shape, 1)]
    return {
        "name": _as_text(name),
        "dtype": _DTYPES[number] if 0 <= number < len(_DTYPES) else f"unknown ({number})",
        "shape": [_as_text(symbol) or _as_int(size) for size, symbol in dims],
    }


def _read_last(reader: FieldReader, message: Value, *numbers: int) -> list[Value]:
    """Return the last value of each of these fields of a message, an empty one if it is absent."""
    values: dict[int, Value] = dict.fromkeys(numbers, _EMPTY)
    if isinstance(message, memoryview):
        values.update((number, value) for number, value in reader.read(message) if number in values)
    return list(values.values())


def _iter_limited(reader: FieldReader, message: Value, wanted: int) -> Iterator[memoryview]:
    """Yield the messages in a repeated field. Raises ValueError if there are too many to list."""
    count = 0
    for number, value in reader.read(message) if isinstance(message, memoryview) else ():
        if number == wanted and isinstance(value, memoryview):
            count += 1
            _check_count(count)
            yield value


def _check_count(count: int) -> None:
    if count > _MAX_LISTED:
        raise ValueError(f"it has more than {_MAX_LISTED} inputs, outputs, dims, opsets or operators")


def _as_text(value: Value) -> str:
    return bytes(value).decode(errors="backslashreplace") if isinstance(value, memoryview) else ""


def _as_int(value: Value) -> int:
    """Return a varint as the int64 that it stands for."""
    number = value if isinstance(value, int) else 0
    return number - (1 << 64) if number >= 1 << 63 else number
