"""ONNX: exporters in order, until the graph of one passes from the staged bundle.

An exported graph goes to the worker process, which simplifies and optimizes it; the result is put into the staged
bundle and checked there. If it fails, the passes are checked one by one and the faulty one is dropped; if the exported
graph itself fails, the next exporter is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import ArtifactResult, FallbackResult, OnnxResult
from packager.builder.stages import retracing
from packager.builder.stages.onnx_export import FROM_MODULE, FROM_TRACE, Candidate, Exporter, export, list_exporters
from packager.builder.stages.onnx_rejection import Rejection, make_error
from packager.builder.stages.second_check import check_twice, has_explicit_tolerance, remeasure_once
from packager.builder.stages.torchscript_stage import TracedModel, retrace
from packager.bundle import layout, records
from packager.bundle.writer import BundleWriter
from packager.common import process_memory
from packager.common.hashing import sha256_pieces
from packager.export.graph.messages import NO_IMPROVEMENT, OptimizeJob, OptimizeResult, StageRecord
from packager.parity.amendments import amend_cases
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.parity.results import Reference
from packager.runtime.check import check_onnx, check_onnx_session, open_onnx_session
from packager.runtime.onnx_backend import OnnxBackend


@dataclass(frozen=True)
class Prepared:
    """An optimized candidate in the staged bundle with an open session, or what is wrong with it already."""

    candidate: Candidate
    optimized: OptimizeResult | None = None
    session: OnnxBackend | ParityResult | None = None


@dataclass(frozen=True)
class Attempt:
    """A candidate that was checked on every case: the worker's result and the parity, if it came that far."""

    candidate: Candidate
    optimized: OptimizeResult | None
    parity: ParityResult | None


# -- one candidate --------------------------------------------------------------------------


def prepare(context: BuildContext, candidate: Candidate) -> Prepared:
    """Wait for the worker to optimize a candidate, put the graph into the staged bundle, and open a session on it."""
    if candidate.job is None:
        return Prepared(candidate)
    optimized = context.worker.submit(candidate.job).result()
    if optimized.rejection_reason:
        return Prepared(candidate, optimized)
    _stage(context, candidate.job, optimized)
    session = open_onnx_session(context.writer.folder / layout.ONNX, candidate.job.providers)
    return Prepared(candidate, optimized, session)


def check_prepared(context: BuildContext, reference: Reference, prepared: Prepared) -> Attempt:
    """Check a prepared candidate on every case."""
    if prepared.session is None:
        return Attempt(prepared.candidate, prepared.optimized, None)
    return Attempt(prepared.candidate, prepared.optimized, _check_session(context, prepared.session, reference))


def _settle(context: BuildContext, model: EagerModel, attempt: Attempt, reference: Reference) -> OnnxResult | Rejection:
    """Reach the verdict on a candidate; if it failed, check it again, and then with each of its passes checked."""
    if attempt.candidate.failure is not None:
        return Rejection("not-checked", attempt.candidate.failure.cause, attempt.candidate.failure.where)
    if attempt.parity is None:
        attempt = _retry_on_probe(context, model, attempt, reference)
    candidate, job, optimized = attempt.candidate, attempt.candidate.job, attempt.optimized
    assert job is not None and optimized is not None
    if attempt.parity is None:
        return _reject(optimized)
    parity = check_twice(context, model, reference, partial(_check_onnx, context), attempt.parity)
    if not parity.passed:
        context.reporter.report_note(f"the graph fails with all passes ({parity.reason}); checking them one by one")
        discard_staged(context.writer)
        cases = tuple(amend_cases(reference.reference_cases, parity.remeasured))
        job = replace(job, reference_cases=cases, probe_only=False)
        optimized = context.worker.submit(job).result()
        if optimized.rejection_reason:
            return _reject(optimized)
        _stage(context, job, optimized)
        parity = _check_staged(context, model, reference)
        if not parity.passed:
            discard_staged(context.writer)
            return Rejection("fail" if parity.loaded else "not-checked", parity.reason)
    for stage in optimized.stages:
        if not stage.kept and stage.reason != NO_IMPROVEMENT:
            context.reporter.report_note(f"dropped the pass {stage.name}: {stage.reason}")
    before = optimized.before
    exported = StageRecord(
        f"export: {candidate.exporter}", True, "pass", "", before.nodes, before.nodes, before.bytes, before.bytes,
        optimized.max_abs,
    )  # fmt: skip
    stages = (exported, *(_with_shipped_error(stage, parity) for stage in optimized.stages))
    return ArtifactResult(_make_artifact_record(optimized, context.writer), parity, stages, candidate.specialized)


def _retry_on_probe(context: BuildContext, model: EagerModel, attempt: Attempt, reference: Reference) -> Attempt:
    """Check a graph whose values failed on the probe again, with the tolerance that every evaluation gives there."""
    job, optimized = attempt.candidate.job, attempt.optimized
    assert job is not None and optimized is not None
    expected = [case for case in reference.reference_cases if case.name in optimized.failed_cases]
    if not expected or has_explicit_tolerance(context):
        return attempt
    remeasured = {case.name: remeasure_once(context, model, reference, case) for case in expected}
    process_memory.release_memory()
    amended = tuple(amend_cases(expected, remeasured))  # without a case that turns out to prove nothing
    if [case.tolerances for case in amended] == [case.tolerances for case in job.reference_cases]:
        return attempt
    candidate = replace(attempt.candidate, job=replace(job, reference_cases=amended))
    return check_prepared(context, reference, prepare(context, candidate))


def _reject(optimized: OptimizeResult) -> Rejection:
    return Rejection("fail" if optimized.failed_parity else "not-checked", optimized.rejection_reason)


def _with_shipped_error(stage: StageRecord, parity: ParityResult) -> StageRecord:
    """Give the last pass the largest error of the graph that ships: it is not compared by itself."""
    if not stage.kept or stage.max_abs is not None:
        return stage
    return replace(stage, max_abs=max((errors.max_abs for errors in parity.outputs.values()), default=None))


def _stage(context: BuildContext, job: OptimizeJob, optimized: OptimizeResult) -> None:
    assert optimized.summary is not None
    context.writer.move_file(layout.ONNX, job.output_path)
    if optimized.summary.external_data:
        context.writer.move_file(layout.ONNX_DATA, job.output_path.with_name(layout.ONNX_DATA))


def _check_session(context: BuildContext, session: OnnxBackend | ParityResult, reference: Reference) -> ParityResult:
    if isinstance(session, ParityResult):
        return session
    parity = check_onnx_session(session, reference.reference_cases, context.writer.folder)
    process_memory.release_memory()
    return parity


def _check_staged(context: BuildContext, model: EagerModel, reference: Reference) -> ParityResult:
    return check_twice(context, model, reference, partial(_check_onnx, context))


def _check_onnx(context: BuildContext, reference_cases: Sequence[ReferenceCase]) -> ParityResult:
    providers = context.project.manifest.target.providers
    parity = check_onnx(context.writer.folder / layout.ONNX, reference_cases, providers)
    process_memory.release_memory()
    return parity


def discard_staged(writer: BundleWriter) -> None:
    """Take a graph that does not ship out of the staged bundle."""
    for path in (layout.ONNX, layout.ONNX_DATA):
        if path in writer.digests:
            writer.remove_file(path)


def discard_prepared(context: BuildContext, prepared: Future[Prepared] | None) -> None:
    """Wait for a candidate that is of no use any more, and take its graph out of the staged bundle."""
    if prepared is not None:
        prepared.result()  # it writes to where the next candidate will
        discard_staged(context.writer)


# -- the model that ships -------------------------------------------------------------------


def ship(
    context: BuildContext,
    model: EagerModel,
    traced: TracedModel,
    first: Attempt | None,
    reference: Reference,
    cached: OnnxResult | None,
    fallback: FallbackResult,
) -> OnnxResult:
    """Put the first candidate that passes into the staged bundle; `first` is the outcome of the first exporter.

    A cached graph that lies there already is checked on this build's cases first. Without a graph, the bundle ships the
    `fallback` alone if there is one and the manifest allows it. Raises `ExportFailed` if no exporter can express the
    model, and `ParityFailed`, with the first faulty node, if one can and its graph computes something else.
    """
    if cached is not None:
        rechecked = _recheck(context, model, cached, reference)
        if rechecked is not None:
            return rechecked
        traced = traced if traced.program else retrace(context, model, traced)
    stages: list[StageRecord] = []
    rejected = _reject_untraced(context, traced)
    order = list_exporters(context.project, traced.program)
    for exporter in order:
        if _is_pointless(exporter, rejected) or (exporter == "script" and _has_no_script(fallback)):
            continue
        if first is None or exporter != order[0]:
            candidate = export(context, model, traced, exporter)
            attempt = check_prepared(context, reference, prepare(context, candidate))
        else:
            attempt = first
        outcome = _settle(context, model, attempt, reference)
        if isinstance(outcome, ArtifactResult):
            return replace(outcome, stages=(*stages, *outcome.stages), outputs=model.outputs)
        label = attempt.candidate.exporter
        stages.append(StageRecord(f"export: {label}", False, outcome.verdict, outcome.cause, 0, 0, 0, 0, None))
        rejected.append((attempt.candidate, outcome))
        context.reporter.report_note(f"rejected {label}: {outcome.cause}")
    larger = _try_larger_trace(context, model, traced, rejected, reference)
    if larger is not None:
        return replace(larger, stages=(*stages, *larger.stages), outputs=model.outputs)
    if fallback.artifact is not None and not context.project.manifest.export.required:
        kind = "TorchScript" if isinstance(fallback.artifact, records.TorchScriptArtifact) else "an exported program"
        context.reporter.report_note(f"no ONNX model: the bundle ships {kind} alone (export.required is false)")
        return ArtifactResult(None, None, tuple(stages), outputs=model.outputs)
    raise make_error(context, model, rejected, reference, fallback)


def _try_larger_trace(
    context: BuildContext,
    model: EagerModel,
    traced: TracedModel,
    rejected: Sequence[tuple[Candidate, Rejection]],
    reference: Reference,
) -> OnnxResult | None:
    """Export a trace made at larger sizes if the one of the example is wrong; None if it is wrong too."""
    if not any(candidate.exporter == FROM_TRACE and outcome.verdict == "fail" for candidate, outcome in rejected):
        return None
    assert traced.program is not None
    program = retracing.trace_at_larger_sizes(context, model, traced.program)
    if program is None:
        return None
    candidate = export(context, model, replace(traced, program=program), "larger")
    outcome = _settle(context, model, check_prepared(context, reference, prepare(context, candidate)), reference)
    if isinstance(outcome, ArtifactResult):
        return outcome
    context.reporter.report_note(f"rejected {candidate.exporter}: {outcome.cause}")
    return None


def _is_pointless(exporter: Exporter, rejected: Sequence[tuple[Candidate, Rejection]]) -> bool:
    """Tell whether an exporter can only repeat what others gave.

    The graph of the module is that of its trace. A script has the operators of the trace, and cannot be exported if
    neither the trace nor the module could.
    """
    if exporter == "module":
        return any(candidate.exporter == FROM_TRACE and outcome.verdict == "fail" for candidate, outcome in rejected)
    traced = [candidate for candidate, _ in rejected if candidate.exporter in (FROM_TRACE, FROM_MODULE)]
    return exporter == "script" and all(candidate.failure is not None for candidate in traced)


def _recheck(context: BuildContext, model: EagerModel, cached: OnnxResult, reference: Reference) -> OnnxResult | None:
    """Check a cached graph on this build's cases; take it out of the staged bundle and return None if it fails."""
    if cached.outputs == model.outputs:  # else its graph names other dims
        parity = _check_staged(context, model, reference)
        if parity.passed:
            return replace(cached, parity=parity)
    discard_staged(context.writer)
    return None


def _reject_untraced(context: BuildContext, traced: TracedModel) -> list[tuple[Candidate, Rejection]]:
    """Return the candidates that there are none of, because there is no program to export them from."""
    if traced.program is not None or context.project.manifest.export.exporter == "torch-export":
        return []
    return [
        (Candidate(f"torchscript, from the {entry.form}"), Rejection("not-checked", entry.reason, entry.location))
        for entry in traced.failures
    ]


def _has_no_script(fallback: FallbackResult) -> bool:
    return any(entry.form == "script" and entry.verdict == "not-checked" for entry in fallback.left_out)


def _make_artifact_record(optimized: OptimizeResult, writer: BundleWriter) -> records.OnnxArtifact:
    summary = optimized.summary
    assert summary is not None
    data = None
    if summary.external_data:
        sha256, pieces = writer.digests[layout.ONNX_DATA], sha256_pieces(writer.folder / layout.ONNX_DATA)
        data = records.OnnxData(path=layout.ONNX_DATA, sha256=sha256, pieces=pieces)
    return records.OnnxArtifact(
        path=layout.ONNX,
        sha256=writer.digests[layout.ONNX],
        data=data,
        opset=summary.opset,
        ir_version=summary.ir_version,
        domains=dict(summary.domains),
        nodes=summary.nodes,
    )
