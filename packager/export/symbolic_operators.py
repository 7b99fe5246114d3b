"""What symbolics of the TorchScript exporter add to a graph again and again. `graph` is torch's GraphContext."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._onnx import TensorProtoDataType

REDUCED_AXES_OPSET = 18
"""The opset from which ReduceMax takes its axes as an input."""


def constant(graph: Any, value: Any, dtype: torch.dtype | None = None) -> Any:
    """Add a constant: a number, or a list of numbers; integers are int64."""
    return graph.op("Constant", value_t=torch.tensor(value, dtype=dtype))


def unsqueeze(graph: Any, tensor: Any, axes: list[int]) -> Any:
    """Add axes of size 1."""
    return graph.op("Unsqueeze", tensor, constant(graph, axes)) if axes else tensor


def count_up_to(graph: Any, end: Any) -> Any:
    """Add the integers from 0 to a scalar, without the scalar itself."""
    return graph.op("Range", constant(graph, 0), end, constant(graph, 1))


def fill_like(graph: Any, number: float, dtype: torch.dtype, tensor: Any) -> Any:
    """Add a tensor of one number, with the shape of another tensor."""
    return graph.op("ConstantOfShape", graph.op("Shape", tensor), value_t=torch.tensor([number], dtype=dtype))


def count_true(graph: Any, booleans: Any, axis: int) -> Any:
    """Add the number of booleans along an axis that are true, in int64."""
    numbers = graph.op("Cast", booleans, to_i=TensorProtoDataType.INT64)
    return graph.op("ReduceSum", numbers, constant(graph, [axis]), keepdims_i=0)


def reduce_max(graph: Any, tensor: Any, axis: int) -> Any:
    """Add the maximum along an axis, which is dropped."""
    if graph.opset < REDUCED_AXES_OPSET:
        return graph.op("ReduceMax", tensor, axes_i=[axis], keepdims_i=0)
    return graph.op("ReduceMax", tensor, constant(graph, [axis]), keepdims_i=0)
