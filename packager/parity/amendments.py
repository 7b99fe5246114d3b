"""Amend a reference by what a second measurement showed, and check artifacts against the amended one.

Noise is measured on a few test cases, and the tolerances of the others follow from those. So a case on which an
artifact fails is evaluated in every way first (`packager.parity.remeasurement`). If the module's own arithmetic is as
uncertain there, the tolerance follows from that; if it is so uncertain that the case proves nothing, the case is left
out. An artifact that still fails is wrong.

What was measured is kept with the parity of the artifact, and the reference itself stays as it is: it is cached, and
must not depend on which artifacts were compared with it. Imports neither torch nor onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.tolerances import MAX_TOLERANCE_SHARE, NOISE_MULTIPLE
from packager.parity.numerics.verdict import CaseNoise, ParityResult, ReferenceCase
from packager.parity.results import OutputNoise, Reference


def check_again(
    failed: ParityResult,
    reference_cases: Sequence[ReferenceCase],
    check: Callable[[Sequence[ReferenceCase]], ParityResult],
    remeasure: Callable[[ReferenceCase], CaseNoise],
) -> ParityResult:
    """Evaluate the cases on which an artifact failed in every way, and check it again, the cheapest case first.

    `failed` is the result of `check` on `reference_cases`. Returns it, with what was measured, if the artifact is wrong
    on one of its cases after all, or if more than half of the cases would be left out.
    """
    remeasured: dict[str, CaseNoise] = {}
    for case in sorted(reference_cases, key=lambda case: (_count_elements(case), case.name)):
        if case.name not in failed.failed_cases:
            continue
        remeasured[case.name] = remeasure(case)
        amended = amend_case(case, remeasured[case.name])
        if amended is not None and not check([amended]).passed:
            return replace(failed, remeasured=remeasured)
    kept = amend_cases(reference_cases, remeasured)
    if not remeasured:
        return failed
    parity = check(kept) if 2 * len(kept) >= len(reference_cases) else failed
    return replace(parity if parity.passed else failed, remeasured=remeasured)


def amend_case(case: ReferenceCase, noise: CaseNoise) -> ReferenceCase | None:
    """Widen the tolerances of a case to its own noise; None if it is so large that the case proves nothing."""
    tolerances = dict(case.tolerances)
    for name, differences in noise.items():
        floor = max(differences.values(), default=0.0)
        if is_too_large(floor):
            return None
        rtol = max(tolerances[name].rtol, NOISE_MULTIPLE * floor)
        tolerances[name] = ElementTolerance(max(tolerances[name].atol, rtol * get_scale(case.tolerances[name])), rtol)
    return replace(case, tolerances=tolerances)


def amend_cases(cases: Sequence[ReferenceCase], remeasured: Mapping[str, CaseNoise]) -> list[ReferenceCase]:
    """Amend the cases that were measured again, without those that prove nothing."""
    amended = (amend_case(case, remeasured[case.name]) if case.name in remeasured else case for case in cases)
    return [case for case in amended if case is not None]


def amend_reference(reference: Reference, remeasured: Mapping[str, CaseNoise]) -> Reference:
    """Return the reference with those cases amended that were measured again, and notes on those left out."""
    kept = amend_cases(reference.reference_cases, remeasured)
    names = {case.name for case in kept}
    notes = tuple(
        describe_uncertain_case(case.name, case.value_description, remeasured[case.name])
        for case in reference.cases
        if case.name not in names
    )
    noise = {
        name: _amend_noise(output_noise, [by_output[name] for case, by_output in remeasured.items() if case in names])
        for name, output_noise in reference.noise.items()
    }
    return replace(
        reference,
        reference_cases=tuple(kept),
        cases=tuple(case for case in reference.cases if case.name in names),
        noise=noise,
        uncompared=(*reference.uncompared, *notes),
    )


def describe_uncertain_case(name: str, values: str, noise: CaseNoise) -> str:
    """Say why a case is left out: the output and the evaluation with the largest difference."""
    output, difference, evaluation = find_largest_noise({name: noise})
    start = f"case {name} ({values}): the module's own arithmetic is uncertain there; {output}"
    if math.isinf(difference):
        return f"{start} is zero, NaN or infinite in only one of two evaluations: as it is, or {evaluation}"
    return f"{start} differs by {difference:.2g} of its magnitude against {evaluation}"


def find_largest_noise(noise: Mapping[str, CaseNoise]) -> tuple[str, float, str]:
    """Return the output with the largest relative difference on any case, the difference, and its evaluation."""
    difference, output, evaluation = max(
        (difference, output, evaluation)
        for by_output in noise.values()
        for output, by_evaluation in by_output.items()
        for evaluation, difference in by_evaluation.items()
    )
    return output, difference, evaluation


def is_too_large(noise: float) -> bool:
    """Return whether a noise floor is so large that its tolerance would prove nothing."""
    return NOISE_MULTIPLE * noise >= MAX_TOLERANCE_SHARE


def get_scale(tolerance: ElementTolerance) -> float:
    """Return the scale that a measured tolerance was derived with."""
    return tolerance.atol / tolerance.rtol if tolerance.rtol else 0.0


def _amend_noise(noise: OutputNoise, differences: Sequence[Mapping[str, float]]) -> OutputNoise:
    parts = dict(noise.parts)
    for by_evaluation in differences:
        for evaluation, difference in by_evaluation.items():
            parts[evaluation] = max(difference, parts.get(evaluation, 0.0))
    return replace(noise, parts=parts, relative=max([noise.relative, *parts.values()]))


def _count_elements(case: ReferenceCase) -> int:
    return sum(array.size for array in case.inputs.values())
