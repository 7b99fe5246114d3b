"""Let the TorchScript exporter combine all that goes to the same index, as PyTorch does.

Where an index is repeated, torch's own symbolics of `index_add`, and of `index_put` with `accumulate`, keep one of the
values. That of `scatter_reduce` takes neither a mean nor `include_self=False`. ONNX has sums since opset 16, and
extremes since opset 18.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.onnx import symbolic_helper, symbolic_opset9, symbolic_opset11
from torch.onnx._internal.torchscript_exporter import symbolic_opset16

from packager.export.symbolic_operators import constant, fill_like, unsqueeze

_SUM_OPSET = 16
_EXTREME_OPSET = 18
_REDUCTIONS = {"sum": ("add", 0.0), "mean": ("add", 0.0), "prod": ("mul", 1.0), "amin": ("min", math.inf),
               "amax": ("max", -math.inf)}  # fmt: skip


def list_symbolics() -> dict[tuple[str, int], Callable[..., Any]]:
    """Return the symbolics by the operator's name and the lowest opset."""
    return {
        ("aten::index_add", _SUM_OPSET): _index_add,
        ("aten::index_put", _SUM_OPSET): _index_put,
        ("aten::scatter_reduce", _EXTREME_OPSET): _scatter_reduce,
    }


@symbolic_helper.parse_args("v", "i", "v", "v", "v")
def _index_add(graph: Any, tensor: Any, dim: int, index: Any, source: Any, alpha: Any = None) -> Any:
    rank = tensor.type().dim()
    index = unsqueeze(graph, index, [axis for axis in range(rank) if axis != dim % rank])
    index = graph.op("Expand", index, graph.op("Shape", source))
    if alpha is not None and symbolic_helper._maybe_get_const(alpha, "f") != 1:
        source = symbolic_opset9.mul(graph, source, alpha)
    return graph.op("ScatterElements", tensor, index, source, axis_i=dim, reduction_s="add")


def _index_put(graph: Any, tensor: Any, indices: Any, values: Any, accumulate: Any = False) -> Any:
    result = symbolic_opset11.index_put(graph, tensor, indices, values, False)
    if symbolic_helper._parse_arg(accumulate, "b"):
        if result.node().kind() != "onnx::ScatterND":  # a mask, which repeats no index
            return symbolic_opset11.index_put(graph, tensor, indices, values, True)
        result.node().s_("reduction", "add")
    return result


def _scatter_reduce(
    graph: Any, tensor: Any, dim: Any, index: Any, source: Any, reduce: Any, include_self: Any = True
) -> Any:
    name, includes_self = symbolic_helper._parse_arg(reduce, "s"), symbolic_helper._parse_arg(include_self, "b")
    dtype = tensor.type().dtype()
    if not dtype.is_floating_point and (name == "mean" or not includes_self):
        return symbolic_opset16.scatter_reduce(graph, tensor, dim, index, source, reduce, include_self)
    axis = symbolic_helper._parse_arg(dim, "i")
    reduction, neutral = _REDUCTIONS[name]

    def scatter(target: Any, updates: Any, **options: str) -> Any:
        return graph.op("ScatterElements", target, index, updates, axis_i=axis, **options)

    start = tensor if includes_self else scatter(tensor, fill_like(graph, neutral, dtype, index))
    shape = graph.op("Shape", index)  # the source may be larger
    source = graph.op("Slice", source, constant(graph, [0] * tensor.type().dim()), shape)
    result = scatter(start, source, reduction_s=reduction)
    if name != "mean":
        return result
    ones = fill_like(graph, 1.0, dtype, tensor)
    count = ones if includes_self else scatter(ones, fill_like(graph, 0.0, dtype, index))
    return graph.op("Div", result, scatter(count, fill_like(graph, 1.0, dtype, index), reduction_s="add"))
