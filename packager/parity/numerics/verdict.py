"""Check an artifact: run it on every test case, compare every output with PyTorch's, and reach one verdict.

The same function decides in `package build`, where the reference outputs come straight from PyTorch, and in
`package verify`, where they come from the bundle's evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from packager.parity.numerics.compare import Array, ElementTolerance, ErrorMetrics, ShapesDiffer, compare
from packager.parity.numerics.decisions import DecisionAgreement, DecisionRule, compare_decisions

CaseNoise = Mapping[str, Mapping[str, float]]
"""How far evaluations of the module are from its outputs on one test case: a relative difference by output name and by
evaluation (`packager.parity.noise_variants`)."""

ArtifactRunner = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Runs an artifact on arrays by input name and returns arrays by output name."""


@dataclass(frozen=True)
class ReferenceCase:
    """One test case to run an artifact on, with the outputs it has to match.

    `inputs` are arrays by input name; `outputs` are PyTorch's by output name, in the module's own dtypes; `tolerances`
    are by output name. `sizes` are those of the named dims. `float64_outputs` are the float outputs of the module run
    in float64, if it was: the artifact has to match both. `decisions` are the rules of outputs whose use is declared.
    """

    name: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerances: Mapping[str, ElementTolerance]
    sizes: Mapping[str, int] = field(default_factory=dict)
    float64_outputs: Mapping[str, Array] = field(default_factory=dict)
    decisions: Mapping[str, DecisionRule] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputErrors:
    """The errors of one output over all test cases: see `ErrorMetrics`.

    Each is the largest of all cases, but `cosine` is the smallest and `mismatched_nonfinite` the sum.
    `error_over_limit_float64` is the largest error / tolerance against the float64 outputs; None if there are none.
    """

    max_abs: float
    max_rel: float
    rms: float
    cosine: float
    mismatched_nonfinite: int
    error_over_limit: float
    error_over_limit_float64: float | None = None

    @property
    def within_tolerance(self) -> bool:
        """Whether every element of every case is within its tolerance, of PyTorch's and of the float64 outputs."""
        return (
            self.mismatched_nonfinite == 0
            and self.error_over_limit <= 1.0
            and (self.error_over_limit_float64 or 0.0) <= 1.0
        )

    def merge(self, metrics: ErrorMetrics, float64_metrics: ErrorMetrics | None = None) -> OutputErrors:
        """Add the errors of another test case."""
        error_over_limit_float64 = self.error_over_limit_float64
        if float64_metrics is not None:
            error_over_limit_float64 = max(error_over_limit_float64 or 0.0, float64_metrics.error_over_limit)
        return OutputErrors(
            max(self.max_abs, metrics.max_abs),
            max(self.max_rel, metrics.max_rel),
            max(self.rms, metrics.rms),
            min(self.cosine, metrics.cosine),
            self.mismatched_nonfinite + metrics.mismatched_nonfinite,
            max(self.error_over_limit, metrics.error_over_limit),
            error_over_limit_float64,
        )


@dataclass(frozen=True)
class WorstElement:
    """The element with the largest error / tolerance, over all test cases and outputs."""

    case: str
    output: str
    index: tuple[int, ...]
    expected: float | int | bool
    actual: float | int | bool
    error_over_limit: float


@dataclass(frozen=True)
class ParityResult:
    """The verdict on one artifact, with the errors behind it by output name.

    `reason` says why the artifact failed; it is empty if it passed. `worst` is None if no element was compared.
    `loaded` is False if the artifact could not even be loaded, so that nothing was compared. `failed_cases` are those
    whose values were not within their tolerances, and `remeasured` the noise of those that were measured a second time
    (`packager.parity.amendments`).
    """

    passed: bool
    reason: str
    outputs: Mapping[str, OutputErrors]
    worst: WorstElement | None
    decisions: Mapping[str, DecisionAgreement] = field(default_factory=dict)
    loaded: bool = True
    failed_cases: tuple[str, ...] = ()
    remeasured: Mapping[str, CaseNoise] = field(default_factory=dict)


def check_parity(run: ArtifactRunner, reference_cases: Iterable[ReferenceCase]) -> ParityResult:
    """Run an artifact on every test case and compare every output.

    Names and their order, dtypes and shapes must match exactly; the first case where they do not ends the check.
    Whatever `run` raises is passed on.

    Raises:
        AxisMissing: an output lacks the axis of its decision.
    """
    errors: dict[str, OutputErrors] = {}
    agreements: dict[str, DecisionAgreement] = {}
    worst: WorstElement | None = None
    failed: dict[str, None] = {}
    for case in reference_cases:
        actual = run(case.inputs)
        if list(actual) != list(case.outputs):
            reason = f"outputs {list(actual)}, expected {list(case.outputs)}"
            return ParityResult(False, f"case {case.name}: {reason}", errors, worst)
        for name, expected in case.outputs.items():
            try:
                metrics = _compare_output(case, name, actual[name])
            except ShapesDiffer as difference:
                reason = f"case {case.name}{_format_sizes(case)}, output {name}: {difference}"
                return ParityResult(False, reason, errors, worst)
            errors[name] = errors.get(name, OutputErrors(0.0, 0.0, 0.0, 1.0, 0, 0.0)).merge(*metrics)
            worst = _pick_worst(worst, case.name, name, metrics)
            if not all(errors_of_case.within_tolerance for errors_of_case in metrics):
                failed[case.name] = None
            if name in case.decisions:
                agreement = compare_decisions(expected, actual[name], case.tolerances[name], case.decisions[name])
                agreements[name] = agreements[name].merge(agreement) if name in agreements else agreement
    # Without a case, an output or an element there is no proof, so there is no pass.
    if worst is None or not all(output_errors.within_tolerance for output_errors in errors.values()):
        return ParityResult(False, _describe_worst(worst), errors, worst, agreements, failed_cases=tuple(failed))
    changed = [
        f"{name}: {agreement.changed} of {agreement.compared} decisions ({agreement.rule}) changed, not counting ties"
        for name, agreement in agreements.items()
        if agreement.changed
    ]
    return ParityResult(not changed, "; ".join(changed), errors, worst, agreements)


def _compare_output(case: ReferenceCase, name: str, actual: Array) -> tuple[ErrorMetrics, ...]:
    """Compare an output with PyTorch's, and with the float64 output if there is one. Raises `ShapesDiffer`."""
    tolerance = case.tolerances[name]
    metrics = compare(case.outputs[name], actual, tolerance)
    if name not in case.float64_outputs:
        return (metrics,)
    return metrics, compare(case.float64_outputs[name], actual.astype(np.float64), tolerance)


def _pick_worst(
    worst: WorstElement | None, case: str, output: str, metrics: Iterable[ErrorMetrics]
) -> WorstElement | None:
    for errors in metrics:
        element = errors.worst
        if element is not None and (worst is None or errors.error_over_limit > worst.error_over_limit):
            worst = WorstElement(case, output, element.index, element.expected, element.actual, errors.error_over_limit)
    return worst


def _format_sizes(case: ReferenceCase) -> str:
    """Return ` (batch=3 length=5)`, to show which dim a wrong shape does not follow; empty without named dims."""
    return f" ({' '.join(f'{name}={size}' for name, size in case.sizes.items())})" if case.sizes else ""


def _describe_worst(worst: WorstElement | None) -> str:
    if worst is None:
        return "no element was compared"
    element = f"{worst.output}[{', '.join(str(index) for index in worst.index)}] in case {worst.case}"
    times = f", {worst.error_over_limit:.3g} times the limit" if math.isfinite(worst.error_over_limit) else ""
    return f"{element}: PyTorch gives {worst.expected!r}, the artifact {worst.actual!r}{times}"
