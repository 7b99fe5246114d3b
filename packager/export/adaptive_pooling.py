"""Let the TorchScript exporter pool a dynamic size, or to a dynamic size.

torch's own symbolics of adaptive pooling need numbers for both, unless all of a dim is pooled. Where they refuse, the
window of each result is computed at run time, by the formula of PyTorch: from floor(k n / m) to ceil((k + 1) n / m).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._C._onnx import TensorProtoDataType
from torch.onnx import symbolic_helper, symbolic_opset9

from packager.export.symbolic_operators import constant, count_up_to, reduce_max, unsqueeze


def list_symbolics() -> dict[str, Callable[..., Any]]:
    """Return the symbolics by the operator's name."""
    kinds = {"avg": _average, "max": _find_maximum}
    return {
        f"aten::{name}": _pool_if_refused(getattr(symbolic_opset9, name), rank, pool)
        for kind, pool in kinds.items()
        for rank in (1, 2, 3)
        for name in [f"adaptive_{kind}_pool{rank}d"]
    }


def _pool_if_refused(symbolic: Callable[..., Any], rank: int, pool: Callable[..., Any]) -> Callable[..., Any]:
    def convert(graph: Any, tensor: Any, output_size: Any) -> Any:
        try:
            return symbolic(graph, tensor, output_size)
        except torch.onnx.errors.OnnxExporterError:
            outputs = list(graph.original_node.outputs())
            if any(output.uses() for output in outputs[1:]):  # the indices of maxima
                raise
        result = tensor
        for position, axis in enumerate(range(tensor.type().dim() - rank, tensor.type().dim())):
            result = _pool_axis(graph, result, axis, _get_size(graph, output_size, position), pool)
            result.setType(tensor.type().with_sizes([None] * tensor.type().dim()))
        return result if len(outputs) == 1 else (result, constant(graph, 0))

    return convert


def _get_size(graph: Any, output_size: Any, position: int) -> Any:
    if symbolic_helper._is_packed_list(output_size):
        size = symbolic_helper._unpack_list(output_size)[position]
    else:
        size = graph.op("Gather", output_size, constant(graph, position))
    return graph.op("Cast", size, to_i=TensorProtoDataType.INT64)  # a size that is computed may be a float


def _pool_axis(graph: Any, tensor: Any, axis: int, size: Any, pool: Callable[..., Any]) -> Any:
    length = graph.op("Gather", graph.op("Shape", tensor), constant(graph, axis))
    steps, results, one = count_up_to(graph, length), count_up_to(graph, size), constant(graph, 1)
    starts = graph.op("Div", graph.op("Mul", results, length), size)
    rounded_up = graph.op("Add", graph.op("Mul", graph.op("Add", results, one), length), graph.op("Sub", size, one))
    ends = graph.op("Div", rounded_up, size)
    windows = graph.op(
        "And",
        graph.op("GreaterOrEqual", steps, unsqueeze(graph, starts, [1])),
        graph.op("Less", steps, unsqueeze(graph, ends, [1])),
    )
    order = list(range(tensor.type().dim()))
    order[axis], order[-1] = order[-1], order[axis]
    moved = graph.op("Transpose", tensor, perm_i=order)
    return graph.op("Transpose", pool(graph, moved, windows, tensor.type().dtype()), perm_i=order)


def _average(graph: Any, tensor: Any, windows: Any, dtype: torch.dtype) -> Any:
    weights = graph.op("Where", windows, constant(graph, 1.0, dtype), constant(graph, 0.0, dtype))
    weights = graph.op("Div", weights, graph.op("ReduceSum", weights, constant(graph, [1])))
    return graph.op("MatMul", tensor, graph.op("Transpose", weights, perm_i=[1, 0]))


def _find_maximum(graph: Any, tensor: Any, windows: Any, dtype: torch.dtype) -> Any:
    least = constant(graph, -math.inf, dtype)
    return reduce_max(graph, graph.op("Where", windows, unsqueeze(graph, tensor, [-2]), least), -1)
