"""Check an artifact that failed a second time, after the noise of the module has been measured in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from packager.builder.context import BuildContext, EagerModel
from packager.common import process_memory
from packager.parity.amendments import check_again
from packager.parity.numerics.verdict import CaseNoise, ParityResult, ReferenceCase
from packager.parity.remeasurement import remeasure_case
from packager.parity.results import Reference
from packager.project.manifest import ExplicitTolerance


def check_twice(
    context: BuildContext,
    model: EagerModel,
    reference: Reference,
    check: Callable[[Sequence[ReferenceCase]], ParityResult],
    first: ParityResult | None = None,
) -> ParityResult:
    """Check an artifact on the reference; `first` is the result of `check` on it, if that is known already.

    If it fails because of its values, the noise is measured in every way on the cases concerned, and it is checked
    again; an explicit tolerance stands. Runs the module, so it is called in the main thread.
    """
    parity = check(reference.reference_cases) if first is None else first
    if parity.passed or not parity.failed_cases or has_explicit_tolerance(context):
        return parity
    remeasure = partial(remeasure_once, context, model, reference)
    parity = check_again(parity, reference.reference_cases, check, remeasure)
    process_memory.release_memory()
    return parity


def has_explicit_tolerance(context: BuildContext) -> bool:
    """Return whether the manifest gives the tolerance: then no measurement changes it."""
    return isinstance(context.project.manifest.parity.tolerance, ExplicitTolerance)


def remeasure_once(
    context: BuildContext, model: EagerModel, reference: Reference, expected: ReferenceCase
) -> CaseNoise:
    """Return the noise of a case of the reference in every way, measured the first time that this build asks for it."""
    if expected.name not in context.remeasured:
        case = next(case for case in reference.cases if case.name == expected.name)
        context.remeasured[case.name] = remeasure_case(context.project, model.loaded, case, expected)
    return context.remeasured[expected.name]
