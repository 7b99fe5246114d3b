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

from packager.builder.context import Eager, Site
from packager.builder.results import Made, MadeTorchScript
from packager.bundle import layout, records
from packager.common import output_tree, process_memory
from packager.errors import ParityFailed, Problem, TorchScriptFailed
from packager.export import torchscript
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import Stage
from packager.export.torchscript import Program
from packager.model.loader import bind
from packager.parity.cases import signature
from packager.parity.cases.signature import TensorSpec
from packager.parity.noise import to_numpy
from packager.parity.numerics.compare import Array
from packager.parity.numerics.verdict import Judgement, judge
from packager.parity.results import Reference
from packager.project.manifest import Project
from packager.runtime.check import first_line, judge_torchscript

_NO_DIAGNOSIS = (
    "where a TorchScript program goes wrong is not looked for; with torchscript.method: none, the ONNX graph is"
)


def program(project: Project, eager: Eager) -> Program | None:
    """The program to ship and to export from; None where nothing needs one. Raises `TorchScriptFailed`."""
    method, exporter = project.manifest.torchscript.method, project.manifest.export.exporter
    if method == "none" and exporter == "torch-export":
        return None
    causes = []
    if method != "script":
        try:
            return torchscript.trace(eager.source.fresh(), project.manifest.outputs, eager.example, project.folder)
        except ExporterFailed as failed:
            causes.append(Problem(f"trace: {failed.cause}", failed.where))
    if method in ("script", "auto"):
        try:
            return torchscript.script(eager.source.fresh(), project.folder)
        except ExporterFailed as failed:
            causes.append(Problem(f"script: {failed.cause}", failed.where))
    if method == "none":
        return None
    raise TorchScriptFailed(project.where("torchscript"), causes)


def compared(made: Program, project: Project, eager: Eager, site: Site) -> Program:
    """The program, compared with the module on the case that is known by now; the script, where a trace is wrong there.

    That is said once for what is made of it, as exporters rewrite a program.
    """
    if not eager.early:
        return made
    stage = _check_on_probe(made, project, eager)
    made = replace(made, stages=(*made.stages, stage))
    if stage.verdict == "pass" or made.method == "script" or project.manifest.torchscript.method != "auto":
        return made
    scripted = _script_instead(made, made.stages, project, eager, site)
    return scripted if scripted.unscriptable else compared(scripted, project, eager, site)


def _script_instead(made: Program, stages: tuple[Stage, ...], project: Project, eager: Eager, site: Site) -> Program:
    """The script of the module whose trace is wrong, as `stages` say; or that trace, with why there is none."""
    site.stages.tell(f"{_make_failure_problem(made, stages).message}; scripting the module instead")
    try:
        return replace(torchscript.script(eager.source.fresh(), project.folder), stages=stages)
    except ExporterFailed as failed:
        return replace(made, unscriptable=Problem(f"script: {failed.cause}", failed.where))


def _check_on_probe(made: Program, project: Project, eager: Eager) -> Stage:
    names = tuple(eager.early[0].outputs)

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Without the optimizer, which would cost more than the run.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # torch's stubs
            flat = output_tree.flatten(made.module(*bind(project, list(inputs.values()))))
        return {name: to_numpy(one) for name, one in output_tree.select(flat, names).items()}

    try:
        judgement = judge(run, eager.early)
    except Exception as error:  # noqa: BLE001 (TorchScript raises what the program raises: not proven, and said)
        judgement = Judgement(False, first_line(error, project.folder), {}, None)
    largest = max((one.max_abs for one in judgement.outputs.values()), default=None)
    verdict = "pass" if judgement.passed else "fail"
    return Stage(f"torchscript: {made.method}", judgement.passed, verdict, judgement.reason, 0, 0, 0, 0, largest)


def begin(project: Project, made: Program | None, site: Site) -> Future[Path] | None:
    """Start saving the program's freest form in the background; None where none is to ship."""
    if made is None or project.manifest.torchscript.method == "none":
        return None
    return site.background.submit(_save_program, project, made, site, True)


def ship(
    project: Project, eager: Eager, made: Program | None, saving: Future[Path] | None, expected: Reference, site: Site
) -> MadeTorchScript | None:
    """Put the fallback into the staged bundle, proven; None where none is to ship.

    Raises `ParityFailed`, or `TorchScriptFailed` where no program could be saved at all.
    """
    if made is None or saving is None:
        return None
    tried = _try_forms(project, eager, made, saving, expected, site)
    if isinstance(tried, Made):
        return tried
    problems, compared = [_make_failure_problem(made, tried)], tried
    if project.manifest.torchscript.method == "auto" and made.method == "trace":
        # One that was tried is not tried again: torch.jit fails in another way then, and that is not the cause.
        scripted = made if made.unscriptable else _script_instead(made, tried, project, eager, site)
        if scripted.unscriptable is not None:
            problems.append(scripted.unscriptable)
        else:
            again = site.background.submit(_save_program, project, scripted, site, True)
            second = _try_forms(project, eager, scripted, again, expected, site)
            if isinstance(second, Made):
                return second
            problems.append(_make_failure_problem(scripted, second))
            compared = (*tried, *second)
    if all(stage.verdict != "fail" for stage in compared):
        raise TorchScriptFailed(project.where("torchscript"), problems)
    otherwise = "torchscript.method: none ships ONNX alone"
    raise ParityFailed([*problems, Problem(_NO_DIAGNOSIS)], otherwise, frozen_branches=made.frozen.own)


def _try_forms(
    project: Project, eager: Eager, made: Program, saving: Future[Path], expected: Reference, site: Site
) -> MadeTorchScript | tuple[Stage, ...]:
    """The first proven form, or the stages of all that were not."""
    stages: list[Stage] = list(made.stages)
    for fold in (True, False):
        try:
            saved = saving.result() if fold else _save_program(project, made, site, False)
        except ExporterFailed as failed:
            stages.append(_make_stage(made, "not-checked", failed.cause, fold=fold, optimize=False))
            continue
        sha256 = site.writer.adopt(layout.TORCHSCRIPT, saved)
        for optimize in (True, False) if fold else (False,):
            judgement = _check_staged(eager.inputs, expected, site, optimize=optimize)
            verdict = "pass" if judgement.passed else "fail"
            stages.append(_make_stage(made, verdict, judgement.reason, fold=fold, optimize=optimize))
            if judgement.passed:
                artifact = records.TorchScriptArtifact(
                    path=layout.TORCHSCRIPT, sha256=sha256, method=made.method, optimize_for_inference=optimize
                )
                return Made(artifact, judgement, tuple(stages), made.frozen, decides=made.decides)
        site.writer.discard(layout.TORCHSCRIPT)
    return tuple(stages)


def _save_program(project: Project, made: Program, site: Site, fold: bool) -> Path:
    path = site.scratch / layout.TORCHSCRIPT
    torchscript.save(made, path, fold=fold, folder=project.folder)
    process_memory.give_back()
    return path


def judge_again(made: MadeTorchScript, project: Project, expected: Reference, site: Site) -> MadeTorchScript | None:
    """A program that an earlier build made, in the staged bundle, on the cases of this one; None where it fails."""
    assert made.artifact is not None
    optimize = made.artifact.optimize_for_inference
    judgement = _check_staged(signature.inputs(project.manifest), expected, site, optimize=optimize)
    if judgement.passed:
        return replace(made, judgement=judgement)
    site.writer.discard(layout.TORCHSCRIPT)
    return None


def _check_staged(inputs: Sequence[TensorSpec], expected: Reference, site: Site, *, optimize: bool) -> Judgement:
    with site.judging:
        judgement = judge_torchscript(
            site.writer.folder / layout.TORCHSCRIPT,
            expected.expectations,
            inputs=[(one.name, one.dtype) for one in inputs],
            outputs=expected.names,
            optimize=optimize,
        )
        process_memory.give_back()
    return judgement


def _make_stage(made: Program, verdict: str, reason: str, *, fold: bool, optimize: bool) -> Stage:
    steps = [made.method, "freeze", *(["fold"] if fold else []), *(["optimize for inference"] if optimize else [])]
    return Stage(f"torchscript: {', '.join(steps)}", verdict == "pass", verdict, reason, 0, 0, 0, 0)


def _make_failure_problem(made: Program, stages: tuple[Stage, ...]) -> Problem:
    if stages[-1].verdict == "not-checked":
        return Problem(f"{made.method}: {stages[-1].reason}")
    message = f"the {made.method} is not proven: {stages[-1].reason}"
    lines = made.frozen.own
    if lines:
        message += f"; it keeps the branch or number that {', '.join(lines)} took from data"
    return Problem(message, lines[0] if lines else None)
