"""Mutations of scalars, indices, bounds and pads: values that are slightly off."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from mutation import Edit, Mutation, Sites, View, attribute, label, set_attribute
from onnx import NodeProto
from wrong_operators import changed_nodes


def _scalars(
    op_types: Sequence[str], change: Callable[[Any], Any], positions: Sequence[int] | None = None, kind: str = "f"
) -> Sites:
    """Change each constant of one element that is an input of such a node; a change that returns None does not fit."""

    def sites(view: View) -> Iterator[tuple[str, Edit]]:
        for index, node in enumerate(view.nodes):
            if node.op_type not in op_types:
                continue
            for position, name in enumerate(node.input):
                value = view.constant(name)
                if value is None or value.size != 1 or value.dtype.kind != kind:
                    continue
                if positions is not None and position not in positions:
                    continue
                changed = change(value.item())
                if changed is not None and changed != value.item():
                    new = np.full(value.shape, changed, value.dtype)
                    place = f"{value.item():.4g} → {changed:.4g} in {label(node)}"
                    yield place, partial(View.set_input, index=index, position=position, value=new)

    return sites


def _attention_scales(view: View) -> Iterator[tuple[str, Edit]]:
    """Scale attention: the multipliers, divisors, and alphas of fused products on the way to a Softmax."""
    for start in (index for index, node in enumerate(view.nodes) if node.op_type == "Softmax"):
        for index in sorted(_before(view, start, 8)):
            node = view.nodes[index]
            if node.op_type == "FusedMatMul":

                def edit(copy: View, index: int = index, alpha: float = attribute(node, "alpha", 1.0)) -> None:
                    set_attribute(copy.nodes[index], "alpha", 1.01 * alpha)

                yield f"alpha of {label(node)}", edit
            for position, name in enumerate(node.input if node.op_type in ("Mul", "Div") else ()):
                value = view.constant(name)
                if value is not None and value.dtype.kind == "f" and value.size == 1 and abs(value.item()) < 1000:
                    new = (value * 1.01).astype(value.dtype)
                    yield label(node), partial(View.set_input, index=index, position=position, value=new)


def _before(view: View, index: int, steps: int) -> set[int]:
    """Return the nodes up to this many steps before a node, up to the previous Softmax or LayerNormalization."""
    found: set[int] = set()
    ends = {index}
    for _ in range(steps):
        made = {view.producer[name] for one in ends for name in view.nodes[one].input if name in view.producer}
        ends = {one for one in made - found if view.nodes[one].op_type not in ("Softmax", "LayerNormalization")}
        found |= ends
    return found


def _bound(step: int) -> Callable[[int], int | None]:
    """Move a bound by one; a bound far beyond any tensor stays."""
    return lambda value: value + step if abs(value) < 1 << 31 else None


def _triangle(view: View) -> Iterator[tuple[str, Edit]]:
    for index, node in enumerate(view.nodes):
        if node.op_type == "Trilu":
            known = view.constant(node.input[1]) if len(node.input) > 1 else np.array(0)
            if known is not None:
                new = np.array(known.item() + 1, np.int64)
                yield label(node), partial(View.set_input, index=index, position=1, value=new)


def _pad_shift(view: View) -> Iterator[tuple[str, Edit]]:
    for index, node in enumerate(view.nodes):
        pads = view.constant(node.input[1]) if node.op_type == "Pad" else None
        if pads is not None:
            ends = pads.size // 2
            for axis in range(ends):
                if pads[ends + axis] > 0:
                    new = pads.copy()
                    new[axis], new[ends + axis] = new[axis] + 1, new[ends + axis] - 1
                    yield f"axis {axis} of {label(node)}", partial(View.set_input, index=index, position=1, value=new)


def _pad_value(view: View) -> Iterator[tuple[str, Edit]]:
    for index, node in enumerate(view.nodes):
        if node.op_type == "Pad" and attribute(node, "mode", b"constant") == b"constant":
            yield label(node), partial(View.set_input, index=index, position=2, value=np.array(0.5, np.float32))


def _clips(view: View) -> Iterator[tuple[str, Edit]]:
    """Change the bounds of Clip nodes, and of a Clip that is fused into a Conv."""
    yield from _scalars(("Clip",), lambda value: 0.99 * value if value else 0.01, [1, 2])(view)

    def moved(node: NodeProto) -> object:
        if attribute(node, "activation") != b"Clip":
            return False
        low, high = attribute(node, "activation_params")
        return set_attribute(node, "activation_params", [low, 0.99 * high])

    yield from changed_nodes(("FusedConv",), moved)(view)


MUTATIONS = (
    Mutation("epsilon in the arithmetic → 1e-3", _scalars(("Add",), lambda one: 1e-3 if 0 < one < 1e-4 else None)),
    Mutation("attention scale off by 1 %", _attention_scales),
    Mutation("a mask of -10", _scalars(("Where", "Add", "Mul", "Sub"), lambda one: -10.0 if one <= -1000 else None)),
    Mutation("a causal mask off by one", _triangle),
    Mutation("Clip's bounds off by 1 %", _clips),
    Mutation(
        "a Gather index off by one", _scalars(("Gather",), lambda one: one + 1 if one >= 0 else one - 1, [1], "i")
    ),
    Mutation("an integer divisor off by one", _scalars(("Div", "Mod"), lambda one: one + 1, [1], "i")),
    Mutation("Slice's start off by one", _scalars(("Slice",), _bound(1), [1], "i")),
    Mutation("Slice's end off by one", _scalars(("Slice",), _bound(-1), [2], "i")),
    Mutation("Pad shifted", _pad_shift),
    Mutation("Pad with 0.5", _pad_value),
)
