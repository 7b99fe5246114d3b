"""TRACE and TORCHSCRIPT: the fallback, saved, read back from the staged bundle, and checked.

The fastest form is tried first: batch normalization folded, and optimized for inference when it is loaded. If that
form fails, one step after the other is left out; if the trace itself fails, the module is scripted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import ArtifactResult, CachedResults, TorchScriptResult
from packager.bundle import layout, records
from packager.common import output_tree, process_memory
from packager.errors import ParityFailed, Problem, TorchScriptFailed
from packager.export import torchscript
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import StageRecord, Verdict
from packager.export.torchscript import TorchScriptProgram
from packager.model.inputs import bind_inputs
from packager.parity.noise_variants import to_numpy
from packager.parity.numerics.compare import Array
from packager.parity.numerics.verdict import ParityResult, ReferenceCase, check_parity
from packager.parity.reference import NoiseMeasurement, measure_probe
from packager.parity.results import Reference
from packager.runtime.check import check_torchscript, get_error_line

_MAX_OPTIMIZED_BYTES = 1 << 30
_NO_DIAGNOSIS = (
    "the faulty operation of a TorchScript program is not located; with torchscript.method: none, that of the ONNX "
    "graph is"
)


@dataclass(frozen=True)
class TracedModel:
    """The result of TRACE: the program that both artifacts are made from, and the case that every stage is checked on.

    `program` is None if nothing needs one; `probe` is empty if no case can be compared this early.
    """

    program: TorchScriptProgram | None
    probe: tuple[ReferenceCase, ...]


@dataclass(frozen=True)
class SavedForm:
    """A form of the program on disk, or why it could not be saved."""

    path: Path | None
    failure: str = ""


# -- the program ----------------------------------------------------------------------------


def trace(
    context: BuildContext, model: EagerModel, noise: NoiseMeasurement | None, cached: CachedResults
) -> TracedModel:
    """Trace or script the module if an artifact needs it, and compare the program with the module on the probe.

    Raises `TorchScriptFailed`.
    """
    program = None if cached.has_artifacts else _make_program(context, model)
    if cached.reference is not None:
        probe = cached.reference.reference.probe
    else:
        assert noise is not None
        decides = has_discrete_decisions(program, cached)
        project, loaded, grid = context.project, model.loaded, model.grid
        probe = measure_probe(project, loaded, grid, noise, has_discrete_decisions=decides)
    return TracedModel(_check_program(context, model, program, probe), probe)


def retrace(context: BuildContext, model: EagerModel, traced: TracedModel) -> TracedModel:
    """Trace again: an exporter has left the names of a wrong signature in the first program, or there is none yet."""
    return replace(traced, program=_check_program(context, model, _make_program(context, model), traced.probe))


def has_discrete_decisions(program: TorchScriptProgram | None, cached: CachedResults) -> bool:
    """Return whether the module decides by comparing floats, as this build's program or the cached one shows."""
    if program is not None:
        return program.has_discrete_decisions
    return cached.torchscript is None or cached.torchscript.has_discrete_decisions


def _make_program(context: BuildContext, model: EagerModel) -> TorchScriptProgram | None:
    """Trace or script the module; return None if neither the fallback nor an exporter needs a program."""
    project, loaded = context.project, model.loaded
    method, exporter = project.manifest.torchscript.method, project.manifest.export.exporter
    if method == "none" and exporter == "torch-export":
        return None
    problems = []
    if method != "script":
        try:
            return torchscript.trace(loaded.pristine_copy(), project.manifest.outputs, model.example, project.folder)
        except ExporterFailed as error:
            problems.append(Problem(f"trace: {error.cause}", error.where))
    if method in ("script", "auto"):
        try:
            return torchscript.script(loaded.pristine_copy(), project.folder)
        except ExporterFailed as error:
            problems.append(Problem(f"script: {error.cause}", error.where))
    if method == "none":
        return None
    raise TorchScriptFailed(project.field_location("torchscript"), problems)


def _check_program(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram | None, probe: tuple[ReferenceCase, ...]
) -> TorchScriptProgram | None:
    """Record how the program compares with the module on the probe; a script replaces a trace that is wrong there.

    Exporters rewrite a program in place, so this happens once, before anything is made of it.
    """
    if program is None or not probe:
        return program
    stage = _check_on_probe(context, program, probe)
    program = replace(program, stages=(*program.stages, stage))
    if stage.verdict == "pass" or program.method == "script" or context.project.manifest.torchscript.method != "auto":
        return program
    scripted = _script_instead(context, model, program, program.stages)
    return scripted if scripted.script_failure else _check_program(context, model, scripted, probe)


def _check_on_probe(
    context: BuildContext, program: TorchScriptProgram, probe: tuple[ReferenceCase, ...]
) -> StageRecord:
    names, project = tuple(probe[0].outputs), context.project

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Without the optimizer, which would cost more than the run.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # torch's stubs
            flat = output_tree.flatten_outputs(program.module(*bind_inputs(project, list(inputs.values()))))
        return {name: to_numpy(tensor) for name, tensor in output_tree.select_outputs(flat, names).items()}

    try:
        parity = check_parity(run, probe)
    except Exception as error:  # noqa: BLE001 (TorchScript raises whatever the program raises: recorded as a failure)
        parity = ParityResult(False, get_error_line(error, project.folder), {}, None)
    largest = max((errors.max_abs for errors in parity.outputs.values()), default=None)
    verdict: Verdict = "pass" if parity.passed else "fail"
    return StageRecord(f"torchscript: {program.method}", parity.passed, verdict, parity.reason, 0, 0, 0, 0, largest)


def _script_instead(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram, stages: tuple[StageRecord, ...]
) -> TorchScriptProgram:
    """Script the module whose trace is wrong; return the trace with the reason if it cannot be scripted."""
    context.reporter.report_note(f"{_make_failure_problem(program, stages).message}; scripting the module instead")
    try:
        scripted = torchscript.script(model.loaded.pristine_copy(), context.project.folder)
    except ExporterFailed as error:
        return replace(program, script_failure=Problem(f"script: {error.cause}", error.where))
    return replace(scripted, stages=stages)


# -- the fallback ---------------------------------------------------------------------------


def save(context: BuildContext, program: TorchScriptProgram | None, *, fold: bool) -> SavedForm | None:
    """Save the program to the scratch folder, with batch normalization folded or not; None if no fallback ships."""
    if program is None or context.project.manifest.torchscript.method == "none":
        return None
    path = context.scratch / layout.TORCHSCRIPT
    try:
        torchscript.save(program, path, fold=fold, folder=context.project.folder)
    except ExporterFailed as error:
        return SavedForm(None, error.cause)
    finally:
        process_memory.release_memory()
    return SavedForm(path)


def ship(
    context: BuildContext,
    model: EagerModel,
    traced: TracedModel,
    saved: SavedForm | None,
    reference: Reference,
    cached: TorchScriptResult | None,
) -> TorchScriptResult:
    """Put a checked fallback into the staged bundle, or none if none is asked for.

    A cached program that lies there already is checked on this build's cases first. Raises `ParityFailed`, or
    `TorchScriptFailed` if no program could be saved at all.
    """
    if cached is not None:
        rechecked = _recheck(context, model, cached, reference)
        if rechecked is not None:
            return rechecked
        traced = traced if traced.program else retrace(context, model, traced)
        saved = save(context, traced.program, fold=True)
    program = traced.program
    if program is None or saved is None:
        return ArtifactResult(None, None, (), program.specialized if program else SpecializedControlFlow())
    tried = _try_forms(context, model, program, saved, reference)
    if isinstance(tried, ArtifactResult):
        return tried
    problems, stages = [_make_failure_problem(program, tried)], tried
    if context.project.manifest.torchscript.method == "auto" and program.method == "trace":
        # A script that failed already is not tried again: torch.jit would fail in another way, which is not the cause.
        scripted = program if program.script_failure else _script_instead(context, model, program, tried)
        if scripted.script_failure is not None:
            problems.append(scripted.script_failure)
        else:
            second_form = save(context, scripted, fold=True)
            assert second_form is not None
            second = _try_forms(context, model, scripted, second_form, reference)
            if isinstance(second, ArtifactResult):
                return second
            problems.append(_make_failure_problem(scripted, second))
            stages = (*tried, *second)
    if all(stage.verdict != "fail" for stage in stages):
        raise TorchScriptFailed(context.project.field_location("torchscript"), problems)
    alternative = "torchscript.method: none ships ONNX alone"
    raise ParityFailed([*problems, Problem(_NO_DIAGNOSIS)], alternative, frozen_branches=program.specialized.user_lines)


def _try_forms(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram, saved: SavedForm, reference: Reference
) -> TorchScriptResult | tuple[StageRecord, ...]:
    """Return the first form that passes, or the records of all that do not."""
    stages: list[StageRecord] = list(program.stages)
    for fold in (True, False):
        form = saved if fold else save(context, program, fold=False)
        if form is None or form.path is None:
            cause = "" if form is None else form.failure
            stages.append(_make_stage(program, "not-checked", cause, fold=fold, optimize=False))
            continue
        sha256 = context.writer.move_file(layout.TORCHSCRIPT, form.path)
        # Packing the weights of a large model for this CPU would take their memory twice.
        is_large = model.weight_bytes > _MAX_OPTIMIZED_BYTES
        for optimize in (True, False) if fold and not is_large else (False,):
            parity = _check_staged(context, model, reference, optimize=optimize)
            verdict: Verdict = "pass" if parity.passed else "fail"
            stages.append(_make_stage(program, verdict, parity.reason, fold=fold, optimize=optimize))
            if parity.passed:
                artifact = records.TorchScriptArtifact(
                    path=layout.TORCHSCRIPT, sha256=sha256, method=program.method, optimize_for_inference=optimize
                )
                return ArtifactResult(
                    artifact,
                    parity,
                    tuple(stages),
                    program.specialized,
                    has_discrete_decisions=program.has_discrete_decisions,
                )
        context.writer.remove_file(layout.TORCHSCRIPT)
    return tuple(stages)


def _recheck(
    context: BuildContext, model: EagerModel, cached: TorchScriptResult, reference: Reference
) -> TorchScriptResult | None:
    """Check a cached program on this build's cases; take it out of the staged bundle and return None if it fails."""
    assert cached.artifact is not None
    parity = _check_staged(context, model, reference, optimize=cached.artifact.optimize_for_inference)
    if parity.passed:
        return replace(cached, parity=parity)
    context.writer.remove_file(layout.TORCHSCRIPT)
    return None


def _check_staged(context: BuildContext, model: EagerModel, reference: Reference, *, optimize: bool) -> ParityResult:
    parity = check_torchscript(
        context.writer.folder / layout.TORCHSCRIPT,
        reference.reference_cases,
        inputs=[(spec.name, spec.dtype) for spec in model.inputs],
        outputs=reference.names,
        optimize=optimize,
    )
    process_memory.release_memory()
    return parity


def _make_stage(
    program: TorchScriptProgram, verdict: Verdict, reason: str, *, fold: bool, optimize: bool
) -> StageRecord:
    steps = [program.method, "freeze", *(["fold"] if fold else []), *(["optimize for inference"] if optimize else [])]
    return StageRecord(f"torchscript: {', '.join(steps)}", verdict == "pass", verdict, reason, 0, 0, 0, 0, None)


def _make_failure_problem(program: TorchScriptProgram, stages: tuple[StageRecord, ...]) -> Problem:
    if stages[-1].verdict == "not-checked":
        return Problem(f"{program.method}: {stages[-1].reason}")
    message = f"the {program.method} does not pass: {stages[-1].reason}"
    lines = program.specialized.user_lines
    if lines:
        message += f"; data-dependent control flow was fixed at trace time in {', '.join(lines)}"
    return Problem(message, lines[0] if lines else None)
