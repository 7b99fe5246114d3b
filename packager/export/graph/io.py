"""ONNX models on disk, while they are worked on and when they ship. Needs onnx, not torch.

While it is worked on, a model is a small protobuf whose large weights lie in files beside it, by
reference: a pass over the graph then copies kilobytes, and onnxruntime maps the weights. What ships
holds its weights itself, or, beyond 1 GiB, in one file beside it that a loader can map
(onnxruntime#23775). `write` makes either without ever holding the weights in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import onnx

from packager.export.graph.messages import ExportedGraph

INLINE_BYTES = 1 << 16
"""Weights up to this size stay in the protobuf, where every pass can use them as constants."""

EXTERNAL_DATA_BYTES = 1 << 30
"""A model with more weights than this ships them in a file beside it."""

_PAGE_BYTES = 4096
_LENGTH_DELIMITED = 2  # protobuf's wire type of strings, bytes and messages


def load_graph(raw: ExportedGraph) -> onnx.ModelProto:
    """An exported graph with its large weights by reference, whichever way the exporter wrote them."""
    model = onnx.load(os.fspath(raw.path), load_external_data=False)
    location = raw.path.name + ".weights"
    given = {one.name for one in model.graph.input}
    weights = [one for one in raw.weights if one.name in given]
    if not weights:
        externalize_weights(model, raw.path.with_name(location))
        return model
    with raw.path.with_name(location).open("rb") as stream:
        for weight in weights:
            data_type = onnx.TensorProto.DataType.Value(weight.dtype)
            tensor = model.graph.initializer.add(name=weight.name, data_type=data_type, dims=weight.shape)
            if weight.length > INLINE_BYTES:
                _set_external_location(tensor, location, weight.offset, weight.length)
            else:
                stream.seek(weight.offset)
                tensor.raw_data = stream.read(weight.length)
    names = {one.name for one in weights}
    inputs = [one for one in model.graph.input if one.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def externalize_weights(model: onnx.ModelProto, path: Path) -> None:
    """Move the large weights that a model holds into the file `path`, and refer to them there."""
    with path.open("wb") as stream:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) > INLINE_BYTES:
                offset = _align_to_page(stream)
                stream.write(tensor.raw_data)
                _set_external_location(tensor, path.name, offset, len(tensor.raw_data))
                tensor.ClearField("raw_data")


def strip_metadata(model: onnx.ModelProto) -> None:
    """Take out what says where and how the graph was made."""
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
    del graph.value_info[:]  # inferred again by whoever loads it; exporters' guesses have been wrong
    del graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for constant in graph.initializer:
        constant.doc_string = ""
        del constant.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _strip_graph(attribute.g)
            for graph in attribute.graphs:
                _strip_graph(graph)


def count_model_bytes(model: onnx.ModelProto) -> int:
    """The size of a model with all its weights."""
    return model.ByteSize() + sum(
        _get_external_location(one)[2] for one in model.graph.initializer if one.external_data
    )


def write_graph(model: onnx.ModelProto, folder: Path, path: Path) -> bool:
    """Write a model whose references start from `folder` to `path`, whole or with `path`.data; returns whether so."""
    large = [one for one in model.graph.initializer if one.external_data]
    external = sum(_get_external_location(one)[2] for one in large) > EXTERNAL_DATA_BYTES
    if external:
        _write_with_external_data(model, folder, path)
    else:
        _write_single_file(model, large, folder, path)
    return external


def _write_with_external_data(model: onnx.ModelProto, folder: Path, path: Path) -> None:
    shipped = onnx.ModelProto()
    shipped.CopyFrom(model)
    data = path.with_name(path.name + ".data")
    with data.open("wb") as stream:
        for tensor in shipped.graph.initializer:
            if tensor.external_data:
                source, start, length = _get_external_location(tensor)
                offset = _align_to_page(stream)
                _copy_bytes(folder / source, start, length, stream)
                _set_external_location(tensor, data.name, offset, length)
    path.write_bytes(shipped.SerializeToString())


def _write_single_file(model: onnx.ModelProto, large: list[onnx.TensorProto], folder: Path, path: Path) -> None:
    """Protobuf by hand, as far as needed to stream the weights: fields may come in any order.

    https://protobuf.dev/programming-guides/encoding/
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    kept = [one for one in small.graph.initializer if not one.external_data]
    del small.graph.initializer[:]
    small.graph.initializer.extend(kept)
    graph = small.graph.SerializeToString()
    small.ClearField("graph")
    entries = list(_iter_initializer_fields(large))
    length = len(graph) + sum(len(head) + place[2] for head, place in entries)
    with path.open("wb") as stream:
        stream.write(small.SerializeToString())
        stream.write(_field_key(onnx.ModelProto.GRAPH_FIELD_NUMBER) + _varint(length) + graph)
        for head, (source, offset, size) in entries:
            stream.write(head)
            _copy_bytes(folder / source, offset, size, stream)


def _iter_initializer_fields(tensors: list[onnx.TensorProto]) -> Iterator[tuple[bytes, tuple[str, int, int]]]:
    """For each tensor the bytes of its initializer field up to its data, and where the data lies."""
    for tensor in tensors:
        place = _get_external_location(tensor)
        fields = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).SerializeToString()
        fields += _field_key(onnx.TensorProto.RAW_DATA_FIELD_NUMBER) + _varint(place[2])
        yield _field_key(onnx.GraphProto.INITIALIZER_FIELD_NUMBER) + _varint(len(fields) + place[2]) + fields, place


def _field_key(field_number: int) -> bytes:
    return _varint(field_number << 3 | _LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _get_external_location(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """File, offset and length of a tensor by reference."""
    entries = {one.key: one.value for one in tensor.external_data}
    return entries["location"], int(entries.get("offset", "0")), int(entries["length"])


def _set_external_location(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _align_to_page(stream: IO[bytes]) -> int:
    return stream.seek(-(-stream.tell() // _PAGE_BYTES) * _PAGE_BYTES)


def _copy_bytes(source: Path, offset: int, length: int, target: IO[bytes]) -> None:
    with source.open("rb") as stream:
        stream.seek(offset)
        while length:
            chunk = stream.read(min(length, 1 << 20))
            if not chunk:
                raise EOFError(f"{source} ends before the weights it should hold")
            target.write(chunk)
            length -= len(chunk)
