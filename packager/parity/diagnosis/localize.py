"""Localize the first node at fault in a graph that is wrong on some case, and cut out the subgraph that shows it.

    case          the cheapest one on which the graph is wrong
    activations   everything that the graph computes on it, node by node, beside everything that the reference computes
    divergence    where the two diverge: `packager.parity.diagnosis.divergence`
    subgraph      the nodes at fault alone, run on the reference's own values: are they wrong then too?

A graph of any size takes at most 60 sessions: one for the case, two for the activations, and for each of the three
`MATCH_RULES`, as far as they are needed, `MAX_SUBSTITUTIONS` and one for the subgraph. The graph's budget ends them
earlier.

Needs onnx and onnxruntime, not torch: the reference is given by its activations, wherever they were recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import onnx

from packager.parity.diagnosis import onnx_activations
from packager.parity.diagnosis.activations import (
    INPUT_OPERATOR,
    Activation,
    Activations,
    ActivationsUnavailable,
    measure_typical_magnitude,
)
from packager.parity.diagnosis.budget import OutOfTime
from packager.parity.diagnosis.divergence import find_divergence
from packager.parity.diagnosis.matching import compare_activation
from packager.parity.diagnosis.onnx_activations import GraphActivations, GraphModel
from packager.parity.diagnosis.run_pair import Divergence
from packager.parity.diagnosis.soundness import MATCH_RULES, MatchRule
from packager.parity.numerics.compare import Array, ElementTolerance, ErrorMetrics, ShapesDiffer, compare
from packager.parity.numerics.verdict import ReferenceCase
from packager.runtime.check import get_error_line
from packager.runtime.onnx_backend import OnnxBackend

_SMALL_CASE_ELEMENTS = 1 << 16  # of its inputs; up to this size, a case that tells more is worth its cost
_MAX_PASS_BYTES = 1 << 28  # of activations, where a pass is diagnosed
_TYPICAL_RUNS = 10  # of the graph, from the failing case to the node
_EXACT_OUTPUT_TOLERANCE = 1e-4  # for the inner values of a graph whose outputs are all integers or booleans


@dataclass(frozen=True)
class FailingCase:
    """A case on which a graph is wrong, and its output with the largest error in terms of the tolerance."""

    reference_case: ReferenceCase
    output: str

    @property
    def relative_tolerance(self) -> float:
        """Return the largest tolerance of this case's float outputs, as one relative number."""
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
    """The first node at fault, which is the last of `nodes`; usually the only one.

    `subgraph` computes `actual` from `subgraph_inputs`, which are the reference's values, and should compute
    `expected`. `metrics` compares the two; None if their shapes or dtypes differ. `input_error` is how far the graph's
    own values are from `subgraph_inputs`, as a share of the tolerance. `nodes` are those of the subgraph that depend
    on the model's inputs, in order, and `operations` the reference's values that they stand for.
    """

    divergence: Divergence
    nodes: tuple[onnx.NodeProto, ...]
    operations: tuple[Activation, ...]
    subgraph: onnx.ModelProto
    subgraph_inputs: Mapping[str, Array]
    actual: Array
    expected: Array
    metrics: ErrorMetrics | None
    input_error: float

    @property
    def reference_index(self) -> int:
        """Return the index of the reference's value that the user should look at."""
        return self.divergence.expected_index if self.divergence.next_index is None else self.divergence.next_index

    @property
    def reproduces(self) -> bool:
        """Tell whether the subgraph is wrong by itself, not just because rounding errors before it add up."""
        return self.metrics is None or not self.metrics.within_tolerance

    @property
    def is_certain(self) -> bool:
        """Tell whether the subgraph is wrong by itself, and stands for operations on one line of the user's code.

        Without this fault, the graph is right, or it has no other operation in question.
        """
        is_alone = self.divergence.confirmed or len(self.operations) == 1
        return self.reproduces and is_alone and len({operation.source_line for operation in self.operations}) == 1


def find_failing_case(graph: GraphModel, reference_cases: Sequence[ReferenceCase]) -> FailingCase:
    """Find a case on which a graph is wrong: the cheapest, or among cheap ones the one that tells the most.

    The first run shows whether cases are cheap, if the graph has a budget; their sizes do otherwise. Raises
    `ActivationsUnavailable` if the graph does not load, or is right on every case that it runs, and `OutOfTime`.
    """
    graph.budget.report("failing case")
    path = graph.folder / "whole.onnx"
    path.write_bytes(graph.model.SerializeToString())
    try:
        backend = OnnxBackend(path, providers=graph.providers, threads=None, allow_spinning=False)
    except Exception as error:
        raise ActivationsUnavailable(f"onnxruntime: {get_error_line(error, graph.folder)}") from error
    cheapest, *_ = by_cost = sorted(reference_cases, key=_rank_cost)
    began = time.monotonic()
    outcomes = {cheapest.name: _find_wrong_output(backend, graph, cheapest)}
    is_cheap = graph.budget.affords(_TYPICAL_RUNS * (time.monotonic() - began))
    failure = ""
    for case in sorted(reference_cases, key=_rank_case) if is_cheap else by_cost:
        outcome = outcomes.get(case.name) or _find_wrong_output(backend, graph, case)
        if outcome.output is not None:
            return FailingCase(case, outcome.output)
        failure = failure or outcome.failure
    raise ActivationsUnavailable(failure or "the graph is right on every case before it is optimized")


@dataclass(frozen=True)
class _Outcome:
    """The worst output of a run, None if all are right, and why the graph does not run on the case, if so."""

    output: str | None
    failure: str = ""


def _find_wrong_output(backend: OnnxBackend, graph: GraphModel, case: ReferenceCase) -> _Outcome:
    graph.budget.check()
    try:
        with onnx_activations.limit_run(graph.budget) as run_options:
            actual = backend.run(case.inputs, run_options)
    except OutOfTime:
        raise
    except Exception as error:  # noqa: BLE001 (the graph does not run: reported if it is wrong on no other case)
        return _Outcome(None, f"case {case.name}: onnxruntime: {get_error_line(error, graph.folder)}")
    return _Outcome(_find_worst_output(case, actual))


def localize(reference: Activations, suspect: GraphActivations, failing: FailingCase) -> FaultyNode:
    """Find the first node at fault on a case; both runs must be of that case.

    Raises `ActivationsUnavailable` if there is none: the output does not depend on the inputs, or is right as long as
    onnxruntime does not optimize the graph. Raises `OutOfTime`, with the values of which one is the first wrong one,
    unless a node is certain by then.
    """
    index = suspect.activations.outputs.get(failing.output)
    actual = None if index is None else suspect.activations.values[index].array
    if actual is None:
        raise ActivationsUnavailable(f"the output {failing.output} does not depend on the inputs")
    if _find_worst_output(failing.reference_case, {failing.output: actual}) is None:
        raise ActivationsUnavailable(
            "run node by node, the graph is right on this case: it goes wrong when onnxruntime optimizes it"
        )
    faults: list[FaultyNode] = []
    for number, rule in enumerate(MATCH_RULES, start=1):
        try:
            suspect.graph.budget.report(f"comparison {number}")
            faults.append(_localize_by_rule(reference, suspect, failing, rule))
        except OutOfTime as stop:
            if any(fault.is_certain for fault in faults):
                break
            earlier = tuple(index for fault in faults[:1] for index in fault.divergence.path)
            raise OutOfTime(stop.suspects or earlier or tuple(range(len(suspect.activations.values)))) from None
        if faults[-1].is_certain and len(faults[-1].nodes) <= 1:
            break
    return min(faults, key=lambda fault: (not fault.reproduces, not fault.divergence.confirmed, len(fault.nodes)))


def _localize_by_rule(
    reference: Activations, suspect: GraphActivations, failing: FailingCase, rule: MatchRule
) -> FaultyNode:
    values = suspect.activations.values
    budget = suspect.graph.budget
    divergence = find_divergence(reference, suspect.activations, failing.output, suspect.substitute, rule, budget)
    if divergence is None:
        raise ActivationsUnavailable(f"PyTorch does not compute the output {failing.output} from the inputs")
    expected = reference.values[divergence.expected_index]
    if expected.array is None:
        raise ActivationsUnavailable(f"numpy has no dtype for the output of {expected.operator}")
    inputs, input_error = {}, 0.0
    for index, match in divergence.matched_inputs.items():
        array = reference.values[match].array
        assert array is not None
        inputs[values[index].name] = array
        metrics = compare_activation(reference.values[match], values[index].array)
        input_error = max(input_error, metrics.error_over_limit if metrics is not None else math.inf)
    output = values[divergence.suspect_index].name
    subgraph = onnx_activations.extract_subgraph(suspect.graph, inputs, output, expected.array)
    try:
        actual = onnx_activations.run_subgraph(suspect.graph, subgraph, inputs)
    except OutOfTime:
        raise OutOfTime(divergence.path) from None
    nodes = {id(node): node for node in (suspect.nodes[index] for index in divergence.path) if node is not None}
    return FaultyNode(
        divergence=divergence,
        nodes=tuple(nodes.values()),
        operations=_find_operations(reference, divergence),
        subgraph=subgraph,
        subgraph_inputs={value.name: inputs[value.name] for value in subgraph.graph.input},
        actual=actual,
        expected=expected.array,
        metrics=compare_activation(expected, actual),
        input_error=input_error,
    )


def _find_operations(reference: Activations, divergence: Divergence) -> tuple[Activation, ...]:
    """Find the reference's values from the matched inputs of a divergence to the expected value, in order."""
    if divergence.next_index is not None:
        return (reference.values[divergence.next_index],)
    operations: set[int] = set()
    waiting, matched = [divergence.expected_index], set(divergence.matched_inputs.values())
    while waiting:
        index = waiting.pop()
        if index not in operations and reference.values[index].operator != INPUT_OPERATOR:
            operations.add(index)
            waiting.extend(read for read in reference.values[index].input_indices if read not in matched)
    return tuple(reference.values[index] for index in sorted(operations))


def describe_fault(fault: FaultyNode, reference: Activations, suspect: GraphActivations, whose: str) -> list[str]:
    """Describe a fault in two clauses: where it is and how large. `whose` values are the reference: "PyTorch's"."""
    expected = f"{whose} {_describe_operation(fault, reference)}"
    if fault.divergence.is_missing:
        readers = [node for node in (suspect.nodes[index] for index in fault.divergence.readers) if node is not None]
        reader = describe_node(readers[0]) if readers else "the output"
        return [f"first wrong: the graph lacks {expected}", f"{reader} reads the value from before that operation"]
    others = len(fault.nodes) - 1
    more = f" and the {others} nodes before it" if others > 1 else " and the node before it" if others else ""
    text = f"first wrong: {describe_node(fault.nodes[-1])}{more}"
    text += f", on top of {expected}" if fault.divergence.is_extra else f", for {expected}"
    if not fault.reproduces:
        return [text, f"computed from {whose} values it is right: no single node is at fault, rounding errors add up"]
    return [text, f"its inputs agree within {fault.input_error:.2g} of the tolerance, but {_describe_error(fault)}"]


def _describe_operation(fault: FaultyNode, reference: Activations) -> str:
    """Name the reference's operator with its module and line, or the module around all operations in question."""
    value = reference.values[fault.reference_index]
    if fault.is_certain:
        module = f" in module {value.module}" if value.module else ""
        return f"{value.operator}{module}" + (f", {value.source_line}" if value.source_line else "")
    paths = [(operation.module or "").split(".") for operation in fault.operations]
    module = ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
    others = len(fault.operations) - 1
    more = f" and the {others} operations before it" if others > 1 else " and the operation before it" if others else ""
    return f"{value.operator}{more}" + (f" in module {module}" if module else "")


def describe_node(node: onnx.NodeProto) -> str:
    """Return `node /model/layer/Gemm (Gemm)`."""
    return f"node {node.name or node.output[0]} ({node.op_type})"


def _describe_error(fault: FaultyNode) -> str:
    metrics, expected, actual = fault.metrics, fault.expected, fault.actual
    if metrics is None or metrics.worst is None:
        return f"its output is {actual.dtype}{list(actual.shape)}, expected {expected.dtype}{list(expected.shape)}"
    index = ", ".join(map(str, metrics.worst.index))
    ratio = f", {metrics.error_over_limit:.3g} times the limit" if math.isfinite(metrics.error_over_limit) else ""
    return f"its output[{index}] is {metrics.worst.actual!r}, expected {metrics.worst.expected!r}{ratio}"


def _rank_case(case: ReferenceCase) -> tuple[int, bool, int, int]:
    """Return a key that sorts cheap cases first, and among the small ones those last where many values match by chance.

    Those are cases with constant inputs, or with many dims of size 1 or 2.
    """
    elements = _count_elements(case)
    arrays = list(case.inputs.values())
    constant = all(array.size > 1 and bool(np.all(array == array.flat[0])) for array in arrays)
    small_dims = sum(array.shape.count(1) + array.shape.count(2) for array in arrays)
    return (0 if elements <= _SMALL_CASE_ELEMENTS else elements), constant, small_dims, elements


def _rank_cost(case: ReferenceCase) -> tuple[bool, int]:
    """Return a key that sorts cheap cases first, and empty ones, which show nothing, last."""
    elements = _count_elements(case)
    return elements == 0, elements


def _count_elements(case: ReferenceCase) -> int:
    return sum(array.size for array in case.inputs.values())


def _find_worst_output(case: ReferenceCase, actual: Mapping[str, Array]) -> str | None:
    """Find the output that exceeds its tolerance by the largest factor; None if none does."""
    errors: dict[str, float] = {}
    for name, array in actual.items():
        try:
            metrics = compare(case.outputs[name], array, case.tolerances[name])
        except ShapesDiffer:
            errors[name] = math.inf
        else:
            errors[name] = metrics.error_over_limit if metrics.mismatched_nonfinite == 0 else math.inf
    wrong = [name for name, error in errors.items() if error > 1.0]
    # Floats first: an exact output, such as an index, is either right or infinitely wrong, and tells less.
    return max(wrong, key=lambda name: (actual[name].dtype.kind in "fc", errors[name]), default=None)


def _to_relative_tolerance(expected: Array, tolerance: ElementTolerance) -> float:
    scale = measure_typical_magnitude(expected)
    return max(tolerance.rtol, tolerance.atol / scale if scale > 0 else 0.0)


def describe_broken_pass(good: GraphModel, bad: onnx.ModelProto, reference_cases: Sequence[ReferenceCase]) -> str:
    """Describe what a pass broke: `good` is the graph before it, `bad` the one after; weights are in one folder.

    The text is recorded in the bundle, so it must not depend on the clock: activations are limited instead of time.
    """
    try:
        suspect = GraphModel(bad, good.folder, good.providers, max_bytes=_MAX_PASS_BYTES)
        failing = find_failing_case(suspect, reference_cases)
        before = onnx_activations.record_graph(
            replace(good, max_bytes=_MAX_PASS_BYTES), failing.reference_case.inputs
        ).activations
        reference = before.with_tolerances([failing.relative_tolerance] * len(before.values))
        after = onnx_activations.record_graph(suspect, failing.reference_case.inputs)
        fault = localize(reference, after, failing)
        return "; ".join(describe_fault(fault, reference, after, "the earlier graph's"))
    except ActivationsUnavailable as error:
        return f"the fault could not be localized: {error}"
