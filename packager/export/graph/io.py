"""Read, strip and write ONNX models. Needs onnx, not torch.

During a build, a model is a small protobuf that refers to its large weights in files beside it: a pass over the
graph then copies kilobytes, and onnxruntime maps the weights. The model that ships holds its weights itself or, from
16 MiB on, keeps them in one file beside it that a loader maps. `write_graph` writes either form without ever holding
all weights in memory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from packager.common.protobuf_wire import encode_head
from packager.export.graph.messages import ExportedGraph
from packager.export.graph.walk import iter_subgraphs, list_graph_reads

INLINE_BYTES = 1 << 16
"""Weights up to this size stay in the protobuf, where every pass can use them as constants."""

EXTERNAL_DATA_BYTES = 16 << 20
"""A model with more bytes of weights than this ships them in a file beside it.

Mapping them is what makes a large model load fast: with 64 MB of weights onnxruntime makes a session in 25 ms, and in
30 to 89 ms if they are inside the model; with 16 MB it takes 7 ms either way, and below a file of its own costs more.
"""

_PAGE_BYTES = 4096


class _Location(NamedTuple):
    """The bytes of a weight in a file beside the model."""

    file: str
    offset: int
    length: int


def load_graph(exported: ExportedGraph) -> onnx.ModelProto:
    """Load an exported graph; weights over `INLINE_BYTES` become references to the file `path` + ".weights".

    That file is written here if the exporter left the weights inside the graph.
    """
    model = onnx.load(os.fspath(exported.path), load_external_data=False)
    weights_path = exported.path.with_name(exported.path.name + ".weights")
    input_names = {value.name for value in model.graph.input}
    weights = {weight.name: weight for weight in exported.weights if weight.name in input_names}
    if not weights:
        externalize_weights(model, weights_path)
        return model
    with weights_path.open("rb") as stream:
        for weight in weights.values():
            data_type = onnx.TensorProto.DataType.Value(weight.dtype)
            tensor = model.graph.initializer.add(name=weight.name, data_type=data_type, dims=weight.shape)
            if weight.length > INLINE_BYTES:
                _set_location(tensor, _Location(weights_path.name, weight.offset, weight.length))
            else:
                stream.seek(weight.offset)
                tensor.raw_data = stream.read(weight.length)
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def externalize_weights(model: onnx.ModelProto, path: Path) -> None:
    """Move the weights over `INLINE_BYTES` out of a model into the file `path`, and refer to them there."""
    with path.open("wb") as stream:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) > INLINE_BYTES:
                offset = _align_to_page(stream)
                stream.write(tensor.raw_data)
                _set_location(tensor, _Location(path.name, offset, len(tensor.raw_data)))
                tensor.ClearField("raw_data")


def transpose_weights(model: onnx.ModelProto, folder: Path, path: Path) -> None:
    """Write the matrices that a model transposes before it multiplies by them transposed into `path`, in place.

    Those are weights in files, which start in `folder`. Each keeps its name, and one at a time is in memory.
    """
    reads = Counter(list_graph_reads(model.graph))
    external = {tensor.name: tensor for tensor in _list_external(model) if len(tensor.dims) == 2}
    readers = {name: node for node in model.graph.node for name in node.input}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Transpose" and not node.domain and node.input[0] in external
        and reads[node.input[0]] == reads[node.output[0]] == 1
        and node.output[0] in readers and readers[node.output[0]].op_type == "MatMul"
    ]  # fmt: skip
    if not nodes:
        return
    with path.open("wb") as stream:
        for node in nodes:
            weight = external[node.input[0]]
            if [axis for attribute in node.attribute for axis in attribute.ints] == [0, 1]:
                continue
            content = _read_transposed(folder, weight)
            location = _Location(path.name, _align_to_page(stream), content.nbytes)
            stream.write(content.data)
            transposed = model.graph.initializer.add(
                name=weight.name, data_type=weight.data_type, dims=reversed(weight.dims)
            )
            _set_location(transposed, location)
            model.graph.initializer.remove(weight)
            reader = readers[node.output[0]]
            reader.input[list(reader.input).index(node.output[0])] = weight.name
            model.graph.node.remove(node)


def _read_transposed(folder: Path, tensor: onnx.TensorProto) -> NDArray[np.uint8]:
    """Read a matrix with its axes exchanged, as the bytes of it."""
    location, (rows, columns) = _get_location(tensor), tensor.dims
    element = np.dtype((np.void, location.length // (rows * columns)))
    stored = np.memmap(folder / location.file, element, "r", location.offset, (rows, columns))
    return np.ascontiguousarray(stored.T).view(np.uint8)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove everything that tells where and how the graph was made: doc strings, metadata, inferred shapes."""
    model.doc_string = ""
    model.producer_name, model.producer_version = "packager", ""
    model.domain, model.model_version = "", 0
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # every loader infers them again; those of exporters have been wrong
    del graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
        for subgraph in iter_subgraphs(node):
            _strip_graph(subgraph)


def copy_without_external(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without the weights that it refers to; nodes may still read them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inline = [tensor for tensor in copy.graph.initializer if not tensor.external_data]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(inline)
    return copy


def count_model_bytes(model: onnx.ModelProto) -> int:
    """Return the size of a model with all its weights, those that it refers to included."""
    return model.ByteSize() + sum(_get_location(tensor).length for tensor in _list_external(model))


def write_graph(model: onnx.ModelProto, folder: Path, path: Path) -> bool:
    """Write a model to `path`, its weights inside or, if they are many, in `path` + "_data".

    `folder` is where the model's references to weights start. Returns whether the weights are in a file of their own.
    Raises EOFError if a file of weights is too short.
    """
    tensors = _list_external(model)
    external = sum(_get_location(tensor).length for tensor in tensors) > EXTERNAL_DATA_BYTES
    if external:
        _write_with_external_data(model, folder, path)
    else:
        _write_single_file(model, tensors, folder, path)
    return external


def _write_with_external_data(model: onnx.ModelProto, folder: Path, path: Path) -> None:
    shipped = onnx.ModelProto()
    shipped.CopyFrom(model)
    data_path = path.with_name(path.name + "_data")
    with data_path.open("wb") as stream:
        for tensor in _list_external(shipped):
            location = _get_location(tensor)
            offset = _align_to_page(stream)
            _copy_weight(folder, location, stream)
            _set_location(tensor, _Location(data_path.name, offset, location.length))
    path.write_bytes(shipped.SerializeToString())


def _write_single_file(model: onnx.ModelProto, external: list[onnx.TensorProto], folder: Path, path: Path) -> None:
    """Write the protobuf by hand, as far as needed to stream the weights: its fields may come in any order."""
    small = copy_without_external(model)
    graph = small.graph.SerializeToString()
    small.ClearField("graph")
    fields = [(_encode_initializer_head(tensor), _get_location(tensor)) for tensor in external]
    length = len(graph) + sum(len(head) + location.length for head, location in fields)
    with path.open("wb") as stream:
        stream.write(small.SerializeToString())
        stream.write(encode_head(onnx.ModelProto.GRAPH_FIELD_NUMBER, length) + graph)
        for head, location in fields:
            stream.write(head)
            _copy_weight(folder, location, stream)


def _encode_initializer_head(tensor: onnx.TensorProto) -> bytes:
    """Encode a graph's initializer field up to the bytes of the weight, which must follow."""
    length = _get_location(tensor).length
    fields = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).SerializeToString()
    fields += encode_head(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, length)
    return encode_head(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(fields) + length) + fields


def _list_external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.external_data]


def _get_location(tensor: onnx.TensorProto) -> _Location:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return _Location(entries["location"], int(entries.get("offset", "0")), int(entries["length"]))


def _set_location(tensor: onnx.TensorProto, location: _Location) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in zip(("location", "offset", "length"), location, strict=True):
        tensor.external_data.add(key=key, value=str(value))


def _align_to_page(stream: IO[bytes]) -> int:
    return stream.seek(-(-stream.tell() // _PAGE_BYTES) * _PAGE_BYTES)


def _copy_weight(folder: Path, location: _Location, target: IO[bytes]) -> None:
    path, left = folder / location.file, location.length
    with path.open("rb") as stream:
        stream.seek(location.offset)
        while left:
            chunk = stream.read(min(left, 1 << 20))
            if not chunk:
                raise EOFError(f"{path} ends before the weights it should hold")
            target.write(chunk)
            left -= len(chunk)
