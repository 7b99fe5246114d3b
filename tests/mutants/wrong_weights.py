"""Mutations of weights: constants that hold other numbers than they should."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from mutation import Edit, Mutation, Sites, View, attribute, label, set_attribute
from onnx import NodeProto

_BIAS_INPUTS = {
    "Conv": (2,), "FusedConv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "FusedGemm": (2,), "Add": (0, 1),
    "BatchNormalization": (2, 3), "InstanceNormalization": (2,), "LayerNormalization": (2,),
    "SkipLayerNormalization": (3, 4), "EmbedLayerNormalization": (6,), "BiasGelu": (1,), "FastGelu": (1,),
    "LSTM": (3,), "GRU": (3,),
}  # fmt: skip
_TABLE_INPUTS = {"Gather": (0,), "EmbedLayerNormalization": (2, 3, 4)}
_RECURRENT = ("LSTM", "GRU")


def _uses(view: View) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Yield each float constant of several elements: name, first node that uses it, as which input, value."""
    seen = set()
    for index, node in enumerate(view.nodes):
        for position, name in enumerate(node.input):
            value = view.constant(name)
            if name not in seen and value is not None and value.dtype.kind == "f" and value.size > 1:
                seen.add(name)
                yield name, index, position, value


def _weights(view: View) -> Iterator[tuple[str, int, int, np.ndarray]]:
    return (use for use in _uses(view) if use[3].ndim >= 2)


def _biases(view: View) -> Iterator[tuple[str, int, int, np.ndarray]]:
    return (
        use for use in _uses(view) if use[2] in _BIAS_INPUTS.get(view.nodes[use[1]].op_type, ()) and use[3].any()
    )  # fmt: skip


def _tables(view: View) -> Iterator[tuple[str, int, int, np.ndarray]]:
    return (use for use in _weights(view) if use[2] in _TABLE_INPUTS.get(view.nodes[use[1]].op_type, ()))


def _channels(node: NodeProto, value: np.ndarray) -> int:
    """Return the axis of a weight along which its output channels lie."""
    if node.op_type in _RECURRENT or node.op_type in _TABLE_INPUTS or node.op_type == "ConvTranspose":
        return min(1, value.ndim - 1)
    if node.op_type in ("Conv", "FusedConv") or attribute(node, "transB", 0):
        return 0
    return value.ndim - 1


def _each(uses: Callable[[View], Iterator[Any]], change: Callable[[np.ndarray, int], np.ndarray]) -> Sites:
    """Change each of these constants by a function of its value and the axis of its channels."""

    def sites(view: View) -> Iterator[tuple[str, Edit]]:
        for name, index, _, value in uses(view):
            changed = change(value.copy(), _channels(view.nodes[index], value)).astype(value.dtype)
            if changed.shape != value.shape or not np.array_equal(changed, value, equal_nan=True):
                place = f"{name}{list(value.shape)} of {label(view.nodes[index])}"
                yield place, partial(View.set_constant, name=name, value=changed)

    return sites


def _channel(axis: int, size: int) -> tuple[Any, ...]:
    return (*(slice(None),) * axis, size // 2)


def _scale_channel(value: np.ndarray, axis: int) -> np.ndarray:
    value[_channel(axis, value.shape[axis])] *= 1.01
    return value


def _swap_channels(value: np.ndarray, axis: int) -> np.ndarray:
    order = np.arange(value.shape[axis])
    order[[0, -1]] = order[[-1, 0]]
    return value.take(order, axis)


def _middle(change: Callable[[Any], Any]) -> Callable[[np.ndarray, int], np.ndarray]:
    """Change the element in the middle."""

    def changed(value: np.ndarray, axis: int) -> np.ndarray:
        value.flat[value.size // 2] = change(value.flat[value.size // 2])
        return value

    return changed


def _transpose(value: np.ndarray, axis: int) -> np.ndarray:
    return value.swapaxes(-1, -2) if value.shape[-1] == value.shape[-2] else value


def _bfloat16(value: np.ndarray) -> np.ndarray:
    """Return a float32 array rounded to the nearest bfloat16, as float32."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _all_rounded(view: View) -> Iterator[tuple[str, Edit]]:
    names = [name for name, _, _, value in _uses(view) if value.dtype == np.float32]

    def edit(copy: View) -> None:
        for name in names:
            value = copy.constant(name)
            assert value is not None
            copy.set_constant(name, _bfloat16(value))

    if names:
        yield "all weights", edit


def _exchanged(view: View) -> Iterator[tuple[str, Edit]]:
    """Exchange two constants of the same shape, one used after the other."""
    last: dict[tuple[int, ...], tuple[str, np.ndarray]] = {}
    for name, _, _, value in _uses(view):
        if value.shape in last and not np.array_equal(value, last[value.shape][1]):
            before, other = last[value.shape]

            def edit(
                copy: View, one: str = name, two: str = before, first: np.ndarray = value, second: np.ndarray = other
            ) -> None:
                copy.set_constant(one, second)
                copy.set_constant(two, first)

            yield f"{before} and {name}", edit
        last[value.shape] = (name, value)


def _row(share: float, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, int], np.ndarray]:
    """Change one row of a table, from the first at 0 to the last at 1."""

    def changed(value: np.ndarray, axis: int) -> np.ndarray:
        index = int(share * (len(value) - 1))
        value[index] = change(value[index])
        return value

    return changed


def _other_layout(view: View) -> Iterator[tuple[str, Edit]]:
    """Flip transB, so that the numbers of the weight are read in the other layout."""
    for index, node in enumerate(view.nodes):
        value = view.constant(node.input[1]) if node.op_type in ("Gemm", "FusedGemm") else None
        if value is not None and value.ndim == 2:

            def edit(
                copy: View, index: int = index, flipped: int = 1 - attribute(node, "transB", 0), value: Any = value
            ) -> None:
                set_attribute(copy.nodes[index], "transB", flipped)
                copy.set_input(index, 1, value.reshape(value.shape[::-1]))

            yield label(node), edit


def _gates(op_type: str, count: int, first: int, second: int) -> Sites:
    """Exchange two gates of a recurrent node, in all of its weights or in one of them."""

    def swapped(value: np.ndarray, halves: int) -> np.ndarray:
        blocks = value.reshape(value.shape[0], halves, count, -1, *value.shape[2:]).copy()
        blocks[:, :, [first, second]] = blocks[:, :, [second, first]]
        return blocks.reshape(value.shape)

    def sites(view: View) -> Iterator[tuple[str, Edit]]:
        for index, node in enumerate(view.nodes):
            if node.op_type != op_type:
                continue
            values = {place: view.constant(node.input[place]) for place in (1, 2, 3) if place < len(node.input)}
            known = {place: value for place, value in values.items() if value is not None}
            for places in [tuple(known), (3,)]:
                if all(place in known for place in places) and places:

                    def edit(copy: View, index: int = index, places: Any = places, known: Any = known) -> None:
                        for place in places:
                            copy.set_input(index, place, swapped(known[place], 2 if place == 3 else 1))

                    yield f"{label(node)}, inputs {list(places)}", edit

    return sites


MUTATIONS = (
    Mutation("a channel scaled by 1 %", _each(_weights, _scale_channel)),
    Mutation("a tensor scaled by 0.1 %", _each(_uses, lambda value, axis: value * 1.001)),
    Mutation("a bias zeroed", _each(_biases, lambda value, axis: 0 * value)),
    Mutation("one element of a bias zeroed", _each(_biases, _middle(lambda value: 0))),
    Mutation("two channels swapped", _each(_weights, _swap_channels)),
    Mutation("two weights of one shape exchanged", _exchanged),
    Mutation("a square weight transposed", _each(_weights, _transpose)),
    Mutation("a weight read in the other layout", _other_layout),
    Mutation("weights rounded to bfloat16", _all_rounded),
    Mutation("one tensor rounded to bfloat16", _each(_uses, lambda value, axis: _bfloat16(value))),
    Mutation("one tensor rounded to float16", _each(_uses, lambda value, axis: value.astype(np.float16))),
    Mutation("one NaN weight", _each(_uses, _middle(lambda value: np.nan))),
    Mutation("one infinite weight", _each(_uses, _middle(lambda value: np.inf))),
    Mutation("the sign of one weight flipped", _each(_uses, _middle(lambda value: -value))),
    Mutation("ids off by one", _each(_tables, lambda value, axis: np.roll(value, 1, 0))),
    Mutation("the first row of a table zeroed", _each(_tables, _row(0, lambda row: 0 * row))),
    Mutation("the middle row of a table zeroed", _each(_tables, _row(0.5, lambda row: 0 * row))),
    Mutation("the last row of a table zeroed", _each(_tables, _row(1, lambda row: 0 * row))),
    Mutation("LSTM gates swapped", _gates("LSTM", 4, 1, 2)),
    Mutation("GRU gates swapped", _gates("GRU", 3, 0, 1)),
)
