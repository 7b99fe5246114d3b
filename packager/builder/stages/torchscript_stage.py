"""TRACE and TORCHSCRIPT: the fallback, saved, read back from the staged bundle, and checked.

The fastest form is tried first: batch normalization folded, and optimized for inference when it is loaded. If that
form fails, one step after the other is left out; if the trace itself fails, the module is scripted. If no form of
TorchScript passes, `torchscript.method: auto` tries an exported program (`exported_program_stage`), then a trace at
larger sizes (`retracing`), and ships none if that fails as well: ONNX has its own proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import ArtifactResult, CachedResults, FallbackResult, LeftOut, describe_left_out
from packager.builder.stages import exported_program_stage, retracing
from packager.builder.stages.second_check import check_twice, has_explicit_tolerance
from packager.bundle import layout, records
from packager.common import output_tree, process_memory
from packager.errors import ParityFailed, Problem, TorchScriptFailed
from packager.export import torchscript
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import StageRecord, Verdict
from packager.export.torchscript import TorchScriptProgram
from packager.model.inputs import bind_inputs
from packager.parity.amendments import check_again
from packager.parity.noise_variants import to_numpy
from packager.parity.numerics.compare import Array
from packager.parity.numerics.verdict import ParityResult, ReferenceCase, check_parity
from packager.parity.reference import NoiseMeasurement, measure_probe
from packager.parity.remeasurement import remeasure_case
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

    `program` is None if nothing needs one, or if there is none. `failures` are the ways to make one that failed.
    `probe` is empty if no case can be compared this early.
    """

    program: TorchScriptProgram | None
    probe: tuple[ReferenceCase, ...]
    failures: tuple[LeftOut, ...] = ()


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

    Raises `TorchScriptFailed` if the manifest demands a trace or a script and there is none.
    """
    program, failures = (None, ()) if cached.has_artifacts else _make_program(context, model)
    if cached.reference is not None:
        probe = cached.reference.reference.probe
    else:
        assert noise is not None
        decides = has_discrete_decisions(program, cached)
        project, loaded, grid = context.project, model.loaded, model.grid
        probe = measure_probe(project, loaded, grid, noise, has_discrete_decisions=decides)
    return TracedModel(_check_program(context, model, program, probe), probe, failures)


def retrace(context: BuildContext, model: EagerModel, traced: TracedModel) -> TracedModel:
    """Trace again: an exporter has left the names of a wrong signature in the first program, or there is none yet."""
    program, failures = _make_program(context, model)
    return replace(traced, program=_check_program(context, model, program, traced.probe), failures=failures)


def has_discrete_decisions(program: TorchScriptProgram | None, cached: CachedResults) -> bool:
    """Return whether the module decides by comparing floats, as this build's program or the cached one shows."""
    if program is not None:
        return program.has_discrete_decisions
    return cached.torchscript is None or cached.torchscript.has_discrete_decisions


def _make_program(context: BuildContext, model: EagerModel) -> tuple[TorchScriptProgram | None, tuple[LeftOut, ...]]:
    """Trace or script the module; return the program and what failed before it.

    There is no program if neither the fallback nor an exporter needs one, or if every way to make one failed. Raises
    `TorchScriptFailed` if the manifest demands a trace or a script.
    """
    project, loaded, failures = context.project, model.loaded, []
    method, exporter = project.manifest.torchscript.method, project.manifest.export.exporter
    if method == "none" and exporter == "torch-export":
        return None, ()
    if method != "script":
        try:
            module, names = loaded.pristine_copy(), project.manifest.outputs
            return torchscript.trace(module, names, model.example, project.folder), ()
        except ExporterFailed as error:
            failures.append(_reject("trace", error))
    if method in ("script", "auto"):
        try:
            return torchscript.script(loaded.pristine_copy(), project.folder), tuple(failures)
        except ExporterFailed as error:
            failures.append(_reject("script", error))
    if method in ("none", "auto"):
        return None, tuple(failures)
    raise TorchScriptFailed(project.field_location("torchscript"), [_make_problem(failure) for failure in failures])


def _reject(form: str, error: ExporterFailed) -> LeftOut:
    return LeftOut("torchscript", form, "not-checked", error.cause, error.where)


def _make_problem(left_out: LeftOut) -> Problem:
    return Problem(describe_left_out([left_out]), left_out.location)


def _check_program(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram | None, probe: tuple[ReferenceCase, ...]
) -> TorchScriptProgram | None:
    """Record how the program compares with the module on the probe; a script replaces a trace that is wrong there.

    If the module cannot be scripted, a trace that keeps rounded sizes dynamic takes its place. Exporters rewrite a
    program in place, so this happens once, before anything is made of it.
    """
    if program is None or not probe:
        return program
    stage = _check_on_probe(context, model, program, probe)
    program = replace(program, stages=(*program.stages, stage))
    if stage.verdict == "pass" or program.method == "script":
        return program
    if context.project.manifest.torchscript.method == "auto":
        scripted = _script_instead(context, model, program, program.stages)
        if scripted.script_failure is None:
            return _check_program(context, model, scripted, probe)
        program = scripted
    kept = retracing.trace_rounded_sizes(context, model, program)
    stage = _check_on_probe(context, model, kept, probe) if kept is not None else stage
    if kept is None or stage.verdict != "pass":
        return program
    context.reporter.report_note("replaced the trace with one that keeps the sizes that forward() rounds dynamic")
    return replace(kept, stages=(*program.stages, stage))


def _check_on_probe(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram, probe: tuple[ReferenceCase, ...]
) -> StageRecord:
    names, project = tuple(probe[0].outputs), context.project

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Without the optimizer, which would cost more than the run.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # torch's stubs
            flat = output_tree.flatten_outputs(program.module(*bind_inputs(project, list(inputs.values()))))
        return {name: to_numpy(tensor) for name, tensor in output_tree.select_outputs(flat, names).items()}

    try:
        parity = check_parity(run, probe)
        if parity.failed_cases and not has_explicit_tolerance(context):
            remeasure = partial(remeasure_case, project, model.loaded, model.grid.probe_case)
            parity = check_again(parity, probe, partial(check_parity, run), remeasure)
    except Exception as error:  # noqa: BLE001 (TorchScript raises whatever the program raises: recorded as a failure)
        parity = ParityResult(False, get_error_line(error, project.folder), {}, None)
    largest = max((errors.max_abs for errors in parity.outputs.values()), default=None)
    verdict: Verdict = "pass" if parity.passed else "fail"
    return StageRecord(f"torchscript: {program.method}", parity.passed, verdict, parity.reason, 0, 0, 0, 0, largest)


def _script_instead(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram, stages: tuple[StageRecord, ...]
) -> TorchScriptProgram:
    """Script the module whose trace is wrong; return the trace with the reason if it cannot be scripted."""
    context.reporter.report_note(f"{describe_left_out([_reject_forms(program, stages)])}; scripting the module instead")
    try:
        scripted = torchscript.script(model.loaded.pristine_copy(), context.project.folder)
    except ExporterFailed as error:
        return replace(program, script_failure=error)
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
    cached: FallbackResult | None,
) -> FallbackResult:
    """Put a checked fallback into the staged bundle, or none if none is asked for or, with `auto`, none is proven.

    A cached fallback that lies there already is checked on this build's cases first. Raises `ParityFailed`, or
    `TorchScriptFailed` if no program could be saved at all, where the manifest demands a trace or a script.
    """
    if cached is not None:
        rechecked = _recheck(context, model, cached, reference)
        if rechecked is not None:
            return rechecked
        traced = traced if traced.program or traced.failures else retrace(context, model, traced)
        saved = save(context, traced.program, fold=True)
    program, method = traced.program, context.project.manifest.torchscript.method
    specialized = program.specialized if program else SpecializedControlFlow(undetected=True)
    if method == "none":
        return ArtifactResult(None, None, (), program.specialized if program else SpecializedControlFlow())
    left_out, stages = traced.failures, tuple(_make_failed_stage(failure) for failure in traced.failures)
    if program is not None and saved is not None:
        tried = _try_programs(context, model, program, saved, reference)
        if isinstance(tried, ArtifactResult):
            return tried
        left_out, stages = (*left_out, *tried[0]), (*stages, *tried[1])
    fallback: FallbackResult = ArtifactResult(None, None, stages, left_out=left_out)
    if method == "auto":
        fallback = exported_program_stage.ship(context, model, reference, left_out, stages)
    if fallback.artifact is None:
        larger = _ship_larger_trace(context, model, program, fallback, reference)
        if larger is not None:
            return larger
        if method != "auto":
            raise _make_error(context, left_out)
        reason = describe_left_out(fallback.left_out)
        context.reporter.report_note(f"no fallback is proven, so ONNX has to ship alone: {reason}")
        return fallback
    decides = program is None or program.has_discrete_decisions
    return replace(fallback, specialized=specialized, has_discrete_decisions=decides)


def _make_error(context: BuildContext, left_out: tuple[LeftOut, ...]) -> TorchScriptFailed | ParityFailed:
    problems = [_make_problem(entry) for entry in left_out]
    if all(entry.verdict != "fail" for entry in left_out):
        return TorchScriptFailed(context.project.field_location("torchscript"), problems)
    alternative = "torchscript.method: auto ships ONNX with the best fallback that passes, or with none"
    lines = [line for entry in left_out for line in entry.frozen_lines]
    return ParityFailed([*problems, Problem(_NO_DIAGNOSIS)], alternative, frozen_branches=lines)


def _try_programs(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram, saved: SavedForm, reference: Reference
) -> FallbackResult | tuple[tuple[LeftOut, ...], tuple[StageRecord, ...]]:
    """Ship the first form that passes, of the program or else of a script; or return the causes, and the stages."""
    tried = _try_forms(context, model, program, saved, reference)
    if isinstance(tried, ArtifactResult):
        return tried
    left_out = [_reject_forms(program, tried)]
    if context.project.manifest.torchscript.method != "auto" or program.method != "trace":
        return tuple(left_out), tried
    # A script that failed already is not tried again: it would fail for the same reason.
    scripted = program if program.script_failure else _script_instead(context, model, program, tried)
    if scripted.script_failure is not None:
        left_out.append(_reject("script", scripted.script_failure))
        return tuple(left_out), (*tried, _make_failed_stage(left_out[-1]))
    second_form = save(context, scripted, fold=True)
    assert second_form is not None
    second = _try_forms(context, model, scripted, second_form, reference)
    if isinstance(second, ArtifactResult):
        return replace(second, left_out=tuple(left_out))
    return (*left_out, _reject_forms(scripted, second)), second


def _ship_larger_trace(
    context: BuildContext,
    model: EagerModel,
    program: TorchScriptProgram | None,
    tried: FallbackResult,
    reference: Reference,
) -> FallbackResult | None:
    """Ship a trace that was made at larger sizes, where all that was `tried` failed; None if it fails as well."""
    larger = retracing.trace_at_larger_sizes(context, model, program) if program is not None else None
    form = save(context, larger, fold=True)
    if larger is None or form is None:
        return None
    shipped = _try_forms(context, model, replace(larger, stages=tried.stages), form, reference)
    if not isinstance(shipped, ArtifactResult):
        return None
    context.reporter.report_note("the fallback is a trace that was made at larger sizes than those of the example")
    return replace(shipped, left_out=tried.left_out)


def _try_forms(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram, saved: SavedForm, reference: Reference
) -> FallbackResult | tuple[StageRecord, ...]:
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
    context: BuildContext, model: EagerModel, cached: FallbackResult, reference: Reference
) -> FallbackResult | None:
    """Check a cached fallback on this build's cases; take it out of the staged bundle and return None if it fails."""
    artifact = cached.artifact
    assert artifact is not None
    if isinstance(artifact, records.TorchScriptArtifact):
        parity = _check_staged(context, model, reference, optimize=artifact.optimize_for_inference)
    else:
        parity = exported_program_stage.check_staged(context, model, reference)
    if parity.passed:
        return replace(cached, parity=parity)
    context.writer.remove_file(artifact.path)
    return None


def _check_staged(context: BuildContext, model: EagerModel, reference: Reference, *, optimize: bool) -> ParityResult:
    def check(reference_cases: Sequence[ReferenceCase]) -> ParityResult:
        return check_torchscript(
            context.writer.folder / layout.TORCHSCRIPT,
            reference_cases,
            inputs=[(spec.name, spec.dtype) for spec in model.inputs],
            outputs=reference.names,
            optimize=optimize,
        )

    parity = check_twice(context, model, reference, check)
    process_memory.release_memory()
    return parity


def _make_stage(
    program: TorchScriptProgram, verdict: Verdict, reason: str, *, fold: bool, optimize: bool
) -> StageRecord:
    steps = [program.method, "freeze", *(["fold"] if fold else []), *(["optimize for inference"] if optimize else [])]
    return StageRecord(f"torchscript: {', '.join(steps)}", verdict == "pass", verdict, reason, 0, 0, 0, 0, None)


def _make_failed_stage(left_out: LeftOut) -> StageRecord:
    name = f"{left_out.backend}: {left_out.form}"
    return StageRecord(name, False, left_out.verdict, left_out.reason, 0, 0, 0, 0, None)


def _reject_forms(program: TorchScriptProgram, stages: tuple[StageRecord, ...]) -> LeftOut:
    """Return why no form of a program passes: the last of its stages that was wrong, or else the last that failed."""
    own = [stage for stage in stages if stage.name.partition(",")[0] == f"torchscript: {program.method}"]
    wrong = [stage for stage in own if stage.verdict == "fail"]
    last = (wrong or own)[-1]
    if not wrong:
        return LeftOut("torchscript", program.method, "not-checked", last.reason)
    lines = program.specialized.user_lines
    return LeftOut("torchscript", program.method, "fail", last.reason, frozen_lines=lines)
