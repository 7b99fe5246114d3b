"""The eager module → ONNX, by either of torch's exporters.

`from_torchscript` converts the program that the fallback needs anyway, so the module is not run a
second time; `from_torch_export` traces anew with torch.export. Measured on 47 small architectures,
the first was right on 44 (median 0.3 s) and the second on 42 (median 7 s), one or the other on 45,
and each failed on different models. So `auto` starts with the first and falls to the second where
the graph of the first is not proven; torch.jit is deprecated, so both stay first class.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packager.export import weights
from packager.export.exporters import FlatOutputs, to_exporter_failed
from packager.export.graph.messages import ExportedGraph
from packager.export.torchscript import TorchScriptProgram
from packager.project.manifest import DimLimits, Project

_INLINE_BYTES = 1 << 30  # beyond this the exporter's file keeps the weights beside it; protobuf ends at 2 GiB


@dataclass(frozen=True)
class TensorNames:
    """The tensors' names in the graph, in order."""

    inputs: Sequence[str]
    outputs: Sequence[str]


def export_from_torchscript(
    project: Project, program: TorchScriptProgram, names: TensorNames, inputs: tuple[torch.Tensor, ...], path: Path
) -> ExportedGraph:
    """Convert a traced or scripted program: the graph to `path`, the weights beside it. Raises `ExporterFailed`."""
    axes = {
        name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for name, spec in project.manifest.inputs.items()
    }
    # The exporter runs the program once to see its outputs: without the optimizer, which would cost more than it.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # torch's stubs
        try:
            torch.onnx.export(
                _get_exportable_module(program),
                inputs,
                path,
                dynamo=False,
                input_names=list(names.inputs),
                output_names=list(names.outputs),
                dynamic_axes={name: named for name, named in axes.items() if named},
                opset_version=project.manifest.export.opset,
                export_params=False,
                do_constant_folding=False,
            )
        except OSError:
            raise  # the disk's trouble, and not the exporter's
        except Exception as error:
            raise to_exporter_failed(error, project.folder, _format_source_ranges(program, error)) from error
    return ExportedGraph(
        path, weights.write_weights(program.module.state_dict(), path.with_name(path.name + ".weights"))
    )


def export_with_torch_export(
    project: Project, module: torch.nn.Module, names: TensorNames, inputs: tuple[torch.Tensor, ...], path: Path
) -> ExportedGraph:
    """Trace the module with torch.export and write the graph to `path`. Raises `ExporterFailed`."""
    dims = {name: _make_dynamic_dim(name, limit) for name, limit in project.manifest.dim_limits().items()}
    weight_bytes = sum(one.numel() * one.element_size() for one in module.state_dict().values())
    # It reports its progress on the one, and on the other half of the graph where it fails.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            program = torch.onnx.export(
                FlatOutputs(module, project.manifest.outputs).eval(),
                inputs,
                dynamo=True,
                input_names=list(names.inputs),
                output_names=list(names.outputs),
                dynamic_shapes={"inputs": _dynamic_shapes(project, dims)},
                opset_version=project.manifest.export.opset,
                verbose=False,
            )
            if program is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            made, wanted = program.model.opset_imports.get(""), project.manifest.export.opset
            if made != wanted:  # where it cannot convert the graph, it warns and keeps its own opset
                raise RuntimeError(f"it makes opset {made} of this model, and export.opset is {wanted}")
            _rename_clashing_values(program.model.graph)
            program.save(str(path), external_data=weight_bytes > _INLINE_BYTES)
        except OSError:
            raise  # the disk's trouble, and not the exporter's
        except Exception as error:
            raise to_exporter_failed(_get_root_cause(error), project.folder) from error
    return ExportedGraph(path)


def _rename_clashing_values(graph: Any) -> None:
    """Rename the inner values that are called like an input or an output: the exporter does not look for that."""
    from onnx_ir.traversal import RecursiveGraphIterator

    taken = {one.name for one in (*graph.inputs, *graph.outputs)}
    outputs = {id(one) for one in graph.outputs}
    for node in RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in taken and id(value) not in outputs:
                value.name = f"{value.name}/inner"


def _get_exportable_module(program: TorchScriptProgram) -> torch.jit.ScriptModule:
    """What the exporter may have: it rewrites a program's functions in place, for good.

    Those of a trace are its own. A script shares its functions with every other script of the process, and
    the fallback may be saved from them at this moment, so of a script it gets a copy.
    """
    if program.method == "trace":
        return program.module
    content = io.BytesIO()
    torch.jit.save(program.module, content)
    content.seek(0)
    copy: torch.jit.ScriptModule = torch.jit.load(content)  # type: ignore[no-untyped-call]  # torch's stubs
    return copy


def _format_source_ranges(program: TorchScriptProgram, error: Exception) -> str:
    """Where the operators that an error names come from, as TorchScript remembers it, the innermost call last."""
    graph: Any = program.module.inlined_graph
    named = dict.fromkeys(re.findall(r"\w+::\w+", str(error)))
    ranges = [node.sourceRange() for kind in named for node in graph.findAllNodes(kind)]
    return "\n".join("\n".join(reversed(one.splitlines())) for one in ranges)


def _make_dynamic_dim(name: str, limit: DimLimits) -> Any:
    """A dynamic dim. torch knows none of one size only: that one may be one larger, which nobody is told."""
    most = limit.max if limit.max is None else max(limit.max, limit.min + 1)
    return torch.export.Dim(name, min=limit.min, max=most)


def _dynamic_shapes(project: Project, dims: Mapping[str, Any]) -> tuple[dict[int, Any], ...]:
    return tuple(
        {axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in project.manifest.inputs.values()
    )


def _get_root_cause(error: Exception) -> BaseException:
    """torch.onnx wraps what torch.export said in advice; what was said first is the cause."""
    found: BaseException = error
    while found.__cause__ is not None:
        found = found.__cause__
    return found
