"""Let an exported graph attend to nothing where a mask hides every key, as torch does.

Such a row is zero in torch, whether its mask is of booleans or of floats. torch.export's exporter gives the mean of all
values for booleans and NaN for floats (onnxscript 0.7, https://github.com/pytorch/pytorch/issues/103749). Decomposing
the operator traces the program once more, which may fix a dim, so nodes are added to the graph instead. The TorchScript
exporter gives NaN for floats alone.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.onnx import symbolic_helper
from torch.onnx._internal.torchscript_exporter import symbolic_opset14

from packager.export.symbolic_operators import constant, reduce_max, unsqueeze

_ATEN = torch.ops.aten
_ATTENTION = _ATEN.scaled_dot_product_attention.default


def zero_hidden_rows(program: ExportedProgram) -> ExportedProgram:
    """Return a program whose attention is zero where its mask hides every key; the given one if nothing has a mask."""
    if all(_get_mask(node) is None for node in program.graph.nodes):
        return program
    graph, signature = copy.deepcopy(program.graph), copy.deepcopy(program.graph_signature)
    module = GraphModule(program.graph_module, graph)
    seen: dict[Node, Node] = {}  # layers often share a mask
    with module._set_replace_hook(signature.get_replace_hook()):
        for node in list(graph.nodes):
            mask = _get_mask(node)
            if mask is None:
                continue
            if mask not in seen:
                with graph.inserting_before(node):
                    seen[mask] = _find_seen_rows(graph, mask)
            with graph.inserting_after(node):
                result = graph.call_function(_ATEN.where.ScalarOther, (seen[mask], node, 0.0))
            result.meta["val"] = node.meta["val"]  # inferring it would broadcast the sizes, which could fix one
            node.replace_all_uses_with(result, delete_user_cb=lambda user, result=result: user is not result)
    module.recompile()
    rewritten: ExportedProgram = program._update(module, signature)
    return rewritten


def _get_mask(node: Node) -> Node | None:
    if node.target != _ATTENTION:
        return None
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return mask if isinstance(mask, Node) else None


def _find_seen_rows(graph: Graph, mask: Node) -> Node:
    """Add nodes that compute for each row of a mask whether it shows any key."""
    if mask.meta["val"].dtype != torch.bool:
        mask = _add(graph, _ATEN.ne.Scalar, mask, -math.inf)
    return _add(graph, _ATEN.any.dim, mask, -1, True)


def _add(graph: Graph, operator: Any, tensor: Node, *options: Any) -> Node:
    node = graph.call_function(operator, (tensor, *options))
    node.meta["val"] = operator(tensor.meta["val"], *options)
    return node


def attend_to_nothing(graph: Any, query: Any, key: Any, value: Any, mask: Any, *options: Any) -> Any:
    """Convert attention for the TorchScript exporter, with zeros where a float mask hides every key.

    torch's own symbolic gives NaN there. Only a mask that is made with minus infinity can do that, and only then are
    nodes added, so that other graphs stay as they are.
    """
    result = symbolic_opset14.scaled_dot_product_attention(graph, query, key, value, mask, *options)
    dtype = None if symbolic_helper._is_none(mask) else mask.type().dtype()
    if dtype in (None, torch.bool) or not _is_made_with_infinity(list(graph.original_node.inputs())[3]):
        return result
    shown = graph.op(
        "Where", graph.op("Equal", mask, constant(graph, -math.inf, dtype)), constant(graph, 0), constant(graph, 1)
    )
    is_empty = graph.op("Equal", reduce_max(graph, shown, -1), constant(graph, 0))
    return graph.op("Where", unsqueeze(graph, is_empty, [-1]), constant(graph, 0.0, dtype), result)


def _is_made_with_infinity(value: Any) -> bool:
    """Tell whether the program computes a value with a constant that is minus infinity."""
    waiting, seen = [value.node()], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        number = node.output().toIValue() if node.kind() == "prim::Constant" else None
        if isinstance(number, float | torch.Tensor) and (torch.as_tensor(number) == -math.inf).any():
            return True
        waiting += [operand.node() for operand in node.inputs()]
    return False
