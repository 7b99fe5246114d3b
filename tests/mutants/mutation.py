"""Mutations: a way to be wrong, the locations of a graph that it fits, and mutants at a few of those locations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

Sizes = Mapping[str, int]


class View:
    """A graph that can be edited: its nodes and constants, with those of its subgraphs, in order.

    `examples` are two valid choices of sizes for the named dims; the first is the one that a careless tool would keep.
    """

    def __init__(self, model: ModelProto, examples: Sequence[Sizes]) -> None:
        self.model = model
        self.examples = examples
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
        graph = next(graph for graph in self.graphs if any(node is other for other in graph.node))
        old = node.output[0]
        node.output[0] = f"{old}_before"
        for new in made:
            new.input[:] = [f"{old}_before" if name == "before" else f"{old}_{name}" for name in new.input]
            new.output[:] = [old if name == "after" else f"{old}_{name}" for name in new.output]
        position = next(number for number, other in enumerate(graph.node) if other is node)
        for offset, new in enumerate(made, start=1):
            graph.node.insert(position + offset, new)


Edit = Callable[[View], None]
Sites = Callable[[View], Iterator[tuple[str, Edit]]]


@dataclass(frozen=True)
class Mutant:
    """A copy of a graph that is changed in one place: by which mutation, and where."""

    mutation: str
    location: str
    model: ModelProto = field(repr=False)

    def __str__(self) -> str:
        return f"{self.mutation}, at {self.location}"


@dataclass(frozen=True)
class Mutation:
    """One way to be wrong. `sites` finds the locations that it fits, each with the edit that breaks a copy there."""

    name: str
    sites: Sites

    def apply(self, model: ModelProto, examples: Sequence[Sizes], most: int = 3) -> Iterator[Mutant]:
        """Yield mutants of a graph at up to `most` of the locations that fit; the graph itself stays as it is."""
        sites = list(self.sites(View(model, examples)))
        chosen = sorted({round(index) for index in np.linspace(0, len(sites) - 1, most)}) if sites else []
        for location, edit in (sites[index] for index in chosen):
            copy = ModelProto()
            copy.CopyFrom(model)
            edit(View(copy, examples))
            yield Mutant(self.name, location, copy)


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
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set a node's attribute; None removes it."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
