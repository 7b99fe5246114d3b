"""Record the activations of an ONNX graph: run it node by node, every value an output. Needs onnxruntime, not torch.

onnxruntime returns any inner value that is declared an output. It runs twice: first for the sizes of the values,
which takes no memory, and then, unless they are too large together, for the values. So the activations take two
sessions, each substitution one more (`substitution.MAX_SUBSTITUTIONS` at most), and a subgraph one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from packager.common.ort import onnxruntime
from packager.common.sanitize import get_first_line, sanitize_message
from packager.export.graph import walk
from packager.parity.diagnosis.activations import INPUT_OPERATOR, Activation, Activations, ActivationsUnavailable
from packager.parity.diagnosis.budget import UNLIMITED, Budget, OutOfTime
from packager.parity.numerics.compare import Array

MAX_ACTIVATION_BYTES = 1 << 30
"""The most bytes of activations that are recorded."""


@dataclass(frozen=True)
class GraphModel:
    """A model whose large weights lie in files of `folder`, the execution providers that run it, and for how long.

    At most `max_bytes` of activations are recorded. Whatever runs the model raises `OutOfTime` when the budget is
    spent, also in the middle of a run.
    """

    model: onnx.ModelProto
    folder: Path
    providers: Sequence[str] = ("CPUExecutionProvider",)
    budget: Budget = UNLIMITED
    max_bytes: int = MAX_ACTIVATION_BYTES


@dataclass(frozen=True)
class GraphActivations:
    """The activations of a graph on one case, and the node that computes each value; None for the inputs."""

    graph: GraphModel
    inputs: Mapping[str, Array]
    activations: Activations
    nodes: tuple[onnx.NodeProto | None, ...]

    def substitute(
        self, values: Mapping[int, Array], readers: Sequence[int], requested: Sequence[int]
    ) -> dict[int, Array]:
        """Run the graph with some values replaced, for these readers or for all: see `run_pair.Substitute`."""
        arrays = {self.activations.values[index].name: array for index, array in values.items()}
        model = _substitute_values(self.graph.model, arrays, {id(self.nodes[reader]) for reader in readers})
        indices = {self.activations.values[index].name: index for index in requested if index not in values or readers}
        feeds = {**self.inputs, **{_substitute_name(name): array for name, array in arrays.items()}}
        outputs = _run_session(self.graph, model, feeds, list(indices))
        return {indices[name]: array for name, array in outputs.items()}


def record_graph(graph: GraphModel, inputs: Mapping[str, Array]) -> GraphActivations:
    """Record all values that depend on the inputs.

    Raises `ActivationsUnavailable` if the graph does not run node by node, or if the values are larger than the graph's
    `max_bytes` together.
    """
    computed = list(_iter_input_dependent(graph.model.graph, inputs))
    names = [name for _, name, _ in computed]
    size = _measure_bytes(graph, inputs, names)
    if size > graph.max_bytes:
        limit = f"{graph.max_bytes >> 20} MiB"
        raise ActivationsUnavailable(f"the activations take {size >> 20} MiB, more than the limit of {limit}")
    arrays = {**inputs, **_run_session(graph, graph.model, inputs, names)}
    indices = {name: index for index, name in enumerate([*inputs, *names])}
    values = [Activation(name, INPUT_OPERATOR, (), array) for name, array in inputs.items()]
    for node, name, reads in computed:
        input_indices = tuple(dict.fromkeys(indices[read] for read in reads))
        values.append(Activation(name, node.op_type, input_indices, arrays.get(name)))
    outputs = {value.name: indices[value.name] for value in graph.model.graph.output if value.name in indices}
    nodes = (*(None for _ in inputs), *(node for node, _, _ in computed))
    return GraphActivations(graph, inputs, Activations(tuple(values), outputs), nodes)


def extract_subgraph(graph: GraphModel, inputs: Mapping[str, Array], output: str, expected: Array) -> onnx.ModelProto:
    """Cut out the nodes that compute the value `output` from the values `inputs`, as a model with weights in place.

    The model declares the dtype of `expected` for its output. If the output is one of the inputs, the model is a
    single Identity.
    """
    nodes, needed = [], {output}
    for node in reversed(graph.model.graph.node):
        if any(name in needed and name not in inputs for name in node.output):
            nodes.append(node)
            needed.update(walk.list_read_names(node))
    subgraph = onnx.ModelProto(ir_version=graph.model.ir_version, producer_name="packager")
    subgraph.opset_import.extend(graph.model.opset_import)
    subgraph.functions.extend(graph.model.functions)
    subgraph.graph.name = "subgraph"
    subgraph.graph.node.extend(reversed(nodes))
    if output in inputs:
        copy = _substitute_name(output)
        subgraph.graph.node.append(onnx.helper.make_node("Identity", [output], [copy], "copy"))
        output = copy
    subgraph.graph.initializer.extend(
        tensor for tensor in graph.model.graph.initializer if tensor.name in needed and tensor.name not in inputs
    )
    subgraph.graph.input.extend(_make_value_info(name, array) for name, array in inputs.items() if name in needed)
    data_type = onnx.helper.np_dtype_to_tensor_dtype(expected.dtype)
    subgraph.graph.output.append(onnx.helper.make_tensor_value_info(output, data_type, None))
    return subgraph


def run_subgraph(graph: GraphModel, subgraph: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
    """Run a subgraph of the graph on these values and return its output. Raises `ActivationsUnavailable`."""
    (output,) = (value.name for value in subgraph.graph.output)
    return _run_session(graph, subgraph, inputs, [output])[output]


# -- the graph ------------------------------------------------------------------------------


def _iter_input_dependent(
    graph: onnx.GraphProto, inputs: Iterable[str]
) -> Iterator[tuple[onnx.NodeProto, str, list[str]]]:
    """Iterate over the values that depend on the inputs, each with its node and those of them that the node reads."""
    dependent = set(inputs)
    for node in graph.node:
        reads = [name for name in walk.list_read_names(node) if name in dependent]
        if reads:
            for name in filter(None, node.output):
                dependent.add(name)
                yield node, name, reads


def _make_value_info(name: str, array: Array) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
    )


def _substitute_name(name: str) -> str:
    return f"{name}.substitute"


def _substitute_values(model: onnx.ModelProto, arrays: Mapping[str, Array], readers: set[int]) -> onnx.ModelProto:
    """Return the model with a new input for each of these values; nodes with these ids read it, or all nodes."""
    chosen = [not readers or id(node) in readers for node in model.graph.node]
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node, is_chosen in zip(changed.graph.node, chosen, strict=True):
        if is_chosen:
            _rename_reads(node, arrays)
    changed.graph.input.extend(_make_value_info(_substitute_name(name), array) for name, array in arrays.items())
    return changed


def _rename_reads(node: onnx.NodeProto, names: Container[str]) -> None:
    for index, name in enumerate(node.input):
        if name in names:
            node.input[index] = _substitute_name(name)
    for subgraph in walk.iter_subgraphs(node):
        for inner in subgraph.node:
            _rename_reads(inner, names)


# -- the sessions ---------------------------------------------------------------------------


def _measure_bytes(graph: GraphModel, inputs: Mapping[str, Array], names: Sequence[str]) -> int:
    """Estimate the bytes of all these values together, at four bytes an element."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.node.extend(onnx.helper.make_node("Size", [name], [f"{name}.size"]) for name in names)
    sizes = _run_session(graph, model, inputs, [f"{name}.size" for name in names])
    return 4 * sum(int(size) for size in sizes.values())


def _run_session(
    graph: GraphModel, model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """Run a model without optimizing it, and return the values of these names that are tensors numpy has a dtype for.

    `feeds` may hold more than the model's inputs. Raises `ActivationsUnavailable` if it does not run, or `OutOfTime`.
    """
    graph.budget.check()
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    declared = {value.name: value for value in model.graph.output}
    exposed.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    path = graph.folder / "exposed.onnx"  # beside the weights that it refers to
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in graph.providers if provider in available] or ["CPUExecutionProvider"]
    try:
        path.write_bytes(exposed.SerializeToString())
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
        with limit_run(graph.budget) as run_options:
            inputs = {value.name: feeds[value.name] for value in session.get_inputs()}
            outputs = session.run(list(names), inputs, run_options)
    except OutOfTime:
        raise
    except Exception as error:
        cause = sanitize_message(get_first_line(error), graph.folder)
        raise ActivationsUnavailable(f"onnxruntime, node by node: {cause}") from error
    return {name: array for name, array in zip(names, outputs, strict=True) if isinstance(array, np.ndarray)}


@contextmanager
def limit_run(budget: Budget) -> Iterator[onnxruntime.RunOptions]:
    """Yield options for a session's run that end it, between two nodes, when the time is over. Raises `OutOfTime`."""
    options, remaining = onnxruntime.RunOptions(), budget.get_remaining()
    if remaining is None:
        yield options
        return
    timer = threading.Timer(remaining, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    except Exception:
        budget.check()  # the run was ended, which onnxruntime reports as a failure
        raise
    finally:
        timer.cancel()
