"""A graph that is wrong on some case → the first node at fault, in words, and the part of the graph that shows it.

    case     the smallest one on which the graph is wrong
    flow     everything that the graph computes on it, node by node, beside everything that the reference computes
    part     where the two go separate ways: `packager.parity.diagnosis.divergence`
    alone    that part of the graph by itself, from the reference's own values: is it wrong then too?

No more than 60 sessions are made, for a graph of any size: one for the case, two for the flow, and for each of the
three `where.RULES` as far as they are needed `where.SUBSTITUTIONS` and one for the part by itself.

Needs onnx and onnxruntime, not torch: the reference is a flow, whatever it was taken from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from packager.parity.diagnosis import divergence, onnx_activations
from packager.parity.diagnosis.activations import (
    Activation,
    Activations,
    ActivationsUnavailable,
    measure_typical_magnitude,
)
from packager.parity.diagnosis.divergence import Divergence
from packager.parity.diagnosis.onnx_activations import GraphActivations, GraphModel
from packager.parity.numerics.compare import Array, ElementTolerance, ErrorMetrics, ShapesDiffer, compare
from packager.parity.numerics.verdict import ReferenceCase
from packager.runtime.check import get_error_line
from packager.runtime.onnx_backend import OnnxBackend

_EXACT_OUTPUT_TOLERANCE = 1e-4  # the tolerance of values on the way to outputs that are all exact


@dataclass(frozen=True)
class FailingCase:
    """A case on which a graph is wrong, and the output that is farthest from what it should be."""

    reference_case: ReferenceCase
    output: str

    @property
    def relative_tolerance(self) -> float:
        """The tolerance of this case's outputs, as one relative number; exact outputs have none."""
        return max(
            (
                _to_relative_tolerance(array, self.reference_case.tolerances[name])
                for name, array in self.reference_case.outputs.items()
                if array.dtype.kind in "fc"
            ),
            default=_EXACT_OUTPUT_TOLERANCE,
        )


@dataclass(frozen=True)
class FaultyNode:
    """The first node at fault.

    `part` computes `actual` from `begins`, which are the reference's values, and should compute `expected`. `apart`
    is how far it is from that, None where it has another shape or dtype; `agree` how far the graph's own values are
    from `begins`, as a share of the tolerance. `nodes` are those of the part that depend on the inputs.
    """

    divergence: Divergence
    nodes: tuple[onnx.NodeProto, ...]
    subgraph: onnx.ModelProto
    subgraph_inputs: Mapping[str, Array]
    actual: Array
    expected: Array
    metrics: ErrorMetrics | None
    input_error: float

    @property
    def reference_index(self) -> int:
        """The reference's value that the user should look at."""
        return self.divergence.expected_index if self.divergence.next_index is None else self.divergence.next_index

    @property
    def reproduces(self) -> bool:
        """Whether the part is wrong by itself, and not only as the rounding before it adds up."""
        return self.metrics is None or not self.metrics.within_tolerance


def find_smallest_failing_case(graph: GraphModel, expectations: Sequence[ReferenceCase]) -> FailingCase:
    """The smallest case on which the graph is wrong. Raises `NotSeen` where there is none that it runs."""
    path = graph.folder / "whole.onnx"
    path.write_bytes(graph.model.SerializeToString())
    refused = ""
    try:
        backend = OnnxBackend(path, providers=graph.providers, threads=None, allow_spinning=False)
    except Exception as error:
        raise ActivationsUnavailable(f"onnxruntime: {get_error_line(error, graph.folder)}") from error
    for expectation in sorted(expectations, key=_size_key):
        try:
            actual = backend.run(expectation.inputs)
        except Exception as error:  # noqa: BLE001 (as above: it does not run; said where no other case is wrong)
            refused = refused or f"case {expectation.name}: onnxruntime: {get_error_line(error, graph.folder)}"
            continue
        found = _find_worst_output(expectation, actual)
        if found is not None:
            return FailingCase(expectation, found)
    raise ActivationsUnavailable(refused or "before it is optimized, the graph is right on every case")


def localize(reference: Activations, suspect: GraphActivations, wrong: FailingCase) -> FaultyNode:
    """The first node at fault on a case. Raises `NotSeen` where none is."""
    goal = suspect.activations.outputs.get(wrong.output)
    actual = None if goal is None else suspect.activations.values[goal].array
    if actual is None:
        raise ActivationsUnavailable(f"the output {wrong.output} does not depend on the inputs")
    if _find_worst_output(wrong.reference_case, {wrong.output: actual}) is None:
        raise ActivationsUnavailable(
            "node by node the graph is right on this case: it is wrong as onnxruntime optimizes it"
        )
    found: list[FaultyNode] = []
    for rule in divergence.MATCH_RULES:
        found.append(_localize_by_rule(reference, suspect, wrong, rule))
        if found[-1].reproduces and found[-1].divergence.confirmed and len(found[-1].nodes) <= 1:
            break
    return min(found, key=lambda one: (not one.reproduces, not one.divergence.confirmed, len(one.nodes)))


def _localize_by_rule(
    reference: Activations, suspect: GraphActivations, wrong: FailingCase, rule: divergence.MatchRule
) -> FaultyNode:
    parting = divergence.find_divergence(reference, suspect.activations, wrong.output, suspect.substitute, rule)
    if parting is None:
        raise ActivationsUnavailable(f"PyTorch does not compute the output {wrong.output} from the inputs")
    given, agree = {}, 0.0
    for place, like in parting.matched_inputs.items():
        held, array = suspect.activations.values[place], reference.values[like].array
        assert array is not None
        given[held.name] = array
        apart = divergence.compare_activation(reference.values[like], held.array)
        agree = max(agree, apart.error_over_limit if apart is not None else math.inf)
    end = suspect.activations.values[parting.suspect_index].name
    target = reference.values[parting.expected_index]
    if target.array is None:
        raise ActivationsUnavailable(f"numpy has no array for what {target.operator} gives")
    part = onnx_activations.extract_subgraph(suspect.graph, given, end, target.array)
    actual = onnx_activations.run_subgraph(suspect.graph, part, given)
    begins = {one.name: given[one.name] for one in part.graph.input}
    nodes = {id(node): node for node in (suspect.nodes[one] for one in parting.path) if node is not None}
    apart = divergence.compare_activation(target, actual)
    return FaultyNode(parting, tuple(nodes.values()), part, begins, actual, target.array, apart, agree)


def describe_fault(located: FaultyNode, reference: Activations, suspect: GraphActivations, whose: str) -> list[str]:
    """What was found, in clauses; `whose` are the reference's values: "PyTorch's"."""
    parting = located.divergence
    there = f"{whose} {_describe_activation(reference.values[located.reference_index])}"
    if parting.is_missing:
        readers = [node for node in (suspect.nodes[one] for one in parting.readers) if node is not None]
        before = _describe_node(readers[0]) if readers else "the output"
        return [f"first wrong: nothing in the graph does {there}", f"{before} gets what comes before it"]
    node = located.nodes[-1]
    others = len(located.nodes) - 1
    more = f" and the {others} nodes before it" if others > 1 else " and the one before it" if others else ""
    text = f"first wrong: {_describe_node(node)}{more}"
    text += f", which does more than {there}" if parting.is_extra else f", for {there}"
    if not located.reproduces:
        return [text, f"from {whose} values it computes what it should: no node alone is at fault, rounding adds up"]
    return [text, f"its inputs agree within {located.input_error:.2g} of the tolerance, {_describe_error(located)}"]


def _describe_activation(value: Activation) -> str:
    inside = f" in module {value.module}" if value.module else ""
    return f"{value.operator}{inside}" + (f", {value.source_line}" if value.source_line else "")


def _describe_node(node: onnx.NodeProto) -> str:
    return f"node {node.name or node.output[0]} ({node.op_type})"


def _describe_error(located: FaultyNode) -> str:
    found, expected, actual = located.metrics, located.expected, located.actual
    if found is None or found.worst is None:
        return f"its output is {actual.dtype}{list(actual.shape)}, expected {expected.dtype}{list(expected.shape)}"
    index = ", ".join(str(one) for one in found.worst.index)
    times = f", {found.error_over_limit:.3g} times the limit" if math.isfinite(found.error_over_limit) else ""
    return f"its output[{index}] is {found.worst.actual!r}, expected {found.worst.expected!r}{times}"


def _size_key(expectation: ReferenceCase) -> tuple[bool, int, int]:
    """Small first; but last those on which too much looks alike: inputs of one value, and dims of sizes 1 and 2."""
    arrays = list(expectation.inputs.values())
    plain = all(one.size > 1 and bool(np.all(one == one.flat[0])) for one in arrays)
    return plain, sum(one.shape.count(1) + one.shape.count(2) for one in arrays), sum(one.size for one in arrays)


def _find_worst_output(expectation: ReferenceCase, actual: Mapping[str, Array]) -> str | None:
    """The output that is farthest beyond its limit; None where none is."""
    far: dict[str, float] = {}
    for name in actual:
        try:
            found = compare(expectation.outputs[name], actual[name], expectation.tolerances[name])
        except ShapesDiffer:
            far[name] = math.inf
        else:
            far[name] = found.error_over_limit if found.mismatched_nonfinite == 0 else math.inf
    wrong = [name for name in far if far[name] > 1.0]
    # Floats first: what is exact, as an index is, differs all at once, and says less.
    return max(wrong, key=lambda name: (actual[name].dtype.kind in "fc", far[name]), default=None)


def _to_relative_tolerance(expected: Array, limit: ElementTolerance) -> float:
    scale = measure_typical_magnitude(expected)
    return max(limit.rtol, limit.atol / scale if scale > 0 else 0.0)


def describe_broken_pass(good: GraphModel, bad: onnx.ModelProto, expectations: Sequence[ReferenceCase]) -> str:
    """What a pass broke, in words: `good` is the graph before it and `bad` after, with weights in the same folder."""
    try:
        suspect = GraphModel(bad, good.folder, good.providers)
        wrong = find_smallest_failing_case(suspect, expectations)
        flow = onnx_activations.record_graph(good, wrong.reference_case.inputs).activations
        reference = flow.with_tolerances([wrong.relative_tolerance] * len(flow.values))
        after = onnx_activations.record_graph(suspect, wrong.reference_case.inputs)
        return "; ".join(describe_fault(localize(reference, after, wrong), reference, after, "the earlier graph's"))
    except ActivationsUnavailable as why:
        return f"where it goes wrong was not found: {why}"
