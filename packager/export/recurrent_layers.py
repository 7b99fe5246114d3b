"""Let the TorchScript exporter convert recurrent layers over packed sequences (torch.nn.utils.rnn), and single cells.

ONNX has no packed sequences: its recurrent operators take a padded batch and the length of each sequence. torch's own
symbolics write operators that do not exist, and count on a later pass to move them out of the graph. It crashes where
only the last state of a layer is used, and keeps padding that is longer than the longest sequence.

Here, a packed sequence is its padded batch, (time, batch, ...), cut to the longest sequence, with the batch sizes that
PyTorch has too: how many sequences are longer than each step. Lengths are counted from those. Whatever is done to
elements between the layers is done to padding as well, and `pad_packed_sequence` overwrites that.

A cell is a layer of one step. torch has a symbolic of LSTM's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch._C._onnx import TensorProtoDataType
from torch.onnx import symbolic_helper, symbolic_opset9

from packager.export.symbolic_operators import constant, count_true, count_up_to, unsqueeze

_VARIANTS = ("GRU", "RNN_TANH", "RNN_RELU")
_LAYERS: Mapping[str, Callable[..., Any]] = {
    "aten::lstm": symbolic_opset9.lstm,
    **{f"aten::{name.lower()}": symbolic_opset9._one_hidden_rnn(name) for name in _VARIANTS},
}


def list_symbolics() -> dict[str, Callable[..., Any]]:
    """Return the symbolics of packing, padding, recurrent layers and cells, by the operator's name."""
    return {
        "aten::_pack_padded_sequence": _pack_padded_sequence,
        "aten::_pad_packed_sequence": _pad_packed_sequence,
        **{name: _count_lengths_first(symbolic) for name, symbolic in _LAYERS.items()},
        **{f"aten::{name.lower()}_cell": _make_cell(name) for name in _VARIANTS},
    }


def _count_lengths_first(symbolic: Callable[..., Any]) -> Callable[..., Any]:
    """Give torch's symbolic of a layer lengths in the place of the batch sizes that a packed sequence has."""

    def convert(graph: Any, data: Any, *arguments: Any) -> Any:
        if symbolic_helper._is_tensor_list(arguments[2]):  # the weights, which follow the batch sizes and the state
            batch_sizes, *others = arguments
            lengths = count_true(graph, _find_steps(graph, batch_sizes), 0)
            arguments = (graph.op("Cast", lengths, to_i=TensorProtoDataType.INT32), *others)
        return symbolic(graph, data, *arguments)

    return convert


@symbolic_helper.parse_args("v", "v", "i")
def _pack_padded_sequence(graph: Any, batch: Any, lengths: Any, batch_first: int) -> Any:
    lengths = graph.op("Cast", lengths, to_i=TensorProtoDataType.INT64)
    longest = graph.op("ReduceMax", lengths, keepdims_i=0)
    is_longer = graph.op("Less", unsqueeze(graph, count_up_to(graph, longest), [1]), unsqueeze(graph, lengths, [0]))
    first, end = constant(graph, [0]), unsqueeze(graph, longest, [0])
    data = graph.op("Slice", _swap_if(graph, batch, batch_first), first, end, first)
    data.setType(batch.type().with_sizes([None] * batch.type().dim()))
    return data, count_true(graph, is_longer, 1)


@symbolic_helper.parse_args("v", "v", "i", "f", "v")
def _pad_packed_sequence(
    graph: Any, data: Any, batch_sizes: Any, batch_first: int, padding_value: float, total_length: Any
) -> Any:
    rank = data.type().dim()
    value = constant(graph, padding_value, data.type().dtype())
    steps = _find_steps(graph, batch_sizes)
    padded = graph.op("Where", unsqueeze(graph, steps, list(range(2, rank))), data, value)
    if symbolic_helper._maybe_get_const(total_length, "i") != 0:  # 0 if none is given
        missing = unsqueeze(graph, graph.op("Sub", total_length, graph.op("Size", batch_sizes)), [0])
        zeros = constant(graph, [0] * rank), constant(graph, [0] * (rank - 1))
        padded = graph.op("Pad", padded, graph.op("Concat", zeros[0], missing, zeros[1], axis_i=0), value)
    padded.setType(data.type().with_sizes([None] * rank))
    return _swap_if(graph, padded, batch_first), count_true(graph, steps, 0)


def _make_cell(variant: str) -> Callable[..., Any]:
    def convert(graph: Any, tensor: Any, state: Any, *weights: Any) -> Any:
        weights = tuple(weight for weight in weights if not symbolic_helper._is_none(weight))  # biases may be None
        step, states = unsqueeze(graph, tensor, [0]), unsqueeze(graph, state, [0])
        _, states = symbolic_opset9._generic_rnn(
            graph, variant, step, states, weights, len(weights) == 4, 1, dropout=0, train=0, bidirectional=False
        )
        return graph.op("Squeeze", states, constant(graph, [0]))

    return convert


def _find_steps(graph: Any, batch_sizes: Any) -> Any:
    """Mark what belongs to a sequence in the padded batch, (time, batch). The longest sequence is the first."""
    rows = count_up_to(graph, graph.op("Gather", batch_sizes, constant(graph, 0)))
    return graph.op("Less", unsqueeze(graph, rows, [0]), unsqueeze(graph, batch_sizes, [1]))


def _swap_if(graph: Any, tensor: Any, condition: int) -> Any:
    """Swap batch and time if the condition holds."""
    return graph.op("Transpose", tensor, perm_i=[1, 0, *range(2, tensor.type().dim())]) if condition else tensor
