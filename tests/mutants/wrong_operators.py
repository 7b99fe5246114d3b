"""Mutations of operators: replaced, with other attributes, left out or added."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mutation import Edit, Mutation, Sites, View, attribute, label, set_attribute
from onnx import NodeProto, TensorProto, helper, numpy_helper


def changed_nodes(op_types: Sequence[str], change: Callable[[NodeProto], object]) -> Sites:
    """Change each node of these kinds in place; a change that returns False does not fit."""

    def sites(view: View) -> Iterator[tuple[str, Edit]]:
        for index, node in enumerate(view.nodes):
            if node.op_type in op_types:
                trial = NodeProto()
                trial.CopyFrom(node)
                if change(trial) is not False and trial != node:

                    def edit(copy: View, index: int = index) -> None:
                        change(copy.nodes[index])

                    yield label(node), edit

    return sites


def _setting(name: str, default: Any, change: Callable[[Any], Any]) -> Callable[[NodeProto], object]:
    """Change an attribute; if it is not set, its value is `default`."""
    return lambda node: set_attribute(node, name, change(attribute(node, name, default)))


def _flipped(name: str, default: int) -> Callable[[NodeProto], object]:
    """Change an attribute from 0 to 1, or from 1 to 0."""
    return _setting(name, default, lambda value: 1 - value)


def _becomes(op_type: str, domain: str | None = None, **attributes: Any) -> Callable[[NodeProto], None]:
    """Replace the operator."""

    def change(node: NodeProto) -> None:
        node.op_type = op_type
        if domain is not None:
            node.domain = domain
        for name, value in attributes.items():
            set_attribute(node, name, value)

    return change


_NORMS = (
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "SkipLayerNormalization",
    "EmbedLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
)  # fmt: skip
_POOLS = ("MaxPool", "AveragePool")
_ACTIVATIONS = (
    "Relu", "LeakyRelu", "PRelu", "Elu", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "QuickGelu", "Exp",
)  # fmt: skip


def _epsilon(node: NodeProto) -> object:
    now = attribute(node, "epsilon", 1e-5)
    return set_attribute(node, "epsilon", 1e-3 if now < 1e-3 else 1e-5)


def _other_gelu(node: NodeProto) -> None:
    if node.op_type == "Gelu":
        set_attribute(node, "approximate", "none" if attribute(node, "approximate", b"none") == b"tanh" else "tanh")
    else:
        node.op_type = "FastGelu" if node.op_type == "BiasGelu" else "BiasGelu"


def _leaky(node: NodeProto) -> object:
    if node.op_type == "Relu":
        return _becomes("LeakyRelu", alpha=0.01)(node)
    if attribute(node, "activation") != b"Relu":
        return False
    set_attribute(node, "activation", "LeakyRelu")
    if node.op_type == "FusedConv":
        return set_attribute(node, "activation_params", [0.01])
    return set_attribute(node, "activation_alpha", 0.01)


def _no_activation(node: NodeProto) -> object:
    if node.op_type.startswith("Fused"):
        if attribute(node, "activation") is None:
            return False
        for name in ("activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma"):
            set_attribute(node, name, None)
        return None
    del node.input[1:], node.attribute[:]
    node.op_type, node.domain = "Identity", ""
    return None


def _shifted_pads(node: NodeProto) -> object:
    pads = list(attribute(node, "pads", []))
    if len(pads) < 2 or pads[len(pads) // 2] == 0:
        return False
    pads[0], pads[len(pads) // 2] = pads[0] + 1, pads[len(pads) // 2] - 1
    return set_attribute(node, "pads", pads)


def _swap_inputs(first: int, second: int) -> Callable[[NodeProto], object]:
    def change(node: NodeProto) -> object:
        if len(node.input) <= second or node.input[first] == node.input[second]:
            return False
        node.input[first], node.input[second] = node.input[second], node.input[first]
        return None

    return change


def _perm(node: NodeProto) -> object:
    perm = list(attribute(node, "perm", []))
    return set_attribute(node, "perm", [*perm[:-2], perm[-1], perm[-2]]) if len(perm) > 1 else False


def _coordinates(node: NodeProto) -> None:
    now = attribute(node, "coordinate_transformation_mode", b"half_pixel")
    set_attribute(node, "coordinate_transformation_mode", "align_corners" if now == b"asymmetric" else "asymmetric")


def _mode(node: NodeProto) -> None:
    set_attribute(node, "mode", "linear" if attribute(node, "mode", b"nearest") == b"nearest" else "nearest")


def _other_axis(axis: int) -> int:
    """Exchange the last axis and the one before it; an axis beyond the first two counts as the last."""
    return -2 if axis in (-1, 2, 3) else -1


def _other_pad(mode: bytes) -> str:
    return "edge" if mode != b"edge" else "constant"


def _left_out(view: View) -> Iterator[tuple[str, Edit]]:
    """Replace a sum of two computed tensors by the first: a residual connection is lost."""
    for index, node in enumerate(view.nodes):
        if node.op_type == "Add" and all(view.constant(name) is None for name in node.input):

            def edit(copy: View, index: int = index) -> None:
                copy.nodes[index].op_type = "Identity"
                del copy.nodes[index].input[1:]

            yield label(node), edit


def _behind(op_types: Sequence[str], make: Callable[[], Sequence[NodeProto]], **constants: np.generic) -> Sites:
    """Insert nodes after each node of these kinds."""

    def sites(view: View) -> Iterator[tuple[str, Edit]]:
        for index, node in enumerate(view.nodes):
            if node.op_type in op_types:

                def edit(copy: View, index: int = index) -> None:
                    old = copy.nodes[index].output[0]
                    for name, value in constants.items():
                        copy.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{old}_{name}"))
                    copy.insert_after(index, *make())

                yield label(node), edit

    return sites


_FLOATS = (
    "Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU",
    "LayerNormalization", "SkipLayerNormalization",
)  # fmt: skip


_DROPPED = ("Relu", "FusedConv", "Gelu", "BiasGelu", "QuickGelu", "Softmax", "LSTM", "GRU", "FusedGemm")


def _half() -> list[NodeProto]:
    return [
        helper.make_node("Cast", ["before"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["after"], to=TensorProto.FLOAT),
    ]


def _dropout() -> list[NodeProto]:
    """Drop elements with plain operators: onnxruntime removes a Dropout node, even one in training mode."""
    return [
        helper.make_node("RandomUniformLike", ["before"], ["drawn"], seed=1.0),
        helper.make_node("Less", ["drawn", "ratio"], ["dropped"]),
        helper.make_node("Where", ["dropped", "zero", "before"], ["after"]),
    ]


MUTATIONS = (
    Mutation("epsilon → 1e-3", changed_nodes(_NORMS, _epsilon)),
    Mutation("Gelu exact ↔ tanh", changed_nodes(("Gelu", "BiasGelu", "FastGelu"), _other_gelu)),
    Mutation("QuickGelu's alpha → 1.702", changed_nodes(("QuickGelu",), _setting("alpha", 1.702, lambda alpha: 1.702))),
    Mutation("Relu → LeakyRelu(0.01)", changed_nodes(("Relu", "FusedConv", "FusedGemm"), _leaky)),
    Mutation(
        "LeakyRelu's alpha off by 1 %",
        changed_nodes(("LeakyRelu",), _setting("alpha", 0.01, lambda alpha: 1.01 * alpha)),
    ),
    Mutation("Elu's alpha off by 1 %", changed_nodes(("Elu",), _setting("alpha", 1.0, lambda alpha: 1.01 * alpha))),
    Mutation(
        "HardSigmoid's slope 1/6 → 0.2", changed_nodes(("HardSigmoid",), _setting("alpha", 0.2, lambda alpha: 0.2))
    ),
    Mutation("Sigmoid → HardSigmoid", changed_nodes(("Sigmoid",), _becomes("HardSigmoid"))),
    Mutation("LogSoftmax → Softmax", changed_nodes(("LogSoftmax",), _becomes("Softmax"))),
    Mutation("an activation left out", changed_nodes((*_ACTIVATIONS, "FusedConv", "FusedGemm"), _no_activation)),
    Mutation("a residual left out", _left_out),
    Mutation("count_include_pad flipped", changed_nodes(("AveragePool",), _flipped("count_include_pad", 0))),
    Mutation("ceil_mode flipped", changed_nodes(_POOLS, _flipped("ceil_mode", 0))),
    Mutation("a maximum pooled as an average", changed_nodes(("MaxPool",), _becomes("AveragePool"))),
    Mutation("a global average as a maximum", changed_nodes(("GlobalAveragePool",), _becomes("GlobalMaxPool"))),
    Mutation("a mean as a sum", changed_nodes(("ReduceMean",), _becomes("ReduceSum"))),
    Mutation("a maximum as a mean", changed_nodes(("ReduceMax",), _becomes("ReduceMean"))),
    Mutation("Resize nearest ↔ linear", changed_nodes(("Resize",), _mode)),
    Mutation("Resize of other coordinates", changed_nodes(("Resize",), _coordinates)),
    Mutation("Softmax over another axis", changed_nodes(("Softmax", "LogSoftmax"), _setting("axis", -1, _other_axis))),
    Mutation("linear_before_reset flipped", changed_nodes(("GRU",), _flipped("linear_before_reset", 0))),
    Mutation("float16 in the middle", _behind(_FLOATS, _half)),
    Mutation("dropout left active", _behind(_DROPPED, _dropout, ratio=np.float32(0.1), zero=np.float32(0))),
    Mutation("Concat in another order", changed_nodes(("Concat",), _swap_inputs(0, 1))),
    Mutation("operands swapped", changed_nodes(("Sub", "Div", "Pow"), _swap_inputs(0, 1))),
    Mutation("branches of Where swapped", changed_nodes(("Where",), _swap_inputs(1, 2))),
    Mutation("a Transpose of other axes", changed_nodes(("Transpose",), _perm)),
    Mutation("pads shifted", changed_nodes(("Conv", "FusedConv", "ConvTranspose", *_POOLS), _shifted_pads)),
    Mutation("Pad of another mode", changed_nodes(("Pad",), _setting("mode", b"constant", _other_pad))),
    Mutation("TopK's largest flipped", changed_nodes(("TopK",), _flipped("largest", 1))),
    Mutation("ArgMax → ArgMin", changed_nodes(("ArgMax",), _becomes("ArgMin"))),
    Mutation("ArgMax's last index", changed_nodes(("ArgMax",), _flipped("select_last_index", 0))),
    Mutation("Greater → GreaterOrEqual", changed_nodes(("Greater",), _becomes("GreaterOrEqual"))),
)
