"""An ONNX graph as a flow: run node by node with every value as an output. Needs onnx and onnxruntime, not torch.

onnxruntime gives any inner value that is declared an output. It is asked for them twice: first for their sizes
alone, which takes no memory, and where all of them together are not too large, for the values. So a flow takes two
sessions, each substitution one more (`where.SUBSTITUTIONS` at most), and whatever is cut out of the graph one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from packager.common.sanitize import sanitize_message
from packager.parity.diagnosis.activations import INPUT_OPERATOR, Activation, Activations, ActivationsUnavailable
from packager.parity.numerics.compare import Array

MAX_ACTIVATION_BYTES = 1 << 30
"""The values on the way are looked at where they take no more than this."""


@dataclass(frozen=True)
class GraphModel:
    """A model whose large weights lie in files of `folder`, and who is to run it."""

    model: onnx.ModelProto
    folder: Path
    providers: Sequence[str] = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class GraphActivations:
    """The flow of a graph on one case, and the node that computes each value; None for the inputs."""

    graph: GraphModel
    inputs: Mapping[str, Array]
    activations: Activations
    nodes: tuple[onnx.NodeProto | None, ...]

    def substitute(
        self, values: Mapping[int, Array], readers: Sequence[int], wanted: Sequence[int]
    ) -> dict[int, Array]:
        """Run the graph with some values replaced, for these readers or for all: see `where.Substitute`."""
        names = {self.activations.values[place].name: array for place, array in values.items()}
        model = _substitute_values(self.graph.model, names, {id(self.nodes[one]) for one in readers})
        asked = {self.activations.values[one].name: one for one in wanted if one not in values or readers}
        feeds = {**self.inputs, **{_substitute_name(name): array for name, array in names.items()}}
        found = _run_session(self.graph, model, feeds, list(asked))
        return {asked[name]: array for name, array in found.items()}


def record_graph(graph: GraphModel, inputs: Mapping[str, Array]) -> GraphActivations:
    """All values on the way from the inputs. Raises `NotSeen` where the graph does not run so, or they are too many."""
    computed = list(_iter_input_dependent(graph.model.graph, inputs))
    names = [name for _, name, _ in computed]
    sizes = _measure_bytes(graph, inputs, names)
    if sizes > MAX_ACTIVATION_BYTES:
        raise ActivationsUnavailable(
            f"the values on the way take {sizes >> 20} MiB, more than the {MAX_ACTIVATION_BYTES >> 20} looked at"
        )
    arrays = {**inputs, **_run_session(graph, graph.model, inputs, names)}
    places = {name: place for place, name in enumerate([*inputs, *names])}
    values = [Activation(name, INPUT_OPERATOR, (), array) for name, array in inputs.items()]
    for node, name, reads in computed:
        sources = tuple(dict.fromkeys(places[one] for one in reads))
        values.append(Activation(name, node.op_type, sources, arrays.get(name)))
    outputs = {one.name: places[one.name] for one in graph.model.graph.output if one.name in places}
    nodes = (*(None for _ in inputs), *(node for node, _, _ in computed))
    return GraphActivations(graph, inputs, Activations(tuple(values), outputs), nodes)


def extract_subgraph(graph: GraphModel, inputs: Mapping[str, Array], output: str, expected: Array) -> onnx.ModelProto:
    """The part of the graph that computes the value `end` from the values `begins`, as a model of its own.

    Where it is one of them, the model hands it on. Weights stay where they are; nothing tells how the graph was made.
    """
    nodes, needed = [], {output}
    for node in reversed(graph.model.graph.node):
        made = [name for name in node.output if name in needed and name not in inputs]
        if made:
            nodes.append(node)
            needed.update(_list_read_names(node))
    kept = [one for one in graph.model.graph.initializer if one.name in needed and one.name not in inputs]
    found = onnx.ModelProto(ir_version=graph.model.ir_version, producer_name="packager")
    found.opset_import.extend(graph.model.opset_import)
    found.functions.extend(graph.model.functions)
    found.graph.name = "part"
    found.graph.node.extend(reversed(nodes))
    if output in inputs:
        found.graph.node.append(onnx.helper.make_node("Identity", [output], [_substitute_name(output)], "handed on"))
        output = _substitute_name(output)
    found.graph.initializer.extend(kept)
    found.graph.input.extend(_make_value_info(name, array) for name, array in inputs.items() if name in needed)
    kind = onnx.helper.np_dtype_to_tensor_dtype(expected.dtype)
    found.graph.output.append(onnx.helper.make_tensor_value_info(output, kind, None))
    return found


def run_subgraph(graph: GraphModel, subgraph: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
    """What a part of the graph computes from these values. Raises `NotSeen`."""
    taken = {one.name for one in subgraph.graph.input}
    (output,) = (one.name for one in subgraph.graph.output)
    return _run_session(graph, subgraph, {name: array for name, array in inputs.items() if name in taken}, [output])[
        output
    ]


# -- the graph ------------------------------------------------------------------------------


def _iter_input_dependent(
    graph: onnx.GraphProto, inputs: Iterable[str]
) -> Iterable[tuple[onnx.NodeProto, str, list[str]]]:
    """Every value that depends on the inputs, with its node and those of them that the node reads."""
    known = set(inputs)
    for node in graph.node:
        reads = [name for name in _list_read_names(node) if name in known]
        if reads:
            for name in node.output:
                if name:
                    known.add(name)
                    yield node, name, reads


def _list_read_names(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, in its subgraphs too."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            own = {name for one in graph.node for name in one.output} | {one.name for one in graph.input}
            own |= {one.name for one in graph.initializer}
            inner = [name for one in graph.node for name in _list_read_names(one)] + [one.name for one in graph.output]
            found += [name for name in inner if name not in own]
    return found


def _make_value_info(name: str, array: Array) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
    )


def _substitute_name(name: str) -> str:
    return f"{name}.substitute"


def _substitute_values(model: onnx.ModelProto, names: Mapping[str, Array], readers: set[int]) -> onnx.ModelProto:
    """The model with further inputs in the place of values, read by the nodes of these ids, or by all."""
    chosen = [not readers or id(node) in readers for node in model.graph.node]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for node, reads in zip(found.graph.node, chosen, strict=True):
        if reads:
            _rename_reads(node, names)
    found.graph.input.extend(_make_value_info(_substitute_name(name), array) for name, array in names.items())
    return found


def _rename_reads(node: onnx.NodeProto, names: Mapping[str, Array]) -> None:
    for place, name in enumerate(node.input):
        if name in names:
            node.input[place] = _substitute_name(name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            for inner in graph.node:
                _rename_reads(inner, names)


# -- the sessions ---------------------------------------------------------------------------


def _measure_bytes(graph: GraphModel, inputs: Mapping[str, Array], names: Sequence[str]) -> int:
    """The bytes of all these values together, at eight an element at most."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.node.extend(onnx.helper.make_node("Size", [name], [f"{name}.size"]) for name in names)
    found = _run_session(graph, model, inputs, [f"{name}.size" for name in names])
    return 4 * sum(int(one) for one in found.values())


def _run_session(
    graph: GraphModel, model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """The values of these names, as far as they are tensors that numpy has."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    declared = {one.name: one for one in model.graph.output}
    shown.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    path = graph.folder / "shown.onnx"  # beside the weights that it refers to
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as it is written
    options.log_severity_level = 4
    available = onnxruntime.get_available_providers()
    providers = [one for one in graph.providers if one in available] or ["CPUExecutionProvider"]
    try:
        path.write_bytes(shown.SerializeToString())
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
        found = session.run(list(names), {one.name: feeds[one.name] for one in session.get_inputs()})
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ActivationsUnavailable(
            f"onnxruntime, node by node: {sanitize_message(first_line, graph.folder)}"
        ) from error
    return {name: one for name, one in zip(names, found, strict=True) if isinstance(one, np.ndarray)}
