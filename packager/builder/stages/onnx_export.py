"""EXPORT: the module, or the TorchScript program made from it, as an ONNX graph that the worker has yet to optimize."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from packager.builder.context import BuildContext, EagerModel
from packager.builder.stages import exported_program_stage
from packager.builder.stages.torchscript_stage import TracedModel
from packager.bundle import layout
from packager.export import control_flow, torchscript
from packager.export import onnx as exporters
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import OptimizeJob
from packager.export.torchscript import TorchScriptProgram
from packager.project.manifest import Project

Exporter = Literal["program", "module", "torch-export", "script", "larger"]
FROM_TRACE, FROM_MODULE = "torchscript, from the trace", "torchscript, from the module"
FROM_SCRIPT, FROM_LARGER = "torchscript, from the script", "torchscript, from a trace at larger sizes"


@dataclass(frozen=True)
class Candidate:
    """An exported graph as a job for the worker, or why the exporter failed."""

    exporter: str
    job: OptimizeJob | None = None
    failure: ExporterFailed | None = None
    specialized: SpecializedControlFlow = field(default_factory=SpecializedControlFlow)


def list_exporters(project: Project, program: TorchScriptProgram | None) -> tuple[Exporter, ...]:
    """Return the exporters in the order in which they are tried.

    The module comes after its trace, because the TorchScript exporter takes more of a module than of a trace of it. The
    script comes last, for a trace that could be exported and is wrong. Whether the fallback ships that trace makes no
    difference, so a build that has the fallback from the cache takes the same path.
    """
    exporter, method = project.manifest.export.exporter, project.manifest.torchscript.method
    order: list[Exporter] = []
    if exporter != "torch-export":
        order += ["program"] if program is not None else []
        order += ["module"] if method != "script" else []  # that asks for branches, which a trace of the module loses
    if exporter != "torchscript":
        order.append("torch-export")
    if exporter != "torch-export" and program is not None and program.method == "trace" and method == "auto":
        order.append("script")
    return tuple(order)


def export(context: BuildContext, model: EagerModel, traced: TracedModel, exporter: Exporter) -> Candidate:
    """Export the module with one exporter; the worker checks every pass on the probe.

    For "larger", the program of `traced` is a trace that was made at larger sizes than those of the example.
    """
    project, loaded, program = context.project, model.loaded, traced.program
    label = "torch-export"
    try:
        if exporter == "torch-export":
            make_program = partial(exported_program_stage.make_program, context, model)
            write = partial(exporters.export_with_torch_export, project, loaded.pristine_copy(), make_program)
        elif exporter == "module":
            label = FROM_MODULE
            write = partial(exporters.export_from_module, project, loaded.pristine_copy())
        else:
            traces = exporter in ("program", "larger") and program is not None and program.method == "trace"
            label = FROM_LARGER if exporter == "larger" else FROM_TRACE if traces else FROM_SCRIPT
            if exporter == "script" or program is None:
                program = torchscript.script(loaded.pristine_copy(), project.folder)
            write = partial(exporters.export_from_torchscript, project, program)
        names = exporters.TensorNames([spec.name for spec in model.inputs], [spec.name for spec in model.outputs])
        folder = context.scratch / label.replace(", ", "-").replace(" ", "-")
        folder.mkdir(exist_ok=True)
        fixed = None
        if exporter == "module" and (program is None or program.method == "script"):
            with control_flow.record_control_flow() as get_control_flow:
                exported = write(names, model.example, folder / "raw.onnx")
            fixed = get_control_flow({})  # every slice counts: there is no traced graph to ask
        else:
            exported = write(names, model.example, folder / "raw.onnx")
    except ExporterFailed as error:
        return Candidate(label, failure=error)
    job = OptimizeJob(
        exported=exported,
        output_path=folder / layout.ONNX,
        simplify=project.manifest.optimize.simplify,
        level=project.manifest.optimize.level,
        inputs={spec.name: [dim for dim in spec.shape if dim is not None] for spec in model.inputs},
        outputs={spec.name: list(spec.shape) for spec in model.outputs},
        providers=project.manifest.target.providers,
        skipped_passes={},
        reference_cases=traced.probe,
    )
    return Candidate(label, job, specialized=fixed or _find_specialized(context, model, program, exporter))


def _find_specialized(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram | None, exporter: Exporter
) -> SpecializedControlFlow:
    """Return the control flow that the exporter fixed; torch.export does not say, and fixes whatever a trace does.

    It keeps the sizes that forward() rounds, though, so their lines are found in a trace that keeps them as well.
    """
    if program is not None and (exporter != "torch-export" or program.method == "trace"):
        traced = program
    else:
        fixed = _trace(context, model, keep_rounded_sizes=False)
        if fixed is None:
            return SpecializedControlFlow(undetected=True)
        traced = fixed
    is_rounded = exporter == "torch-export" and traced.fixes_rounded_sizes
    kept = _trace(context, model, keep_rounded_sizes=True) if is_rounded else None
    rounded = () if kept is None else kept.specialized.rounded_size_lines
    return traced.specialized.merge(SpecializedControlFlow(rounded_size_lines=rounded))


def _trace(context: BuildContext, model: EagerModel, *, keep_rounded_sizes: bool) -> TorchScriptProgram | None:
    """Trace the module to see its control flow; None if it cannot be traced."""
    module, names, folder = model.loaded.pristine_copy(), context.project.manifest.outputs, context.project.folder
    try:
        return torchscript.trace(module, names, model.example, folder, keep_rounded_sizes=keep_rounded_sizes)
    except ExporterFailed:
        return None
