"""An exported graph that is not proven → what it does wrong, in a line, with the user's module and line, and `repro/`.

The reference is the eager module itself, operator by operator, on the case that fails. So the first operation that
the graph gets wrong is known as PyTorch's operator in the user's code, and as the nodes that the exporter made of it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from packager.common.array_files import Array
from packager.export.graph import io
from packager.export.graph.messages import ExportedGraph
from packager.model.inputs import bind_inputs
from packager.parity.cases import generators
from packager.parity.diagnosis import localize, onnx_activations, repro, torch_activations
from packager.parity.diagnosis.activations import Activations, ActivationsUnavailable
from packager.parity.diagnosis.onnx_activations import GraphModel
from packager.parity.numerics.tolerances import NOISE_MULTIPLE
from packager.parity.numerics.verdict import ReferenceCase
from packager.project.manifest import ExplicitTolerance, Project

_MAX_TOLERANCE_SHARE = 0.25  # of a value's own size: where more is allowed, nothing can be told apart


@dataclass(frozen=True)
class ReproTarget:
    """Where `repro/NAME-VERSION` is written, and what it is called when it is spoken of."""

    folder: Path
    displayed: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a sentence, the user's line where it is known, `model.py:41`, and whether a folder shows it."""

    text: str
    location: str | None = None
    has_repro: bool = False


def diagnose(
    project: Project,
    module: torch.nn.Module,
    raw: ExportedGraph,
    reference_cases: Sequence[ReferenceCase],
    target: ReproTarget | None,
) -> Diagnosis:
    """What the exported graph does wrong; the folder that shows it is written to `place`, where one is given."""
    graph = GraphModel(io.load_graph(raw), raw.path.parent, project.manifest.target.providers)
    try:
        wrong = localize.find_smallest_failing_case(graph, reference_cases)
        inputs = wrong.reference_case.inputs
        tensors = dict(zip(inputs, bind_inputs(project, list(inputs.values())), strict=True))
        eager = torch_activations.ModuleCall(module, tensors, project.manifest.outputs, project.folder)
        flow, called = torch_activations.record_module(eager, onnx_activations.MAX_ACTIVATION_BYTES)
        reference = flow.with_tolerances(_measure_tolerances(project, eager, flow, wrong))
        suspect = onnx_activations.record_graph(graph, inputs)
        found = localize.localize(reference, suspect, wrong)
    except ActivationsUnavailable as why:
        return Diagnosis(f"where it goes wrong was not found: {why}")
    clauses = localize.describe_fault(found, reference, suspect, "PyTorch's")
    branch = _find_uncalled_module(found.nodes, module, called)
    if branch:
        clauses.append(f"the graph runs {branch}, and the module did not on this case")
    clauses += _find_pitfalls(project, module, inputs)
    shown = False
    if target is not None and found.reproduces:
        shown, said = _write_repro(target, found, graph)
        clauses.append(said)
    return Diagnosis("\n".join(clauses), reference.values[found.reference_index].source_line, shown)


def _measure_tolerances(
    project: Project, eager: torch_activations.ModuleCall, flow: Activations, wrong: localize.FailingCase
) -> list[float]:
    """What is allowed of each value on the way: measured for each as it is for outputs, unless it is written down."""
    if isinstance(project.manifest.parity.tolerance, ExplicitTolerance):
        return [wrong.relative_tolerance] * len(flow.values)
    noise = torch_activations.measure_activation_noise(eager, flow, 3 * onnx_activations.MAX_ACTIVATION_BYTES)
    found = [
        wrong.relative_tolerance if one is None else min(NOISE_MULTIPLE * one, _MAX_TOLERANCE_SHARE) for one in noise
    ]
    for place in flow.outputs.values():
        found[place] = max(found[place], wrong.relative_tolerance)
    return found


def _write_repro(place: ReproTarget, found: localize.FaultyNode, graph: GraphModel) -> tuple[bool, str]:
    """Write the folder; whether it is there now, and what to say of it."""
    try:
        repro.write_repro(place.folder, found, graph)
    except repro.NotAReproFolder:
        return False, f"{place.displayed} is something else, and was left as it is"
    except OSError as error:
        return False, f"{place.displayed} could not be written: {error.strerror}"
    return True, f"{place.displayed}/{repro.SCRIPT_FILE} shows it"


def _find_uncalled_module(nodes: Sequence[onnx.NodeProto], module: torch.nn.Module, called: frozenset[str]) -> str:
    """The innermost module that these nodes belong to by their exporter's word, if it was not called."""
    known = {name for name, _ in module.named_modules() if name}
    for node in nodes:
        scope = _get_module_scope(node)
        paths = {".".join(scope[start:end]) for start in (0, 1) for end in range(start + 1, len(scope) + 1)}
        within = sorted(paths & known, key=len)
        if within and within[-1] not in called:
            return within[-1]
    return ""


def _find_pitfalls(project: Project, module: torch.nn.Module, inputs: Mapping[str, Array]) -> list[str]:
    """What is known to be defined by PyTorch alone, where this module and this case have to do with it."""
    found = []
    specs = project.manifest.inputs
    zeros = [
        name for name, array in inputs.items() if generators.has_mask([specs[name]]) and array.size and not array.any()
    ]
    if zeros:
        instead = "mask | ~mask.any(-1, keepdim=True) in forward() attends to all instead"
        found.append(f"{zeros[0]} is all zeros there, attention over nothing: {instead}")
    nested = torch.backends.mha.get_fastpath_enabled()
    if nested and any(getattr(one, "use_nested_tensor", False) for one in module.modules()):
        found.append("nn.TransformerEncoder zeroes what is padded; with enable_nested_tensor=False it does not")
    return found


def _get_module_scope(node: onnx.NodeProto) -> list[str]:
    """The modules around a node, outermost first: `/model/left/Gemm`, or as torch.export notes it beside the node."""
    metadata: Mapping[str, str] = {one.key: one.value for one in node.metadata_props}
    noted = metadata.get("pkg.torch.onnx.name_scopes")
    if noted is None:
        return node.name.split("/")[1:-1]
    scopes = [str(one) for one in ast.literal_eval(noted)]
    return scopes[-2].split(".") if len(scopes) > 1 else []
