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
from packager.export.graph.messages import Raw
from packager.model.loader import bind
from packager.parity.cases import generators
from packager.parity.diagnosis import localize, onnx_activations, repro, torch_activations
from packager.parity.diagnosis.activations import Flow, NotSeen
from packager.parity.diagnosis.onnx_activations import Graph
from packager.parity.numerics.tolerances import MULTIPLE
from packager.parity.numerics.verdict import Expectation
from packager.project.manifest import Project, Tolerance

_MAX_TOLERANCE_SHARE = 0.25  # of a value's own size: where more is allowed, nothing can be told apart


@dataclass(frozen=True)
class Place:
    """Where `repro/NAME-VERSION` is written, and what it is called when it is spoken of."""

    folder: Path
    shown: str


@dataclass(frozen=True)
class Finding:
    """What was found in a sentence, the user's line where it is known, `model.py:41`, and whether a folder shows it."""

    text: str
    where: str | None = None
    shown: bool = False


def find(
    project: Project, module: torch.nn.Module, raw: Raw, expectations: Sequence[Expectation], place: Place | None
) -> Finding:
    """What the exported graph does wrong; the folder that shows it is written to `place`, where one is given."""
    graph = Graph(io.load(raw), raw.path.parent, project.manifest.target.providers)
    try:
        wrong = localize.smallest_wrong(graph, expectations)
        inputs = wrong.expectation.inputs
        tensors = dict(zip(inputs, bind(project, list(inputs.values())), strict=True))
        eager = torch_activations.Eager(module, tensors, project.manifest.outputs, project.folder)
        flow, called = torch_activations.run(eager, onnx_activations.MOST_BYTES)
        reference = flow.within(_measure_tolerances(project, eager, flow, wrong))
        suspect = onnx_activations.run(graph, inputs)
        found = localize.locate(reference, suspect, wrong)
    except NotSeen as why:
        return Finding(f"where it goes wrong was not found: {why}")
    clauses = localize.say(found, reference, suspect, "PyTorch's")
    branch = _find_uncalled_module(found.nodes, module, called)
    if branch:
        clauses.append(f"the graph runs {branch}, and the module did not on this case")
    clauses += _find_pitfalls(project, module, inputs)
    shown = False
    if place is not None and found.shows:
        shown, said = _write_repro(place, found, graph)
        clauses.append(said)
    return Finding("\n".join(clauses), reference.values[found.stands_for].place, shown)


def _measure_tolerances(project: Project, eager: torch_activations.Eager, flow: Flow, wrong: localize.Wrong) -> list[float]:
    """What is allowed of each value on the way: measured for each as it is for outputs, unless it is written down."""
    if isinstance(project.manifest.parity.tolerance, Tolerance):
        return [wrong.relative] * len(flow.values)
    noise = torch_activations.noise(eager, flow, 3 * onnx_activations.MOST_BYTES)
    found = [wrong.relative if one is None else min(MULTIPLE * one, _MAX_TOLERANCE_SHARE) for one in noise]
    for place in flow.outputs.values():
        found[place] = max(found[place], wrong.relative)
    return found


def _write_repro(place: Place, found: localize.Located, graph: Graph) -> tuple[bool, str]:
    """Write the folder; whether it is there now, and what to say of it."""
    try:
        repro.write(place.folder, found, graph)
    except repro.NotOurs:
        return False, f"{place.shown} is something else, and was left as it is"
    except OSError as error:
        return False, f"{place.shown} could not be written: {error.strerror}"
    return True, f"{place.shown}/{repro.SHOW} shows it"


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
