"""Export the eager module to ONNX, with either of torch's exporters.

`export_from_torchscript` converts the program that the TorchScript fallback needs anyway, so the module is not run a
second time. `export_with_torch_export` traces the module again, with torch.export. Measured on 47 small
architectures, the first was right on 44 (median 0.3 s), the second on 42 (median 7 s), at least one of them on 45, and
they failed on different models. So `auto` starts with the first and falls back to the second if the first graph is not
proven. torch.jit is deprecated, so both stay first class.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packager.export import exported_program, weights
from packager.export.complex_numbers import RealArithmetic, has_complex_numbers
from packager.export.decompositions import (
    decompose,
    improve_symbolics,
    promote_concatenations,
    retry_with_decompositions,
)
from packager.export.exporters import (
    ExporterFailed,
    FlatOutputs,
    disable_attention_fast_path,
    retry_with_plain_is_causal,
    speed_up_rewriting,
    to_exporter_failed,
)
from packager.export.graph.messages import ExportedGraph
from packager.export.masked_attention import zero_hidden_rows
from packager.export.torchscript import TorchScriptProgram
from packager.project.manifest import DimLimits, Project

_INLINE_BYTES = 1 << 30  # more bytes of weights go into a file beside the graph; protobuf ends at 2 GiB


@dataclass(frozen=True)
class TensorNames:
    """The names of a graph's inputs and outputs, in order."""

    inputs: Sequence[str]
    outputs: Sequence[str]


def export_from_torchscript(
    project: Project, program: TorchScriptProgram, names: TensorNames, inputs: tuple[torch.Tensor, ...], path: Path
) -> ExportedGraph:
    """Convert a traced or scripted program; write the graph to `path` and its weights to `path` + ".weights".

    `inputs` are the arguments of an example call, in the manifest's order. Raises `ExporterFailed`, and OSError if the
    files cannot be written.
    """
    try:
        with improve_symbolics():
            _run_torchscript_exporter(project, _get_exportable_module(program), names, inputs, path)
    except OSError:
        raise  # the disk failed, not the exporter
    except Exception as error:
        raise to_exporter_failed(error, project.folder, _format_source_ranges(program, error)) from error
    return _write_weights(program.module, path)


def export_from_module(
    project: Project, module: torch.nn.Module, names: TensorNames, inputs: tuple[torch.Tensor, ...], path: Path
) -> ExportedGraph:
    """Trace the module for the TorchScript exporter; write the graph to `path`, its weights to `path` + ".weights".

    `inputs` are the arguments of an example call, in the manifest's order. Raises `ExporterFailed`, and OSError if the
    files cannot be written.
    """
    flat = FlatOutputs(module, project.manifest.outputs).eval()
    try:
        with disable_attention_fast_path():
            retry_with_plain_is_causal(
                lambda: retry_with_decompositions(lambda: _run_torchscript_exporter(project, flat, names, inputs, path))
            )
    except OSError:
        raise  # the disk failed, not the exporter
    except Exception as error:
        raise to_exporter_failed(error, project.folder) from error
    return _write_weights(flat, path)


def _run_torchscript_exporter(
    project: Project, module: torch.nn.Module, names: TensorNames, inputs: tuple[torch.Tensor, ...], path: Path
) -> None:
    axes = {
        name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for name, spec in project.manifest.inputs.items()
    }
    # The exporter runs the program once to see its outputs; optimizing it first would take longer than the run.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # torch's stubs
        torch.onnx.export(
            module,
            inputs,
            path,
            dynamo=False,
            input_names=list(names.inputs),
            output_names=list(names.outputs),
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
            opset_version=project.manifest.export.opset,
            export_params=False,
            do_constant_folding=False,
        )


def _write_weights(module: torch.nn.Module, path: Path) -> ExportedGraph:
    return ExportedGraph(path, weights.write_weights(module.state_dict(), path.with_name(path.name + ".weights")))


def export_with_torch_export(
    project: Project,
    module: torch.nn.Module,
    make_program: Callable[[], torch.export.ExportedProgram],
    names: TensorNames,
    inputs: tuple[torch.Tensor, ...],
    path: Path,
) -> ExportedGraph:
    """Write the graph of a program of torch.export, weights included, to `path`.

    `make_program` does what `exported_program.export` does with the module, and is called once. `inputs` are the
    arguments of an example call, in the manifest's order. Raises `ExporterFailed`, and OSError if the file cannot be
    written.
    """
    # It prints its progress to stdout, and half of the graph to stderr when it fails.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            with disable_attention_fast_path(), speed_up_rewriting():
                program = _run_torch_export(project, module, make_program, names, inputs)
            opset, requested = program.model.opset_imports.get(""), project.manifest.export.opset
            if opset != requested:  # if it cannot convert the graph, it warns and keeps its own opset
                raise RuntimeError(f"this model exports with opset {opset}, but export.opset is {requested}")
            _rename_clashing_values(program.model.graph)
            program.save(str(path), external_data=weights.count_bytes(module) > _INLINE_BYTES)
        except (OSError, ExporterFailed):
            raise  # the disk failed, not the exporter; or the cause is known
        except Exception as error:
            raise to_exporter_failed(_get_root_cause(error), project.folder) from error
    return ExportedGraph(path)


def _run_torch_export(
    project: Project,
    module: torch.nn.Module,
    make_program: Callable[[], torch.export.ExportedProgram],
    names: TensorNames,
    inputs: tuple[torch.Tensor, ...],
) -> torch.onnx.ONNXProgram:
    """Export a module; if an operator has no equal in ONNX, again with those decomposed that packager can write.

    torch.onnx gets the program of `make_program`, which keeps dims that torch.onnx would fix. Only if there
    is none, because a branch divides the sizes of a dim for instance, does torch.onnx capture the module in its own
    ways; the control flow that this fixes is reported like that of a trace.
    """

    def convert(program: torch.export.ExportedProgram | torch.nn.Module) -> torch.onnx.ONNXProgram:
        converted = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            input_names=list(names.inputs),
            output_names=list(names.outputs),
            dynamic_shapes={"inputs": _make_dynamic_shapes(project)},
            opset_version=project.manifest.export.opset,
            verbose=False,
        )
        if converted is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        return converted

    try:
        program = make_program()
    except ExporterFailed as failure:
        try:
            return convert(FlatOutputs(module, project.manifest.outputs).eval())
        except Exception:  # noqa: BLE001 (torch.onnx wraps whatever forward() raises; the first cause is the clearer one)
            raise failure from None
    program = zero_hidden_rows(promote_concatenations(_replace_complex_numbers(project, program, inputs)))
    try:
        return convert(program)
    except torch.onnx.OnnxExporterError as error:
        if not str(_get_root_cause(error)).startswith("No ONNX function found for"):
            raise
        try:
            return convert(decompose(program))
        except Exception:  # noqa: BLE001 (whatever goes wrong with the replacements, the cause is what they were for)
            raise error from error.__cause__


def _replace_complex_numbers(
    project: Project, program: torch.export.ExportedProgram, inputs: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    """Return a program of real numbers; the given one if it is that, or if an operator has no rule for its parts."""
    if not has_complex_numbers(program):
        return program
    try:
        return exported_program.export_flat(project, RealArithmetic(program), inputs)
    except ExporterFailed:
        return program  # the exporter has some functions of complex numbers itself


def _rename_clashing_values(graph: Any) -> None:
    """Rename inner values that have the name of an input or an output: the exporter does not check for that."""
    from onnx_ir.traversal import RecursiveGraphIterator

    reserved = {value.name for value in (*graph.inputs, *graph.outputs)}
    outputs = {id(value) for value in graph.outputs}
    for node in RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in reserved and id(value) not in outputs:
                value.name = f"{value.name}/inner"


def _get_exportable_module(program: TorchScriptProgram) -> torch.jit.ScriptModule:
    """Return a module that the exporter may change: it rewrites a program's functions in place.

    A trace owns its functions. A script shares them with every other script of the process, and the fallback may be
    saved from them at this very moment, so a script is copied.
    """
    if program.method == "trace":
        return program.module
    content = io.BytesIO()
    torch.jit.save(program.module, content)
    content.seek(0)
    copy: torch.jit.ScriptModule = torch.jit.load(content)  # type: ignore[no-untyped-call]  # torch's stubs
    return copy


def _format_source_ranges(program: TorchScriptProgram, error: Exception) -> str:
    """Format the stacks that TorchScript recorded for the operators that an error names, the innermost call last."""
    graph: Any = program.module.inlined_graph
    kinds = dict.fromkeys(re.findall(r"\w+::\w+", str(error)))
    stacks = [node.sourceRange() for kind in kinds for node in graph.findAllNodes(kind)]
    return "\n".join("\n".join(reversed(stack.splitlines())) for stack in stacks)


def _make_dynamic_dim(name: str, limit: DimLimits) -> Any:
    """Make a dynamic dim; torch rejects one that has a single size, so that one may also be one larger."""
    largest = limit.max if limit.max is None else max(limit.max, limit.min + 1)
    return torch.export.Dim(name, min=limit.min, max=largest)


def _make_dynamic_shapes(project: Project) -> tuple[dict[int, Any], ...]:
    dims = {name: _make_dynamic_dim(name, limit) for name, limit in project.manifest.dim_limits().items()}
    return tuple(
        {axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in project.manifest.inputs.values()
    )


def _get_root_cause(error: Exception) -> BaseException:
    """Return the first error of a chain: torch.onnx wraps the one of torch.export in advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return cause
