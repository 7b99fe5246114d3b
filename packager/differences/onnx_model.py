"""Two ONNX models side by side: graphs by operators, interfaces and nodes; weights tensor by tensor. Needs onnx.

`load` turns everything in a model that is no weight into plain values, so that nothing it says can differ
unseen. Subgraphs and functions count as the graph does. A Constant is a weight, under the name of its output.
Weights are read one by one when they are compared, those beside the model from their file.
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
    """A model: versions, inputs and outputs, how often each operator occurs, the graph's nodes, the rest, the weights.

    The weights are by name, and of those beside the model it is only known where they lie.
    """

    path: Path
    summary: JsonObject
    operators: Counter[str]
    nodes: Sequence[JsonObject]
    other_fields: JsonObject
    weights: dict[str, onnx.TensorProto]


NO_MODEL = OnnxModel(Path(), {}, Counter(), (), {}, {})
"""What a bundle without an ONNX model is compared as."""


def load_onnx_model(path: Path) -> OnnxModel:
    """Read a model. Raises `ModelUnreadable`."""
    with _translate_errors(path):
        proto = onnx.load(os.fspath(path), load_external_data=False)
        if not proto.HasField("graph"):  # an empty file is a protobuf too
            raise ValueError("it holds no graph")
        nodes = [_node_to_dict(one) for one in proto.graph.node]
        return OnnxModel(
            path,
            _summarize_model(proto),
            _count_operators(proto),
            nodes,
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
    """What differs between two models but for their weights: of the nodes the counts, and where they first differ."""
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
        place, field = node
        yield replace(field, where=f"first at {place}" + (f": {field.where}" if field.where else ""))
    yield from find_differences(before.other_fields, after.other_fields)


def find_first_node_difference(before: OnnxModel, after: OnnxModel) -> tuple[str, Difference] | None:
    """The first node that differs, and its first field that does: none where operator or name are others."""
    for index, (left, right) in enumerate(zip_longest(before.nodes, after.nodes)):
        if _node_label(left) != _node_label(right):
            return f"node {index}", Difference("", _node_label(left), _node_label(right))
        found = next(find_differences(left, right), None)
        if found is not None:
            return f"node {index} {left.get('name') or left['operator']}", found
    return None


def _node_label(node: JsonObject | None) -> str | None:
    return None if node is None else f"{node['operator']} {node.get('name', '')}".rstrip()


def compare_weights(before: OnnxModel, after: OnnxModel) -> Iterator[Difference]:
    """Weights that one model alone has, of another dtype or shape, or with other values. Raises `ModelUnreadable`."""
    for name in before.weights | after.weights:
        left, right = before.weights.get(name), after.weights.get(name)
        if left is None or right is None or _tensor_type(left) != _tensor_type(right):
            yield Difference(name, left and _tensor_type(left), right and _tensor_type(right))
            continue
        changed = measure_change(_read_tensor(left, before.path), _read_tensor(right, after.path))
        if changed is not None:
            yield Difference(name, _tensor_type(left), _tensor_type(right), changed)


def _tensor_type(tensor: onnx.TensorProto) -> str:
    return f"{_dtype_name(tensor.data_type)}{list(tensor.dims)}"


def _read_tensor(tensor: onnx.TensorProto, path: Path) -> Array:
    if tensor.external_data:
        tensor = copy(tensor)  # some versions of onnx leave in it what they read
    with _translate_errors(path):
        found: Array = onnx.numpy_helper.to_array(tensor, os.fspath(path.parent))
    return found


# -- parts of a model -----------------------------------------------------------------------


def _summarize_model(model: onnx.ModelProto) -> JsonObject:
    return {
        "ir_version": model.ir_version,
        "opset": {_to_json_value(one.domain) or "ai.onnx": one.version for one in model.opset_import},
        "inputs": [_describe_value(one) for one in model.graph.input],
        "outputs": [_describe_value(one) for one in model.graph.output],
    }


def _describe_value(value: onnx.ValueInfoProto) -> JsonObject:
    if not value.type.HasField("tensor_type"):
        return _message_to_dict(value)
    kind = value.type.tensor_type
    shape = [_describe_dim(one) for one in kind.shape.dim] if kind.HasField("shape") else None
    return {"name": _to_json_value(value.name), "dtype": _dtype_name(kind.elem_type), "shape": shape}


def _describe_dim(dim: onnx.TensorShapeProto.Dimension) -> object:
    return dim.dim_value if dim.HasField("dim_value") else _to_json_value(dim.dim_param) or None


def _dtype_name(number: int) -> str:
    known = onnx.TensorProto.DataType.values()
    name = onnx.TensorProto.DataType.Name(number) if number in known else f"dtype {number}"
    return _DTYPES.get(name, name.lower())


def _count_operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(
        _operator_name(node) for _, nodes, _ in _walk_scopes(model) for node in nodes if node.op_type != "Constant"
    )


def _operator_name(node: onnx.NodeProto) -> str:
    domain = "" if node.domain in ("", "ai.onnx") else f"{_to_json_value(node.domain)}."
    return f"{domain}{_to_json_value(node.op_type)}"


def _collect_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {}
    for prefix, nodes, weights in _walk_scopes(model):
        found.update({f"{prefix}{one.name}": one for one in weights})
        for node in nodes:
            found.update({f"{prefix}{node.output[0]}": one.t for one in node.attribute if _is_weight(node, one)})
    return found


def _is_weight(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    return node.op_type == "Constant" and attribute.HasField("t") and len(node.output) == 1


Scope: TypeAlias = "tuple[str, Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]"


def _walk_scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """The graph, its subgraphs and the functions: what to put before the names in it, its nodes, its weights."""
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
    """What a model says beyond its summary, nodes and weights."""
    graph = _message_to_dict(model.graph, leave_out=("node", "initializer", "input", "output"))
    return {**_message_to_dict(model, leave_out=("ir_version", "opset_import", "graph")), "graph": graph}


def _message_to_dict(message: Message, leave_out: tuple[str, ...] = ()) -> JsonObject:
    """The fields of a message that are set and not empty, in their order."""
    fields = message.ListFields()
    return {field.name: _to_json_value(value) for field, value in fields if field.name not in leave_out and value != ""}


def _to_json_value(value: Any) -> Any:
    """As JSON has it; protobuf gives as bytes what should be text and is not."""
    if isinstance(value, onnx.NodeProto):
        return _node_to_dict(value)
    if isinstance(value, onnx.GraphProto):
        return _message_to_dict(value, leave_out=("initializer",))
    if isinstance(value, Message):
        return _message_to_dict(value)
    if isinstance(value, bytes):
        return _decode_bytes(value)
    return value if isinstance(value, (str, int, float)) else [_to_json_value(one) for one in value]


def _node_to_dict(node: onnx.NodeProto) -> JsonObject:
    attributes = {f"attribute {one.name}": _attribute_value(one) for one in node.attribute if not _is_weight(node, one)}
    rest = _message_to_dict(node, leave_out=("op_type", "domain", "attribute"))
    return {"operator": _operator_name(node), **attributes, **rest}


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    """The value alone, where that is all that is set."""
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
