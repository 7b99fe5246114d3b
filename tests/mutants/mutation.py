"""Mutations: a way to be wrong, the places of a graph that it fits, and mutants at a few of those places."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper


class View:
    """A graph that can be edited: its nodes and constants, with those of its subgraphs, in order."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.graphs = list(_graphs(model.graph))
        self.nodes = [node for graph in self.graphs for node in graph.node]
        self._tensors = {tensor.name: tensor for graph in self.graphs for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output}

    def constant(self, name: str) -> np.ndarray | None:
        """Return the value of a constant; None if the value is computed."""
        tensor = self._tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def set_constant(self, name: str, value: np.ndarray) -> None:
        """Change the value of a constant, for all nodes that use it."""
        tensor = self._tensors[name]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))

    def set_input(self, index: int, position: int, value: np.ndarray) -> None:
        """Replace one input of one node by a new constant."""
        name = f"mutant_{index}_{position}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        node = self.nodes[index]
        node.input.extend([""] * (position + 1 - len(node.input)))
        node.input[position] = name

    def insert_after(self, index: int, *made: NodeProto) -> None:
        """Insert nodes after a node: its output is their input `before`, and `after` is read in its place."""
        node = self.nodes[index]
        graph = next(one for one in self.graphs if any(node is other for other in one.node))
        old = node.output[0]
        node.output[0] = f"{old}_before"
        for one in made:
            one.input[:] = [f"{old}_before" if name == "before" else f"{old}_{name}" for name in one.input]
            one.output[:] = [old if name == "after" else f"{old}_{name}" for name in one.output]
        position = next(number for number, other in enumerate(graph.node) if other is node)
        for offset, one in enumerate(made, start=1):
            graph.node.insert(position + offset, one)


Edit = Callable[[View], None]
Sites = Callable[[View], Iterator[tuple[str, Edit]]]


@dataclass(frozen=True)
class Mutant:
    """A copy of a graph that is changed in one place: by which mutation, and where."""

    mutation: str
    place: str
    model: ModelProto = field(repr=False)

    def __str__(self) -> str:
        return f"{self.mutation}, at {self.place}"


@dataclass(frozen=True)
class Mutation:
    """One way to be wrong. `sites` finds the places that it fits, each with the edit that breaks a copy there."""

    name: str
    sites: Sites

    def apply(self, model: ModelProto, most: int = 3) -> Iterator[Mutant]:
        """Yield mutants of a graph at up to `most` of the places that fit; the graph itself stays as it is."""
        found = list(self.sites(View(model)))
        chosen = sorted({round(one) for one in np.linspace(0, len(found) - 1, most)}) if found else []
        for place, edit in (found[one] for one in chosen):
            copy = ModelProto()
            copy.CopyFrom(model)
            edit(View(copy))
            yield Mutant(self.name, place, copy)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def label(node: NodeProto) -> str:
    return f"{node.op_type} → {next((name for name in node.output if name), '?')}"


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute."""
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set a node's attribute; None removes it."""
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
