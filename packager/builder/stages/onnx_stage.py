"""The ONNX model: exporters in order, until the graph of one is proven from the staged bundle.

What an exporter gives goes to the ONNX side, which simplifies and optimizes it; the result is
placed in the staged bundle and judged there. Where it is not proven, the passes are proven one by
one and the one at fault is dropped; where the exported graph itself is not proven, the next
exporter is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import ArtifactResult, OnnxResult
from packager.bundle import layout, records
from packager.bundle.writer import BundleWriter
from packager.common import process_memory
from packager.errors import ExportFailed, ParityFailed, Problem
from packager.export import onnx as exporters
from packager.export import torchscript
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import (
    NO_IMPROVEMENT,
    ExportedGraph,
    OptimizeJob,
    OptimizeResult,
    StageRecord,
    Verdict,
)
from packager.export.torchscript import TorchScriptProgram
from packager.parity.diagnosis import diagnose
from packager.parity.diagnosis.diagnose import Diagnosis, ReproTarget
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.parity.results import Reference
from packager.project.manifest import Project
from packager.runtime.check import check_onnx


@dataclass(frozen=True)
class Candidate:
    """An exported graph on its way through the ONNX side, or why the exporter could not make one."""

    exporter: str
    job: OptimizeJob | None = None
    optimized: Future[OptimizeResult] | None = None
    failure: ExporterFailed | None = None
    specialized: SpecializedControlFlow = field(default_factory=SpecializedControlFlow)


@dataclass(frozen=True)
class Rejection:
    """Why a candidate does not ship: `fail` where it was compared and is wrong."""

    verdict: Verdict
    cause: str
    location: str | None = None


PendingCandidate = tuple[Candidate, Future[OnnxResult | Rejection]]
"""A candidate, and what will become of it."""


def iter_candidates(
    project: Project, eager: EagerModel, program: TorchScriptProgram | None, site: BuildContext
) -> Iterator[Candidate]:
    """The exporters in order; each is run only when the next candidate is asked for.

    A script comes last, where a graph came of the trace and was wrong. Whether the fallback ships that trace has no
    say: a build that has the fallback from the cache takes the same way.
    """
    wanted = project.manifest.export.exporter
    names = exporters.TensorNames([one.name for one in eager.inputs], [one.name for one in eager.outputs])

    def from_program(made: TorchScriptProgram) -> Candidate:
        def write(path: Path) -> ExportedGraph:
            return exporters.export_from_torchscript(project, made, names, eager.example, path)

        label = f"torchscript, from the {made.method}"
        return replace(_run_exporter(label, eager, project, site, write), specialized=made.specialized)

    exported = False
    if wanted != "torch-export" and program is not None:
        first = from_program(program)
        exported = first.failure is None
        yield first
    if wanted != "torchscript":

        def from_module(path: Path) -> ExportedGraph:
            return exporters.export_with_torch_export(project, eager.loaded.pristine_copy(), names, eager.example, path)

        candidate = _run_exporter("torch-export", eager, project, site, from_module)
        yield replace(
            candidate,
            specialized=_detect_specialized(project, eager, program)
            if candidate.failure is None
            else SpecializedControlFlow(),
        )
    if exported and program is not None and program.method == "trace" and project.manifest.torchscript.method == "auto":
        try:
            scripted = torchscript.script(eager.loaded.pristine_copy(), project.folder)
        except ExporterFailed as failed:
            yield Candidate("torchscript, from the script", failure=failed)
        else:
            yield from_program(scripted)


def ship_onnx(
    project: Project,
    eager: EagerModel,
    pending: PendingCandidate | None,
    remaining: Iterator[Candidate],
    expected: Future[Reference],
    site: BuildContext,
) -> OnnxResult:
    """The first proven candidate, in the staged bundle; `tried` is being tried already.

    Raises `ExportFailed` where no exporter can express the model, `ParityFailed` where one could
    and its graph computes something else: then with the first node that does.
    """
    stages: list[StageRecord] = []
    not_taken: list[tuple[Candidate, Rejection]] = []
    for candidate, outcome in _iter_outcomes(project, pending, remaining, expected, site):
        if isinstance(outcome, ArtifactResult):
            return replace(outcome, stages=(*stages, *outcome.stages))
        stages.append(
            StageRecord(f"export: {candidate.exporter}", False, outcome.verdict, outcome.cause, 0, 0, 0, 0, None)
        )
        not_taken.append((candidate, outcome))
        site.stages.report_note(f"{candidate.exporter} was not taken: {outcome.cause}")
    if not project.manifest.export.required:
        site.stages.report_note("no ONNX model: the bundle ships TorchScript alone, as export.required is false")
        return ArtifactResult(None, None, tuple(stages))
    if any(outcome.verdict == "fail" for _, outcome in not_taken):
        with site.stages.stage("where"):
            problems = _diagnose_rejections(project, eager, not_taken, expected.result(), site)
        branches = [branch for candidate, _ in not_taken for branch in candidate.specialized.user_lines]
        raise ParityFailed(problems, _format_fallback_hint(project), frozen_branches=branches)
    problems = [_make_problem(candidate, outcome) for candidate, outcome in not_taken]
    raise ExportFailed(project.field_location("export"), problems, _format_fallback_hint(project))


def _format_fallback_hint(project: Project) -> str:
    if project.manifest.torchscript.method == "none":
        return "torchscript.method: auto and export.required: false ship TorchScript alone"
    return "export.required: false ships TorchScript alone"


def check_candidate(
    candidate: Candidate, expected: Future[Reference], project: Project, site: BuildContext
) -> OnnxResult | Rejection:
    """Wait for the candidate's graph, place it in the staged bundle and judge it there, when `expected` is known."""
    if candidate.failure is not None:
        return Rejection("not-checked", candidate.failure.cause, candidate.failure.where)
    assert candidate.job is not None and candidate.optimized is not None
    optimized, job = candidate.optimized.result(), candidate.job
    if optimized.rejection_reason:
        return _reject(optimized)
    judgement = _stage_and_check(optimized, job, expected, site)
    if not judgement.passed:
        site.stages.report_note(f"not proven with all passes ({judgement.reason}); proving them one by one")
        discard_staged_onnx(site.writer)
        optimized = site.worker.submit(
            replace(job, reference_cases=expected.result().reference_cases, probe_only=False)
        ).result()
        if optimized.rejection_reason:
            return _reject(optimized)
        judgement = _stage_and_check(optimized, job, expected, site)
        if not judgement.passed:
            discard_staged_onnx(site.writer)
            return Rejection("fail" if judgement.loaded else "not-checked", judgement.reason)
    for stage in optimized.stages:
        if not stage.kept and stage.reason != NO_IMPROVEMENT:
            site.stages.report_note(f"{stage.name} was dropped: {stage.reason}")
    before = optimized.before
    taken = StageRecord(
        f"export: {candidate.exporter}", True, "pass", "", before.nodes, before.nodes, before.bytes, before.bytes,
        optimized.max_abs,
    )  # fmt: skip
    stages = (taken, *(_with_shipped_error(one, judgement) for one in optimized.stages))
    return ArtifactResult(_make_artifact_record(optimized, site.writer), judgement, stages, candidate.specialized)


def _reject(optimized: OptimizeResult) -> Rejection:
    return Rejection("fail" if optimized.failed_parity else "not-checked", optimized.rejection_reason)


def _with_shipped_error(stage: StageRecord, judgement: ParityResult) -> StageRecord:
    """The last pass was compared as what ships: on all cases, and not by itself."""
    if not stage.kept or stage.max_abs is not None:
        return stage
    return replace(stage, max_abs=max((one.max_abs for one in judgement.outputs.values()), default=None))


def recheck_onnx(made: OnnxResult, project: Project, expected: Reference, site: BuildContext) -> OnnxResult | None:
    """A graph that an earlier build made, in the staged bundle, on the cases of this one; None where it fails."""
    judgement = _check_staged(project.manifest.target.providers, expected.reference_cases, site)
    if judgement.passed:
        return replace(made, parity=judgement)
    discard_staged_onnx(site.writer)
    return None


def _run_exporter(
    label: str, eager: EagerModel, project: Project, site: BuildContext, write: Callable[[Path], ExportedGraph]
) -> Candidate:
    folder = site.scratch / label.replace(", ", "-").replace(" ", "-")
    folder.mkdir(exist_ok=True)
    try:
        raw = write(folder / "raw.onnx")
    except ExporterFailed as failed:
        return Candidate(label, failure=failed)
    job = OptimizeJob(
        exported=raw,
        output_path=folder / layout.ONNX,
        simplify=project.manifest.optimize.simplify,
        level=project.manifest.optimize.level,
        inputs={one.name: [dim for dim in one.shape if dim is not None] for one in eager.inputs},
        outputs={one.name: list(one.shape) for one in eager.outputs},
        providers=project.manifest.target.providers,
        skipped_passes={},
        reference_cases=eager.probe,
    )
    return Candidate(label, job=job, optimized=site.worker.submit(job))


def _detect_specialized(
    project: Project, eager: EagerModel, program: TorchScriptProgram | None
) -> SpecializedControlFlow:
    """The branches that torch.export may have taken for good, of which it says nothing: those that a trace takes."""
    if program is not None and program.method == "trace":
        return program.specialized
    try:
        traced = torchscript.trace(
            eager.loaded.pristine_copy(), project.manifest.outputs, eager.example, project.folder
        )
    except ExporterFailed:
        return SpecializedControlFlow(user_lines=("forward()",))  # it cannot be traced, so nobody knows
    return traced.specialized


def _make_problem(candidate: Candidate, outcome: Rejection, found: Diagnosis | None = None) -> Problem:
    message = f"{candidate.exporter}: {outcome.cause}"
    if found is None:
        return Problem(message, outcome.location)
    return Problem(f"{message}\n{found.text}", outcome.location or found.location)


def _diagnose_rejections(
    project: Project,
    eager: EagerModel,
    not_taken: Sequence[tuple[Candidate, Rejection]],
    expected: Reference,
    site: BuildContext,
) -> list[Problem]:
    """Why each candidate was not taken, and the first node at fault of each that is wrong; the first is shown."""
    problems = []
    place: ReproTarget | None = site.repro_target
    for candidate, outcome in not_taken:
        if outcome.verdict != "fail" or candidate.job is None:
            problems.append(_make_problem(candidate, outcome))
            continue
        found = diagnose.diagnose(project, eager.loaded.module, candidate.job.exported, expected.reference_cases, place)
        problems.append(_make_problem(candidate, outcome, found))
        place = place if not found.has_repro else None
    return problems


def _iter_outcomes(
    project: Project,
    tried: PendingCandidate | None,
    rest: Iterator[Candidate],
    expected: Future[Reference],
    site: BuildContext,
) -> Iterator[tuple[Candidate, OnnxResult | Rejection]]:
    if tried is not None:
        yield tried[0], tried[1].result()
    for candidate in rest:
        yield candidate, check_candidate(candidate, expected, project, site)


def _stage_and_check(
    optimized: OptimizeResult, job: OptimizeJob, expected: Future[Reference], site: BuildContext
) -> ParityResult:
    assert optimized.summary is not None
    site.writer.move_file(layout.ONNX, job.output_path)
    if optimized.summary.external_data:
        site.writer.move_file(layout.ONNX_DATA, job.output_path.with_name(layout.ONNX_DATA))
    return _check_staged(job.providers, _await_cases(expected), site)


def _check_staged(providers: Sequence[str], expectations: Iterable[ReferenceCase], site: BuildContext) -> ParityResult:
    with site.parity_semaphore:
        judgement = check_onnx(site.writer.folder / layout.ONNX, expectations, providers)
        process_memory.release_memory()
    return judgement


def _await_cases(expected: Future[Reference]) -> Iterator[ReferenceCase]:
    """The cases, once they are there: until then the session can be made."""
    yield from expected.result().reference_cases


def discard_staged_onnx(writer: BundleWriter) -> None:
    """Take a graph out of the staged bundle that does not ship."""
    for path in (layout.ONNX, layout.ONNX_DATA):
        if path in writer.digests:
            writer.remove_file(path)


def _make_artifact_record(optimized: OptimizeResult, writer: BundleWriter) -> records.OnnxArtifact:
    facts = optimized.summary
    assert facts is not None
    data = None
    if facts.external_data:
        data = records.OnnxData(path=layout.ONNX_DATA, sha256=writer.digests[layout.ONNX_DATA])
    return records.OnnxArtifact(
        path=layout.ONNX,
        sha256=writer.digests[layout.ONNX],
        data=data,
        opset=facts.opset,
        ir_version=facts.ir_version,
        domains=dict(facts.domains),
        nodes=facts.nodes,
    )
