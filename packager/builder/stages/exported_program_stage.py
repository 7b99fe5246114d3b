"""TORCHSCRIPT, continued: an exported program as the fallback, where no form of TorchScript passes.

The module is exported with torch.export, saved, read back from the staged bundle, and checked on every case.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import ArtifactResult, FallbackResult, LeftOut, describe_left_out
from packager.builder.stages.second_check import check_twice
from packager.bundle import layout, records
from packager.common import process_memory
from packager.export import exported_program
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import StageRecord
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.parity.results import Reference
from packager.runtime.check import check_exported_program

_FORM = "exported program"


def ship(
    context: BuildContext,
    model: EagerModel,
    reference: Reference,
    left_out: tuple[LeftOut, ...],
    stages: tuple[StageRecord, ...],
) -> FallbackResult:
    """Put an exported program into the staged bundle if it passes; otherwise ship no fallback, and say why.

    `left_out` and `stages` are the forms of TorchScript that were tried before.
    """
    project, path, note = context.project, context.scratch / layout.EXPORTED_PROGRAM, context.reporter.report_note
    try:
        exported_program.save(make_program(context, model), path, project.folder)
    except ExporterFailed as error:
        failure = LeftOut("torch-export", _FORM, "not-checked", error.cause, error.where)
    else:
        sha256 = context.writer.move_file(layout.EXPORTED_PROGRAM, path)
        parity = check_staged(context, model, reference)
        if parity.passed:
            note(
                f"the fallback is an exported program, because TorchScript cannot be had: {describe_left_out(left_out)}"
            )
            artifact = records.ExportedProgramArtifact(path=layout.EXPORTED_PROGRAM, sha256=sha256)
            kept = (*stages, StageRecord(f"torch-export: {_FORM}", True, "pass", "", 0, 0, 0, 0, None))
            return ArtifactResult(artifact, parity, kept, left_out=left_out)
        context.writer.remove_file(layout.EXPORTED_PROGRAM)
        failure = LeftOut("torch-export", _FORM, "fail" if parity.loaded else "not-checked", parity.reason)
    left_out = (*left_out, failure)
    stages = (
        *stages,
        StageRecord(f"torch-export: {_FORM}", False, failure.verdict, failure.reason, 0, 0, 0, 0, None),
    )
    return ArtifactResult(None, None, stages, left_out=left_out)


def make_program(context: BuildContext, model: EagerModel) -> ExportedProgram:
    """Export the module with torch.export, once per build: the fallback and the ONNX graph are made of one program.

    Raises `ExporterFailed`, each time if it failed once.
    """
    if not context.exported_programs:
        try:
            program = exported_program.export(context.project, model.loaded.pristine_copy(), model.example)
        except ExporterFailed as error:
            context.exported_programs.append(ExporterFailed(error.cause, error.where))  # without the frames of the call
        else:
            context.exported_programs.append(program)
    outcome = context.exported_programs[0]
    if isinstance(outcome, ExporterFailed):
        raise outcome
    return outcome


def check_staged(context: BuildContext, model: EagerModel, reference: Reference) -> ParityResult:
    """Check the exported program in the staged bundle on every case."""

    def check(reference_cases: Sequence[ReferenceCase]) -> ParityResult:
        return check_exported_program(
            context.writer.folder / layout.EXPORTED_PROGRAM,
            reference_cases,
            inputs=[(spec.name, spec.dtype) for spec in model.inputs],
            outputs=reference.names,
        )

    parity = check_twice(context, model, reference, check)
    process_memory.release_memory()
    return parity
