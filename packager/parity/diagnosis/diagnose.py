"""Diagnose an exported graph that is wrong: name its first fault with the user's module and line, and write `repro/`.

The reference is the eager module itself, operator by operator, on the case that fails. So the first operation that
the graph gets wrong is named as PyTorch's operator in the user's code, and as the nodes that the exporter made of it.
"""

from __future__ import annotations

import ast
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from packager.export.graph import io
from packager.export.graph.messages import ExportedGraph
from packager.model.inputs import bind_inputs
from packager.parity.diagnosis import localize, onnx_activations, repro, torch_activations
from packager.parity.diagnosis.activations import Activations, ActivationsUnavailable
from packager.parity.diagnosis.budget import UNLIMITED, Budget, OutOfTime
from packager.parity.diagnosis.onnx_activations import GraphActivations, GraphModel
from packager.parity.numerics.tolerances import NOISE_MULTIPLE
from packager.parity.numerics.verdict import ReferenceCase
from packager.project.manifest import ExplicitTolerance, Project

_FLOAT64_COST = 3  # of a run in float64, in runs of the module
_MAX_TOLERANCE_SHARE = 0.25  # of a value's own magnitude; with a larger tolerance, unrelated values match


@dataclass(frozen=True)
class ReproTarget:
    """The folder `repro/NAME-VERSION`, and its path as messages show it."""

    folder: Path
    displayed: str


@dataclass(frozen=True)
class Diagnosis:
    """The fault in a few lines of text, the user's line (`model.py:41`) if known, and whether a repro was written."""

    text: str
    location: str | None = None
    has_repro: bool = False


@dataclass(frozen=True)
class _Runs:
    """The module and the graph on one failing case: their activations, and the modules that were called."""

    failing: localize.FailingCase
    reference: Activations
    suspect: GraphActivations
    called: frozenset[str]


def diagnose(
    project: Project,
    module: torch.nn.Module,
    exported: ExportedGraph,
    reference_cases: Sequence[ReferenceCase],
    target: ReproTarget | None,
    budget: Budget = UNLIMITED,
) -> Diagnosis:
    """Find the first fault of an exported graph on a cheap failing case; write its repro to `target`, if given.

    If the fault cannot be found, or not within the budget, the text says why and what is known. Raises OSError, and
    what the user's module raises.
    """
    model, providers = io.load_graph(exported), project.manifest.target.providers
    graph = GraphModel(model, exported.path.parent, providers, budget)
    try:
        runs = _record_runs(project, module, graph, reference_cases)
    except ActivationsUnavailable as error:
        return Diagnosis(f"the fault could not be localized: {error}")
    except OutOfTime:
        return Diagnosis(_describe_stop(project, budget, f"one of all {len(model.graph.node)}"))
    try:
        fault = localize.localize(runs.reference, runs.suspect, runs.failing)
    except ActivationsUnavailable as error:
        return Diagnosis(f"the fault could not be localized: {error}")
    except OutOfTime as stop:
        suspects = [runs.suspect.nodes[index] for index in stop.suspects]
        return Diagnosis(_describe_stop(project, budget, _describe_suspects(suspects)))
    return _make_diagnosis(module, runs, fault, target)


def _record_runs(
    project: Project, module: torch.nn.Module, graph: GraphModel, reference_cases: Sequence[ReferenceCase]
) -> _Runs:
    """Choose a failing case, and run module and graph on it. Raises `ActivationsUnavailable` or `OutOfTime`."""
    failing, budget = localize.find_failing_case(graph, reference_cases), graph.budget
    inputs = failing.reference_case.inputs
    tensors = dict(zip(inputs, bind_inputs(project, list(inputs.values())), strict=True))
    call = torch_activations.ModuleCall(module, tensors, project.manifest.outputs, project.folder, budget)
    budget.report("module")
    began = time.monotonic()
    activations, called = torch_activations.record_module(call, onnx_activations.MAX_ACTIVATION_BYTES)
    seconds = time.monotonic() - began
    tolerances = [failing.relative_tolerance] * len(activations.values)
    is_explicit = isinstance(project.manifest.parity.tolerance, ExplicitTolerance)
    if not is_explicit and budget.affords(_FLOAT64_COST * seconds):
        budget.report("module in float64")
        tolerances = _measure_tolerances(call, activations, failing)
    budget.report("graph")
    suspect = onnx_activations.record_graph(graph, inputs)
    return _Runs(failing, activations.with_tolerances(tolerances), suspect, called)


def _measure_tolerances(
    call: torch_activations.ModuleCall, activations: Activations, failing: localize.FailingCase
) -> list[float]:
    """Measure the relative tolerance of each value, as for outputs."""
    max_bytes = 3 * onnx_activations.MAX_ACTIVATION_BYTES
    tolerances = [
        failing.relative_tolerance if noise is None else min(NOISE_MULTIPLE * noise, _MAX_TOLERANCE_SHARE)
        for noise in torch_activations.measure_activation_noise(call, activations, max_bytes)
    ]
    for index in activations.outputs.values():
        tolerances[index] = max(tolerances[index], failing.relative_tolerance)
    return tolerances


def _make_diagnosis(
    module: torch.nn.Module,
    runs: _Runs,
    fault: localize.FaultyNode,
    target: ReproTarget | None,
) -> Diagnosis:
    """Describe a fault with the user's line if it is certain, and write its repro. Raises OSError."""
    lines = localize.describe_fault(fault, runs.reference, runs.suspect, "PyTorch's")
    uncalled = _find_uncalled_module(fault.nodes, module, runs.called)
    if uncalled:
        lines.append(f"the graph runs {uncalled}, which the module did not run on this case")
    has_repro = False
    if target is not None and fault.reproduces:
        has_repro, outcome = _write_repro(target, fault, runs.suspect.graph)
        lines.append(outcome)
    line = runs.reference.values[fault.reference_index].source_line if fault.is_certain else None
    return Diagnosis("\n".join(lines), line, has_repro)


def _describe_suspects(suspects: Sequence[onnx.NodeProto | None]) -> str:
    """Return `one of 34, between node … and node …` for nodes in order; None stands for an input."""
    nodes = list({id(node): node for node in suspects if node is not None}.values())
    first, last = (localize.describe_node(node) for node in (nodes[0], nodes[-1]))
    return first if len(nodes) == 1 else f"one of {len(nodes)}, between {first} and {last}"


def _describe_stop(project: Project, budget: Budget, suspects: str) -> str:
    """Say what is known when the time is over, and how to go on: the first wrong node is among the suspects."""
    command = f"package build {shlex.quote(str(project.path))} --diagnose"
    return f"stopped after {budget.seconds:g} s: the first wrong node is {suspects}\nto continue: {command}"


def _write_repro(target: ReproTarget, fault: localize.FaultyNode, graph: GraphModel) -> tuple[bool, str]:
    """Write the folder; return whether it was written, and a line that says so or why not."""
    try:
        repro.write_repro(target.folder, fault, graph)
    except repro.NotAReproFolder:
        return False, f"{target.displayed} is not a repro folder, so it was left as it is"
    except OSError as error:
        return False, f"{target.displayed} could not be written: {error.strerror}"
    return True, f"{target.displayed}/{repro.SCRIPT_FILE} reproduces it"


def _find_uncalled_module(nodes: Sequence[onnx.NodeProto], module: torch.nn.Module, called: frozenset[str]) -> str:
    """Find the innermost module to which the exporter assigns these nodes, if it was not called; empty otherwise."""
    names = {name for name, _ in module.named_modules() if name}
    for node in nodes:
        scope = _get_module_scope(node)
        paths = {".".join(scope[start:end]) for start in (0, 1) for end in range(start + 1, len(scope) + 1)}
        within = sorted(paths & names, key=len)
        if within and within[-1] not in called:
            return within[-1]
    return ""


def _get_module_scope(node: onnx.NodeProto) -> list[str]:
    """List the modules around a node, outermost first: by its name `/model/left/Gemm`, or torch.export's metadata."""
    metadata: Mapping[str, str] = {entry.key: entry.value for entry in node.metadata_props}
    recorded = metadata.get("pkg.torch.onnx.name_scopes")
    if recorded is None:
        return node.name.split("/")[1:-1]
    scopes = [str(scope) for scope in ast.literal_eval(recorded)]
    return scopes[-2].split(".") if len(scopes) > 1 else []
