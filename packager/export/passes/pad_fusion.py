"""Keep onnxruntime from folding a padding of zeros into max pooling, whose own padding is minus infinity.

Its optimizer Pad_Fusion does so in every session (https://github.com/microsoft/onnxruntime/issues/24737, seen in 1.31):
where all elements of a border window are negative, the result is their maximum instead of zero. It leaves a Pad alone
whose value is not zero bit by bit, so the value becomes negative zero, which is equal to it.

Ensures: the graph computes the same values, up to the sign of a zero. Changes the model in place.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import numpy_helper

from packager.export.graph.walk import iter_subgraphs

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def prevent_pad_fusion(graph: onnx.GraphProto) -> None:
    """Give every Pad of zeros that max pooling reads a value of negative zero, subgraphs included."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    producers = {output: node for node in graph.node for output in node.output}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
        for subgraph in iter_subgraphs(node):
            prevent_pad_fusion(subgraph)
    for node in graph.node:
        if node.op_type != "Pad" or not _feeds_max_pool(node, readers):
            continue
        source = producers.get(node.input[0])
        if source is not None and source.op_type == "Relu":
            continue  # without negative elements the fusion is right
        value = constants.get(node.input[2]) if len(node.input) > 2 else None
        if value is not None and value.data_type in _FLOATS and not numpy_helper.to_array(value).tobytes().strip(b"\0"):
            name = f"{node.output[0]}/negative_zero"
            zero = np.array(-0.0, onnx.helper.tensor_dtype_to_np_dtype(value.data_type))
            graph.initializer.append(numpy_helper.from_array(zero, name))
            node.input[2] = name


def _feeds_max_pool(pad: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Tell whether max pooling reads the result of a Pad, directly or, which the fusion allows, after a Cast."""
    direct = readers[pad.output[0]]
    cast = [node for reader in direct if reader.op_type == "Cast" for node in readers[reader.output[0]]]
    return any(node.op_type == "MaxPool" for node in (*direct, *cast))
