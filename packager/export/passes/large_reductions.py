"""Sum many elements one axis after the other: onnxruntime adds up all that a reduction takes in one long row.

Its error grows with the length of that row: a ReduceMean over 360,000 elements is wrong by 6e-6 of the mean, and by
5e-5 if few of them are large, where torch has 7e-8 (onnxruntime 1.31, float32). One axis after the other gives 7e-8.

Ensures: the graph computes the same values, up to rounding. Changes the model in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from packager.export.graph.walk import iter_subgraphs

_OPERATORS = ("ReduceMean", "ReduceSum")
_LARGE = 1 << 16  # elements: fewer are summed well enough

Shapes = Mapping[str, Sequence[int | None]]


def split_large_reductions(graph: onnx.GraphProto) -> None:
    """Split every reduction that takes many elements along several axes into one for each axis, subgraphs included.

    It needs the shapes that the exporter inferred, and leaves alone what it cannot tell to be large. Only float32 has
    the error: a mean of integers would change, and a partial sum may overflow float16 where the whole sum does not.
    """
    values = (*graph.input, *graph.value_info)
    shapes = {
        value.name: _get_shape(value) for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    integers = _list_integers(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for subgraph in iter_subgraphs(node):
            split_large_reductions(subgraph)
        axes = _find_axes(node, integers, shapes) if node.op_type in _OPERATORS else []
        nodes += _split(graph, node, axes) if axes else [node]
    if len(nodes) > len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def _get_shape(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _list_integers(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """List the constants of the graph that may be axes, by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    integers = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Constant" and node.attribute[0].name == "value_ints":
            integers[node.output[0]] = list(node.attribute[0].ints)
    for name, tensor in tensors.items():
        is_inline = tensor.data_location != onnx.TensorProto.EXTERNAL
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) == 1 and is_inline:
            integers[name] = numpy_helper.to_array(tensor).tolist()
    return integers


def _find_axes(node: onnx.NodeProto, integers: Mapping[str, Sequence[int]], shapes: Shapes) -> list[int]:
    """Return the axes of a reduction if they are several and hold many elements, the last one first; else nothing."""
    shape = shapes.get(node.input[0], ())
    listed = [list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"]  # before opset 18
    given = listed[0] if listed else integers.get(node.input[1], ()) if len(node.input) > 1 else ()
    axes = sorted({axis % len(shape) for axis in given} if shape else (), reverse=True)
    is_large = math.prod(shape[axis] or 1 for axis in axes) >= _LARGE
    return axes if len(axes) > 1 and is_large else []


def _split(graph: onnx.GraphProto, node: onnx.NodeProto, axes: Sequence[int]) -> list[onnx.NodeProto]:
    """Return a reduction for each axis; from the last to the first, an axis keeps its number without `keepdims` too."""
    steps, source = [], node.input[0]
    for axis in axes:
        step = onnx.NodeProto()
        step.CopyFrom(node)
        step.input[0] = source
        if axis != axes[-1]:
            step.name, step.output[0] = f"{node.name}/reduced_{axis}", f"{node.output[0]}/reduced_{axis}"
        if len(node.input) > 1:
            step.input[1] = f"{node.output[0]}/reduced_axis_{axis}"
            graph.initializer.append(helper.make_tensor(step.input[1], onnx.TensorProto.INT64, [1], [axis]))
        for attribute in step.attribute:
            if attribute.name == "axes":
                attribute.ints[:] = [axis]
        steps.append(step)
        source = step.output[0]
    return steps
