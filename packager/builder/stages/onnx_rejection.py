"""Explain why no graph ships: the first node at fault, the dim that is fixed, or what the exporters lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import FallbackResult, describe_left_out
from packager.builder.stages.onnx_export import Candidate
from packager.bundle import records
from packager.common.progress import StageName
from packager.errors import ExportFailed, ParityFailed, Problem
from packager.export.graph.messages import Verdict
from packager.parity.diagnosis.budget import DEFAULT_SECONDS, Budget
from packager.parity.diagnosis.diagnose import Diagnosis, ReproTarget, diagnose
from packager.parity.diagnosis.fixed_dims import find_fixed_dims
from packager.parity.results import Reference


@dataclass(frozen=True)
class Rejection:
    """Why a candidate does not ship. `verdict` is `fail` if it was compared and is wrong, else `not-checked`."""

    verdict: Verdict
    cause: str
    location: str | None = None


def make_error(
    context: BuildContext,
    model: EagerModel,
    rejected: Sequence[tuple[Candidate, Rejection]],
    reference: Reference,
    fallback: FallbackResult,
) -> ExportFailed | ParityFailed:
    """Return the error of a build without an ONNX model: `ParityFailed` if a graph was wrong, else `ExportFailed`."""
    project = context.project
    kind = "an exported program" if isinstance(fallback.artifact, records.ExportedProgramArtifact) else "TorchScript"
    alternative = f"export.required: false ships {kind} alone"
    if project.manifest.torchscript.method == "none":
        alternative = "torchscript.method: auto and export.required: false ship TorchScript alone"
    elif fallback.artifact is None:
        alternative = "export.required: false does not help, because no fallback is proven either"
    unique: dict[str, Problem] = {}  # the module often fails as its trace did
    for candidate, outcome in rejected:
        unique.setdefault(outcome.cause, _make_problem(candidate, outcome))
    problems = list(unique.values())
    fixed: Mapping[str, int] = {}
    if any(outcome.verdict == "fail" for _, outcome in rejected):
        with context.reporter.stage(StageName.WHERE):
            fixed = _find_fixed_dims(context, rejected, reference)
            if not fixed:
                problems = _diagnose_rejections(context, model, rejected, reference)
    problems += _list_fallback_problems(fallback, problems)
    verdicts = {outcome.verdict for _, outcome in rejected} | {entry.verdict for entry in fallback.left_out}
    if "fail" in verdicts:
        flows = [candidate.specialized for candidate, _ in rejected]
        lines = [line for flow in flows for line in flow.user_lines]
        lines += [line for entry in fallback.left_out for line in entry.frozen_lines]
        if fixed:
            lines += [line for flow in flows for line in flow.library_lines]
        sizes = [f"{dim} is {size}" for dim, size in fixed.items()]
        rounded = [line for flow in flows for line in flow.rounded_size_lines]
        return ParityFailed(problems, alternative, frozen_branches=lines, fixed_sizes=sizes, rounded_sizes=rounded)
    return ExportFailed(project.field_location("export"), problems, alternative)


def _list_fallback_problems(fallback: FallbackResult, problems: Sequence[Problem]) -> list[Problem]:
    """Return why there is no fallback, without the causes that kept the same program from being exported."""
    if fallback.artifact is not None:
        return []
    known = "\n".join(problem.message for problem in problems)
    return [
        Problem(f"fallback: {describe_left_out([entry])}", entry.location)
        for entry in fallback.left_out
        if entry.reason not in known
    ]


def _find_fixed_dims(
    context: BuildContext, rejected: Sequence[tuple[Candidate, Rejection]], reference: Reference
) -> Mapping[str, int]:
    """Return the dims at one size of which alone the first wrong graph is right: no node of it is at fault."""
    providers = context.project.manifest.target.providers
    jobs = [candidate.job for candidate, outcome in rejected if outcome.verdict == "fail"]
    job = next(job for job in jobs if job is not None)
    return find_fixed_dims(job.exported, reference.reference_cases, providers)


def _diagnose_rejections(
    context: BuildContext, model: EagerModel, rejected: Sequence[tuple[Candidate, Rejection]], reference: Reference
) -> list[Problem]:
    """Locate the first faulty node of each wrong graph, and write a reproduction of the first that has one.

    All searches together end within the default time, unless the build is asked to diagnose.
    """
    request, problems = context.request, []
    seconds = None if request.options.diagnose else DEFAULT_SECONDS
    budget = Budget(seconds, partial(context.reporter.report_step, StageName.WHERE))
    folder = Path("repro") / request.name
    target: ReproTarget | None = ReproTarget(
        request.output.parent / folder, str(request.displayed_output.parent / folder)
    )
    for candidate, outcome in rejected:
        if outcome.verdict != "fail" or candidate.job is None:
            problems.append(_make_problem(candidate, outcome))
            continue
        diagnosis = diagnose(
            context.project, model.loaded.module, candidate.job.exported, reference.reference_cases, target, budget
        )
        problems.append(_make_problem(candidate, outcome, diagnosis))
        target = None if diagnosis.has_repro else target
    return problems


def _make_problem(candidate: Candidate, outcome: Rejection, diagnosis: Diagnosis | None = None) -> Problem:
    message = f"{candidate.exporter}: {outcome.cause}"
    if diagnosis is None:
        return Problem(message, outcome.location)
    return Problem(f"{message}\n{diagnosis.text}", outcome.location or diagnosis.location)
