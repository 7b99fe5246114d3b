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

from packager.builder.context import Eager, Site
from packager.builder.results import Made, MadeOnnx
from packager.bundle import layout, records
from packager.bundle.writer import Writer
from packager.common import process_memory
from packager.errors import ExportFailed, ParityFailed, Problem
from packager.export import onnx as exporters
from packager.export import torchscript
from packager.export.control_flow import Branches
from packager.export.exporters import ExporterFailed
from packager.export.graph.messages import NOTHING_BETTER, Optimized, OptimizeJob, Raw, Stage
from packager.export.torchscript import Program
from packager.parity.diagnosis import diagnose
from packager.parity.diagnosis.diagnose import Finding, Place
from packager.parity.numerics.verdict import Expectation, Judgement
from packager.parity.results import Reference
from packager.project.manifest import Project
from packager.runtime.check import judge_onnx


@dataclass(frozen=True)
class Candidate:
    """An exported graph on its way through the ONNX side, or why the exporter could not make one."""

    exporter: str
    job: OptimizeJob | None = None
    optimized: Future[Optimized] | None = None
    failed: ExporterFailed | None = None
    frozen: Branches = field(default_factory=Branches)


@dataclass(frozen=True)
class NotTaken:
    """Why a candidate does not ship: `fail` where it was compared and is wrong."""

    verdict: str
    cause: str
    where: str | None = None


Trying = tuple[Candidate, Future[MadeOnnx | NotTaken]]
"""A candidate, and what will become of it."""


def candidates(project: Project, eager: Eager, program: Program | None, site: Site) -> Iterator[Candidate]:
    """The exporters in order; each is run only when the next candidate is asked for.

    A script comes last, where a graph came of the trace and was wrong. Whether the fallback ships that trace has no
    say: a build that has the fallback from the cache takes the same way.
    """
    wanted = project.manifest.export.exporter
    names = exporters.Names([one.name for one in eager.inputs], [one.name for one in eager.outputs])

    def from_program(made: Program) -> Candidate:
        def write(path: Path) -> Raw:
            return exporters.from_torchscript(project, made, names, eager.example, path)

        label = f"torchscript, from the {made.method}"
        return replace(_run_exporter(label, eager, project, site, write), frozen=made.frozen)

    exported = False
    if wanted != "torch-export" and program is not None:
        first = from_program(program)
        exported = first.failed is None
        yield first
    if wanted != "torchscript":

        def from_module(path: Path) -> Raw:
            return exporters.from_torch_export(project, eager.source.fresh(), names, eager.example, path)

        candidate = _run_exporter("torch-export", eager, project, site, from_module)
        yield replace(candidate, frozen=_detect_specialized(project, eager, program) if candidate.failed is None else Branches())
    if exported and program is not None and program.method == "trace" and project.manifest.torchscript.method == "auto":
        try:
            scripted = torchscript.script(eager.source.fresh(), project.folder)
        except ExporterFailed as failed:
            yield Candidate("torchscript, from the script", failed=failed)
        else:
            yield from_program(scripted)


def ship(
    project: Project,
    eager: Eager,
    tried: Trying | None,
    rest: Iterator[Candidate],
    expected: Future[Reference],
    site: Site,
) -> MadeOnnx:
    """The first proven candidate, in the staged bundle; `tried` is being tried already.

    Raises `ExportFailed` where no exporter can express the model, `ParityFailed` where one could
    and its graph computes something else: then with the first node that does.
    """
    stages: list[Stage] = []
    not_taken: list[tuple[Candidate, NotTaken]] = []
    for candidate, outcome in _iter_outcomes(project, tried, rest, expected, site):
        if isinstance(outcome, Made):
            return replace(outcome, stages=(*stages, *outcome.stages))
        stages.append(Stage(f"export: {candidate.exporter}", False, outcome.verdict, outcome.cause, 0, 0, 0, 0))
        not_taken.append((candidate, outcome))
        site.stages.tell(f"{candidate.exporter} was not taken: {outcome.cause}")
    if not project.manifest.export.required:
        site.stages.tell("no ONNX model: the bundle ships TorchScript alone, as export.required is false")
        return Made(None, None, tuple(stages))
    if any(outcome.verdict == "fail" for _, outcome in not_taken):
        with site.stages.stage("where"):
            problems = _diagnose_rejections(project, eager, not_taken, expected.result(), site)
        branches = [branch for candidate, _ in not_taken for branch in candidate.frozen.own]
        raise ParityFailed(problems, _format_fallback_hint(project), frozen_branches=branches)
    problems = [_make_problem(candidate, outcome) for candidate, outcome in not_taken]
    raise ExportFailed(project.where("export"), problems, _format_fallback_hint(project))


def _format_fallback_hint(project: Project) -> str:
    if project.manifest.torchscript.method == "none":
        return "torchscript.method: auto and export.required: false ship TorchScript alone"
    return "export.required: false ships TorchScript alone"


def attempt(candidate: Candidate, expected: Future[Reference], project: Project, site: Site) -> MadeOnnx | NotTaken:
    """Wait for the candidate's graph, place it in the staged bundle and judge it there, when `expected` is known."""
    if candidate.failed is not None:
        return NotTaken("not-checked", candidate.failed.cause, candidate.failed.where)
    assert candidate.job is not None and candidate.optimized is not None
    optimized, job = candidate.optimized.result(), candidate.job
    if optimized.refused:
        return _reject(optimized)
    judgement = _stage_and_check(optimized, job, expected, site)
    if not judgement.passed:
        site.stages.tell(f"not proven with all passes ({judgement.reason}); proving them one by one")
        discard(site.writer)
        optimized = site.side.optimize(replace(job, expectations=expected.result().expectations, early=False)).result()
        if optimized.refused:
            return _reject(optimized)
        judgement = _stage_and_check(optimized, job, expected, site)
        if not judgement.passed:
            discard(site.writer)
            return NotTaken("fail" if judgement.loaded else "not-checked", judgement.reason)
    for stage in optimized.stages:
        if not stage.kept and stage.reason != NOTHING_BETTER:
            site.stages.tell(f"{stage.name} was dropped: {stage.reason}")
    before = optimized.before
    taken = Stage(
        f"export: {candidate.exporter}", True, "pass", "", before.nodes, before.nodes, before.bytes, before.bytes,
        optimized.max_abs,
    )  # fmt: skip
    stages = (taken, *(_with_shipped_error(one, judgement) for one in optimized.stages))
    return Made(_make_artifact_record(optimized, site.writer), judgement, stages, candidate.frozen)


def _reject(optimized: Optimized) -> NotTaken:
    return NotTaken("fail" if optimized.disproven else "not-checked", optimized.refused)


def _with_shipped_error(stage: Stage, judgement: Judgement) -> Stage:
    """The last pass was compared as what ships: on all cases, and not by itself."""
    if not stage.kept or stage.max_abs is not None:
        return stage
    return replace(stage, max_abs=max((one.max_abs for one in judgement.outputs.values()), default=None))


def judge_again(made: MadeOnnx, project: Project, expected: Reference, site: Site) -> MadeOnnx | None:
    """A graph that an earlier build made, in the staged bundle, on the cases of this one; None where it fails."""
    judgement = _check_staged(project.manifest.target.providers, expected.expectations, site)
    if judgement.passed:
        return replace(made, judgement=judgement)
    discard(site.writer)
    return None


def _run_exporter(label: str, eager: Eager, project: Project, site: Site, write: Callable[[Path], Raw]) -> Candidate:
    folder = site.scratch / label.replace(", ", "-").replace(" ", "-")
    folder.mkdir(exist_ok=True)
    try:
        raw = write(folder / "raw.onnx")
    except ExporterFailed as failed:
        return Candidate(label, failed=failed)
    job = OptimizeJob(
        raw=raw,
        target=folder / layout.ONNX,
        simplify=project.manifest.optimize.simplify,
        level=project.manifest.optimize.level,
        inputs={one.name: [dim for dim in one.shape if dim is not None] for one in eager.inputs},
        outputs={one.name: list(one.shape) for one in eager.outputs},
        providers=project.manifest.target.providers,
        skip={},
        expectations=eager.early,
    )
    return Candidate(label, job=job, optimized=site.side.optimize(job))


def _detect_specialized(project: Project, eager: Eager, program: Program | None) -> Branches:
    """The branches that torch.export may have taken for good, of which it says nothing: those that a trace takes."""
    if program is not None and program.method == "trace":
        return program.frozen
    try:
        traced = torchscript.trace(eager.source.fresh(), project.manifest.outputs, eager.example, project.folder)
    except ExporterFailed:
        return Branches(own=("forward()",))  # it cannot be traced, so nobody knows
    return traced.frozen


def _make_problem(candidate: Candidate, outcome: NotTaken, found: Finding | None = None) -> Problem:
    message = f"{candidate.exporter}: {outcome.cause}"
    if found is None:
        return Problem(message, outcome.where)
    return Problem(f"{message}\n{found.text}", outcome.where or found.where)


def _diagnose_rejections(
    project: Project, eager: Eager, not_taken: Sequence[tuple[Candidate, NotTaken]], expected: Reference, site: Site
) -> list[Problem]:
    """Why each candidate was not taken, and the first node at fault of each that is wrong; the first is shown."""
    problems = []
    place: Place | None = site.repro
    for candidate, outcome in not_taken:
        if outcome.verdict != "fail" or candidate.job is None:
            problems.append(_make_problem(candidate, outcome))
            continue
        found = diagnose.find(project, eager.source.module, candidate.job.raw, expected.expectations, place)
        problems.append(_make_problem(candidate, outcome, found))
        place = place if not found.shown else None
    return problems


def _iter_outcomes(
    project: Project,
    tried: Trying | None,
    rest: Iterator[Candidate],
    expected: Future[Reference],
    site: Site,
) -> Iterator[tuple[Candidate, MadeOnnx | NotTaken]]:
    if tried is not None:
        yield tried[0], tried[1].result()
    for candidate in rest:
        yield candidate, attempt(candidate, expected, project, site)


def _stage_and_check(optimized: Optimized, job: OptimizeJob, expected: Future[Reference], site: Site) -> Judgement:
    assert optimized.facts is not None
    site.writer.adopt(layout.ONNX, job.target)
    if optimized.facts.external_data:
        site.writer.adopt(layout.ONNX_DATA, job.target.with_name(layout.ONNX_DATA))
    return _check_staged(job.providers, _await_cases(expected), site)


def _check_staged(providers: Sequence[str], expectations: Iterable[Expectation], site: Site) -> Judgement:
    with site.judging:
        judgement = judge_onnx(site.writer.folder / layout.ONNX, expectations, providers)
        process_memory.give_back()
    return judgement


def _await_cases(expected: Future[Reference]) -> Iterator[Expectation]:
    """The cases, once they are there: until then the session can be made."""
    yield from expected.result().expectations


def discard(writer: Writer) -> None:
    """Take a graph out of the staged bundle that does not ship."""
    for path in (layout.ONNX, layout.ONNX_DATA):
        if path in writer.digests:
            writer.discard(path)


def _make_artifact_record(optimized: Optimized, writer: Writer) -> records.OnnxArtifact:
    facts = optimized.facts
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
