"""The TorchScript fallback: a program that is saved, read back from the staged bundle, and proven.

The freest form is tried first: batch normalization folded, and optimized for inference by whoever
loads it. Where that is not proven, one after the other is left out; where the trace itself is not
proven, the module is scripted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import ArtifactResult, TorchScriptResult
from packager.bundle import layout, records
from packager.common import output_tree, process_memory
from packager.errors import ParityFailed, Problem, TorchScriptFailed
from packager.export import torchscript
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import StageRecord, Verdict
from packager.export.torchscript import TorchScriptProgram
from packager.model.loader import bind_inputs
from packager.parity.cases import signature
from packager.parity.cases.signature import TensorSpec
from packager.parity.noise import to_numpy
from packager.parity.numerics.compare import Array
from packager.parity.numerics.verdict import ParityResult, check_parity
from packager.parity.results import Reference
from packager.project.manifest import Project
from packager.runtime.check import check_torchscript, get_error_line

_NO_DIAGNOSIS = (
    "where a TorchScript program goes wrong is not looked for; with torchscript.method: none, the ONNX graph is"
)


def make_program(project: Project, eager: EagerModel) -> TorchScriptProgram | None:
    """The program to ship and to export from; None where nothing needs one. Raises `TorchScriptFailed`."""
    method, exporter = project.manifest.torchscript.method, project.manifest.export.exporter
    if method == "none" and exporter == "torch-export":
        return None
    causes = []
    if method != "script":
        try:
            return torchscript.trace(
                eager.loaded.pristine_copy(), project.manifest.outputs, eager.example, project.folder
            )
        except ExporterFailed as failed:
            causes.append(Problem(f"trace: {failed.cause}", failed.where))
    if method in ("script", "auto"):
        try:
            return torchscript.script(eager.loaded.pristine_copy(), project.folder)
        except ExporterFailed as failed:
            causes.append(Problem(f"script: {failed.cause}", failed.where))
    if method == "none":
        return None
    raise TorchScriptFailed(project.field_location("torchscript"), causes)


def check_program(
    made: TorchScriptProgram, project: Project, eager: EagerModel, site: BuildContext
) -> TorchScriptProgram:
    """The program, compared with the module on the case that is known by now; the script, where a trace is wrong there.

    That is said once for what is made of it, as exporters rewrite a program.
    """
    if not eager.probe:
        return made
    stage = _check_on_probe(made, project, eager)
    made = replace(made, stages=(*made.stages, stage))
    if stage.verdict == "pass" or made.method == "script" or project.manifest.torchscript.method != "auto":
        return made
    scripted = _script_instead(made, made.stages, project, eager, site)
    return scripted if scripted.script_failure else check_program(scripted, project, eager, site)


def _script_instead(
    made: TorchScriptProgram, stages: tuple[StageRecord, ...], project: Project, eager: EagerModel, site: BuildContext
) -> TorchScriptProgram:
    """The script of the module whose trace is wrong, as `stages` say; or that trace, with why there is none."""
    site.stages.report_note(f"{_make_failure_problem(made, stages).message}; scripting the module instead")
    try:
        return replace(torchscript.script(eager.loaded.pristine_copy(), project.folder), stages=stages)
    except ExporterFailed as failed:
        return replace(made, script_failure=Problem(f"script: {failed.cause}", failed.where))


def _check_on_probe(made: TorchScriptProgram, project: Project, eager: EagerModel) -> StageRecord:
    names = tuple(eager.probe[0].outputs)

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Without the optimizer, which would cost more than the run.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # torch's stubs
            flat = output_tree.flatten_outputs(made.module(*bind_inputs(project, list(inputs.values()))))
        return {name: to_numpy(one) for name, one in output_tree.select_outputs(flat, names).items()}

    try:
        judgement = check_parity(run, eager.probe)
    except Exception as error:  # noqa: BLE001 (TorchScript raises what the program raises: not proven, and said)
        judgement = ParityResult(False, get_error_line(error, project.folder), {}, None)
    largest = max((one.max_abs for one in judgement.outputs.values()), default=None)
    verdict: Verdict = "pass" if judgement.passed else "fail"
    return StageRecord(f"torchscript: {made.method}", judgement.passed, verdict, judgement.reason, 0, 0, 0, 0, largest)


def start_saving(project: Project, made: TorchScriptProgram | None, site: BuildContext) -> Future[Path] | None:
    """Start saving the program's freest form in the background; None where none is to ship."""
    if made is None or project.manifest.torchscript.method == "none":
        return None
    return site.executor.submit(_save_program, project, made, site, True)


def ship_torchscript(
    project: Project,
    eager: EagerModel,
    made: TorchScriptProgram | None,
    saving: Future[Path] | None,
    expected: Reference,
    site: BuildContext,
) -> TorchScriptResult | None:
    """Put the fallback into the staged bundle, proven; None where none is to ship.

    Raises `ParityFailed`, or `TorchScriptFailed` where no program could be saved at all.
    """
    if made is None or saving is None:
        return None
    tried = _try_forms(project, eager, made, saving, expected, site)
    if isinstance(tried, ArtifactResult):
        return tried
    problems, compared = [_make_failure_problem(made, tried)], tried
    if project.manifest.torchscript.method == "auto" and made.method == "trace":
        # One that was tried is not tried again: torch.jit fails in another way then, and that is not the cause.
        scripted = made if made.script_failure else _script_instead(made, tried, project, eager, site)
        if scripted.script_failure is not None:
            problems.append(scripted.script_failure)
        else:
            again = site.executor.submit(_save_program, project, scripted, site, True)
            second = _try_forms(project, eager, scripted, again, expected, site)
            if isinstance(second, ArtifactResult):
                return second
            problems.append(_make_failure_problem(scripted, second))
            compared = (*tried, *second)
    if all(stage.verdict != "fail" for stage in compared):
        raise TorchScriptFailed(project.field_location("torchscript"), problems)
    otherwise = "torchscript.method: none ships ONNX alone"
    raise ParityFailed([*problems, Problem(_NO_DIAGNOSIS)], otherwise, frozen_branches=made.specialized.user_lines)


def _try_forms(
    project: Project,
    eager: EagerModel,
    made: TorchScriptProgram,
    saving: Future[Path],
    expected: Reference,
    site: BuildContext,
) -> TorchScriptResult | tuple[StageRecord, ...]:
    """The first proven form, or the stages of all that were not."""
    stages: list[StageRecord] = list(made.stages)
    for fold in (True, False):
        try:
            saved = saving.result() if fold else _save_program(project, made, site, False)
        except ExporterFailed as failed:
            stages.append(_make_stage(made, "not-checked", failed.cause, fold=fold, optimize=False))
            continue
        sha256 = site.writer.move_file(layout.TORCHSCRIPT, saved)
        for optimize in (True, False) if fold else (False,):
            judgement = _check_staged(eager.inputs, expected, site, optimize=optimize)
            verdict: Verdict = "pass" if judgement.passed else "fail"
            stages.append(_make_stage(made, verdict, judgement.reason, fold=fold, optimize=optimize))
            if judgement.passed:
                artifact = records.TorchScriptArtifact(
                    path=layout.TORCHSCRIPT, sha256=sha256, method=made.method, optimize_for_inference=optimize
                )
                return ArtifactResult(
                    artifact,
                    judgement,
                    tuple(stages),
                    made.specialized,
                    has_discrete_decisions=made.has_discrete_decisions,
                )
        site.writer.remove_file(layout.TORCHSCRIPT)
    return tuple(stages)


def _save_program(project: Project, made: TorchScriptProgram, site: BuildContext, fold: bool) -> Path:
    path = site.scratch / layout.TORCHSCRIPT
    torchscript.save(made, path, fold=fold, folder=project.folder)
    process_memory.release_memory()
    return path


def recheck_torchscript(
    made: TorchScriptResult, project: Project, expected: Reference, site: BuildContext
) -> TorchScriptResult | None:
    """A program that an earlier build made, in the staged bundle, on the cases of this one; None where it fails."""
    assert made.artifact is not None
    optimize = made.artifact.optimize_for_inference
    judgement = _check_staged(signature.make_input_specs(project.manifest), expected, site, optimize=optimize)
    if judgement.passed:
        return replace(made, parity=judgement)
    site.writer.remove_file(layout.TORCHSCRIPT)
    return None


def _check_staged(
    inputs: Sequence[TensorSpec], expected: Reference, site: BuildContext, *, optimize: bool
) -> ParityResult:
    with site.parity_semaphore:
        judgement = check_torchscript(
            site.writer.folder / layout.TORCHSCRIPT,
            expected.reference_cases,
            inputs=[(one.name, one.dtype) for one in inputs],
            outputs=expected.names,
            optimize=optimize,
        )
        process_memory.release_memory()
    return judgement


def _make_stage(made: TorchScriptProgram, verdict: Verdict, reason: str, *, fold: bool, optimize: bool) -> StageRecord:
    steps = [made.method, "freeze", *(["fold"] if fold else []), *(["optimize for inference"] if optimize else [])]
    return StageRecord(f"torchscript: {', '.join(steps)}", verdict == "pass", verdict, reason, 0, 0, 0, 0, None)


def _make_failure_problem(made: TorchScriptProgram, stages: tuple[StageRecord, ...]) -> Problem:
    if stages[-1].verdict == "not-checked":
        return Problem(f"{made.method}: {stages[-1].reason}")
    message = f"the {made.method} is not proven: {stages[-1].reason}"
    lines = made.specialized.user_lines
    if lines:
        message += f"; it keeps the branch or number that {', '.join(lines)} took from data"
    return Problem(message, lines[0] if lines else None)
