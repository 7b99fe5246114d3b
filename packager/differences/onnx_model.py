"""Compare two ONNX models: graphs by inputs, outputs, operators and nodes; weights tensor by tensor. Needs onnx.

`load_onnx_model` converts everything but the weights to plain values, so that no field can differ unnoticed.
Subgraphs and functions are compared like the main graph. A Constant node counts as a weight with the name of its
output. Weights are read one at a time when they are compared, external ones from their file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx.numpy_helper
from google.protobuf.message import DecodeError, Message

from packager.differences.fields import find_differences
from packager.differences.report import Difference
from packager.differences.tensors import Array, measure_change
from packager.errors import ModelUnreadable

JsonObject: TypeAlias = "dict[str, Any]"
_DTYPES = {"FLOAT": "float32", "DOUBLE": "float64"}
_MAX_BYTES_SHOWN = 256


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX model as plain values.

    `summary` has the versions, inputs and outputs; `operators` counts the nodes by operator; `other_fields` has
    everything else but the weights. The values of external weights are still in their file.
    """

    path: Path
    summary: JsonObject
    operators: Counter[str]
    nodes: Sequence[JsonObject]
    other_fields: JsonObject
    weights: dict[str, onnx.TensorProto]


NO_MODEL = OnnxModel(Path(), {}, Counter(), (), {}, {})
"""Stands for the model of a bundle without an ONNX model."""


def load_onnx_model(path: Path) -> OnnxModel:
    """Read a model file, without its external weights. Raises `ModelUnreadable`."""
    with _translate_errors(path):
        proto = onnx.load(os.fspath(path), load_external_data=False)
        if not proto.HasField("graph"):  # an empty file is a valid protobuf
            raise ValueError("it contains no graph")
        return OnnxModel(
            path,
            _summarize_model(proto),
            _count_operators(proto),
            [_node_to_dict(node) for node in proto.graph.node],
            _remaining_fields(proto),
            _collect_weights(proto),
        )


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (DecodeError, OSError, ValueError, TypeError, LookupError, onnx.checker.ValidationError) as error:
        raise ModelUnreadable(str(path), f"{type(error).__name__}: {error}") from None


# -- side by side ---------------------------------------------------------------------------


def compare_graphs(before: OnnxModel, after: OnnxModel) -> Iterator[Difference]:
    """Yield the differences between two models except their weights; of the nodes, the counts and the first one."""
    yield from find_differences(before.summary, after.summary)
    yield from find_differences({"nodes": before.operators.total()}, {"nodes": after.operators.total()})
    for name in before.operators | after.operators:
        counts = before.operators[name], after.operators[name]
        if counts[0] != counts[1]:
            yield Difference(f"operator {name}", *counts)
    if before is NO_MODEL or after is NO_MODEL:
        return
    node = find_first_node_difference(before, after)
    if node is not None:
        label, field = node
        yield replace(field, where=f"first at {label}" + (f": {field.where}" if field.where else ""))
    yield from find_differences(before.other_fields, after.other_fields)


def find_first_node_difference(before: OnnxModel, after: OnnxModel) -> tuple[str, Difference] | None:
    """Find the first node that differs. Returns its label and its first field that differs, or None.

    If the operator or the name differs, the field has no path and the values are both.
    """
    for index, (left, right) in enumerate(zip_longest(before.nodes, after.nodes)):
        if _node_label(left) != _node_label(right):
            return f"node {index}", Difference("", _node_label(left), _node_label(right))
        field = next(find_differences(left, right), None)
        if field is not None:
            return f"node {index} {left.get('name') or left['operator']}", field
    return None


def _node_label(node: JsonObject | None) -> str | None:
    return None if node is None else f"{node['operator']} {node.get('name', '')}".rstrip()


def compare_weights(before: OnnxModel, after: OnnxModel) -> Iterator[Difference]:
    """Yield the weights that only one model has, or that differ in dtype, shape or values.

    Raises `ModelUnreadable` if an external weight cannot be read.
    """
    for name in before.weights | after.weights:
        left, right = before.weights.get(name), after.weights.get(name)
        if left is None or right is None or _tensor_type(left) != _tensor_type(right):
            yield Difference(name, left and _tensor_type(left), right and _tensor_type(right))
            continue
        change = measure_change(_read_tensor(left, before.path), _read_tensor(right, after.path))
        if change is not None:
            yield Difference(name, _tensor_type(left), _tensor_type(right), change)


def _tensor_type(tensor: onnx.TensorProto) -> str:
    return f"{_dtype_name(tensor.data_type)}{list(tensor.dims)}"


def _read_tensor(tensor: onnx.TensorProto, path: Path) -> Array:
    if tensor.external_data:
        tensor = copy(tensor)  # some versions of onnx store the values in it
    with _translate_errors(path):
        values: Array = onnx.numpy_helper.to_array(tensor, os.fspath(path.parent))
    return values


# -- parts of a model -----------------------------------------------------------------------


def _summarize_model(model: onnx.ModelProto) -> JsonObject:
    return {
        "ir_version": model.ir_version,
        "opset": {_to_json_value(opset.domain) or "ai.onnx": opset.version for opset in model.opset_import},
        "inputs": [_describe_value(value) for value in model.graph.input],
        "outputs": [_describe_value(value) for value in model.graph.output],
    }


def _describe_value(value: onnx.ValueInfoProto) -> JsonObject:
    if not value.type.HasField("tensor_type"):
        return _message_to_dict(value)
    tensor = value.type.tensor_type
    shape = [_describe_dim(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    return {"name": _to_json_value(value.name), "dtype": _dtype_name(tensor.elem_type), "shape": shape}


def _describe_dim(dim: onnx.TensorShapeProto.Dimension) -> object:
    return dim.dim_value if dim.HasField("dim_value") else _to_json_value(dim.dim_param) or None


def _dtype_name(number: int) -> str:
    dtypes = onnx.TensorProto.DataType
    name = dtypes.Name(number) if number in dtypes.values() else f"dtype {number}"
    return _DTYPES.get(name, name.lower())


def _count_operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(
        _operator_name(node) for _, nodes, _ in _walk_scopes(model) for node in nodes if node.op_type != "Constant"
    )


def _operator_name(node: onnx.NodeProto) -> str:
    domain = "" if node.domain in ("", "ai.onnx") else f"{_to_json_value(node.domain)}."
    return f"{domain}{_to_json_value(node.op_type)}"


def _collect_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    weights = {}
    for prefix, nodes, initializers in _walk_scopes(model):
        weights.update({f"{prefix}{tensor.name}": tensor for tensor in initializers})
        for node in nodes:
            values = (attribute.t for attribute in node.attribute if _is_weight(node, attribute))
            weights.update({f"{prefix}{node.output[0]}": value for value in values})
    return weights


def _is_weight(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    return node.op_type == "Constant" and attribute.HasField("t") and len(node.output) == 1


Scope: TypeAlias = "tuple[str, Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]"


def _walk_scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """Yield the graph, its subgraphs and the functions, each with the prefix of its names, its nodes and weights."""
    yield from _walk_scope("", model.graph.node, model.graph.initializer)
    for function in model.functions:
        yield from _walk_scope(f"{function.name}/", function.node, ())


def _walk_scope(prefix: str, nodes: Sequence[onnx.NodeProto], weights: Sequence[onnx.TensorProto]) -> Iterator[Scope]:
    yield prefix, nodes, weights
    for index, node in enumerate(nodes):
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for position, graph in enumerate(graphs):
                inner = f"{prefix}{node.name or f'{node.op_type} {index}'}/{attribute.name}/"
                yield from _walk_scope(inner if position == 0 else f"{inner}{position}/", graph.node, graph.initializer)


# -- as plain values ------------------------------------------------------------------------


def _remaining_fields(model: onnx.ModelProto) -> JsonObject:
    """Return the fields of a model that are not in its summary, nodes or weights."""
    graph = _message_to_dict(model.graph, leave_out=("node", "initializer", "input", "output"))
    return {**_message_to_dict(model, leave_out=("ir_version", "opset_import", "graph")), "graph": graph}


def _message_to_dict(message: Message, leave_out: tuple[str, ...] = ()) -> JsonObject:
    """Return the fields of a message that are set and not empty, in their order."""
    fields = ((field.name, value) for field, value in message.ListFields())
    return {name: _to_json_value(value) for name, value in fields if name not in leave_out and value != ""}


def _to_json_value(value: Any) -> Any:
    """Convert a field to a JSON value. protobuf returns text that is not UTF-8 as bytes."""
    if isinstance(value, onnx.NodeProto):
        return _node_to_dict(value)
    if isinstance(value, onnx.GraphProto):
        return _message_to_dict(value, leave_out=("initializer",))
    if isinstance(value, Message):
        return _message_to_dict(value)
    if isinstance(value, bytes):
        return _decode_bytes(value)
    return value if isinstance(value, (str, int, float)) else [_to_json_value(member) for member in value]


def _node_to_dict(node: onnx.NodeProto) -> JsonObject:
    attributes = {
        f"attribute {attribute.name}": _attribute_value(attribute)
        for attribute in node.attribute
        if not _is_weight(node, attribute)
    }
    other_fields = _message_to_dict(node, leave_out=("op_type", "domain", "attribute"))
    return {"operator": _operator_name(node), **attributes, **other_fields}


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    """Return the value of an attribute, or all fields that are set if there are more."""
    fields = _message_to_dict(attribute, leave_out=("name", "type"))
    if not fields:
        return {"type": attribute.type}
    return next(iter(fields.values())) if len(fields) == 1 else fields


def _decode_bytes(value: bytes) -> str:
    if len(value) > _MAX_BYTES_SHOWN:
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value.hex()
    return text if text.isprintable() else value.hex()
