"""Let the TorchScript exporter decide branches on what is known while it exports a script.

That is the rank of a tensor, as in `if x.dim() == 2:`, and that nothing is nested or autocast. torch's own symbolics
compute a rank, and what is compared with it, at run time, so that both sides of the branch go into the graph, and one
of them fails there. Cells of recurrent layers, which many loops over time call, have such branches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.onnx import symbolic_helper, symbolic_opset9

from packager.export.symbolic_operators import constant


def list_symbolics() -> dict[str, Callable[..., Any]]:
    """Return the symbolics by the operator's name."""
    return {
        "aten::dim": _dim,
        "aten::__contains_": _contains,
        "aten::__not_": _fold(symbolic_opset9.__not_, lambda value: not value),
        "aten::eq": _fold(symbolic_opset9.eq, lambda value, other: value == other),
        "prim::is_nested": lambda graph, _: constant(graph, value=False),
        "aten::is_autocast_enabled": lambda graph, *_: constant(graph, value=False),
        "aten::ne": _fold(symbolic_opset9.ne, lambda value, other: value != other),
    }


def _fold(symbolic: Callable[..., Any], compute: Callable[..., bool]) -> Callable[..., Any]:
    """Make a symbolic that is the result itself where all operands are constant numbers."""

    def convert(graph: Any, *operands: Any) -> Any:
        numbers = [_get_number(operand) for operand in operands]
        if any(number is None for number in numbers):
            return symbolic(graph, *operands)
        return constant(graph, compute(*numbers))

    return convert


def _dim(graph: Any, tensor: Any) -> Any:
    rank = symbolic_helper._get_tensor_rank(tensor)
    return symbolic_opset9.dim(graph, tensor) if rank is None else constant(graph, rank)


def _contains(graph: Any, numbers: Any, number: Any) -> Any:
    """Take a list that is a constant, too: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/nn/modules/rnn.py."""
    listed, wanted = symbolic_helper._maybe_get_const(numbers, "is"), _get_number(number)
    if isinstance(listed, list) and wanted is not None:
        return constant(graph, wanted in listed)
    return symbolic_opset9.__contains_(graph, numbers, number)


def _get_number(value: Any) -> int | float | bool | None:
    """Return a constant of rank 0 as a number; None for any other value."""
    tensor = symbolic_helper._maybe_get_const(value, "t")
    return tensor.item() if isinstance(tensor, torch.Tensor) and tensor.dim() == 0 else None
