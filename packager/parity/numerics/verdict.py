"""Judge an artifact: run it on every case, compare every output, give one verdict. numpy only.

The same function judges during a build, where the expected outputs come straight from PyTorch,
and in `package verify`, where they come from the bundle's own evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from packager.parity.numerics.compare import Array, ElementTolerance, ErrorMetrics, ShapesDiffer, compare
from packager.parity.numerics.decisions import DecisionAgreement, DecisionRule, compare_decisions

ArtifactRunner = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class ReferenceCase:
    """One case to replay: its inputs, what PyTorch gave, and the limit for each output.

    `oracle` are the float outputs as the module gives them in float64, where it was run so: an artifact is held
    to both. `sizes` are those of the named dims; `decisions` are what some outputs are for.
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
    """The largest errors of one output over all cases; `cosine` is the smallest.

    `excess` is the largest error in terms of its limit, and `from_oracle` that against float64, where there is one.
    """

    max_abs: float
    max_rel: float
    rms: float
    cosine: float
    mismatched_nonfinite: int
    error_over_limit: float
    error_over_limit_float64: float | None = None

    def merge(self, distance: ErrorMetrics, float64_metrics: ErrorMetrics | None = None) -> OutputErrors:
        """These errors and those of one more case."""
        oracle = self.error_over_limit_float64
        if float64_metrics is not None:
            oracle = max(oracle or 0.0, float64_metrics.error_over_limit)
        return OutputErrors(
            max(self.max_abs, distance.max_abs),
            max(self.max_rel, distance.max_rel),
            max(self.rms, distance.rms),
            min(self.cosine, distance.cosine),
            self.mismatched_nonfinite + distance.mismatched_nonfinite,
            max(self.error_over_limit, distance.error_over_limit),
            oracle,
        )


@dataclass(frozen=True)
class WorstElement:
    """The element nearest to its limit, or farthest beyond it, over all cases and outputs."""

    case: str
    output: str
    index: tuple[int, ...]
    expected: float | int | bool
    actual: float | int | bool
    error_over_limit: float


@dataclass(frozen=True)
class ParityResult:
    """What was found; `reason` says in words why the verdict is fail, and is empty where it is pass.

    `loaded` is whether the artifact could be loaded: of one that cannot, nothing is known.
    """

    passed: bool
    reason: str
    outputs: Mapping[str, OutputErrors]
    worst: WorstElement | None
    decisions: Mapping[str, DecisionAgreement] = field(default_factory=dict)
    loaded: bool = True


def check_parity(run: ArtifactRunner, reference_cases: Iterable[ReferenceCase]) -> ParityResult:
    """Run every case and compare every output; stops at a case whose outputs cannot be set side by side."""
    errors: dict[str, OutputErrors] = {}
    decided: dict[str, DecisionAgreement] = {}
    worst: WorstElement | None = None
    for expectation in reference_cases:
        actual = run(expectation.inputs)
        if list(actual) != list(expectation.outputs):
            reason = f"outputs {list(actual)}, expected {list(expectation.outputs)}"
            return ParityResult(False, f"case {expectation.name}: {reason}", errors, worst)
        for name in expectation.outputs:
            try:
                distances = _compare_output(expectation, name, actual[name])
            except ShapesDiffer as difference:
                reason = f"case {expectation.name}{_format_sizes(expectation)}, output {name}: {difference}"
                return ParityResult(False, reason, errors, worst)
            errors[name] = errors.get(name, OutputErrors(0.0, 0.0, 0.0, 1.0, 0, 0.0)).merge(*distances)
            worst = _pick_worst(worst, expectation.name, name, distances)
            if name in expectation.decisions:
                found = _compare_output_decisions(expectation, name, actual[name])
                decided[name] = decided[name].merge(found) if name in decided else found
    # No case, no output, or no element in any of them, proves nothing: that is not a pass.
    if worst is None or not all(_is_within_tolerance(one) for one in errors.values()):
        return ParityResult(False, _describe_worst(worst), errors, worst, decided)
    changed = [f"{name}: {one.changed} of {one.compared} decisions ({one.rule}) changed, beside ties"
               for name, one in decided.items() if one.changed]  # fmt: skip
    return ParityResult(not changed, "; ".join(changed), errors, worst, decided)


def _compare_output(expectation: ReferenceCase, name: str, actual: Array) -> tuple[ErrorMetrics, ...]:
    """How far an output is from PyTorch's, and from float64's where there is one. Raises `ShapesDiffer`."""
    limit = expectation.tolerances[name]
    distance = compare(expectation.outputs[name], actual, limit)
    if name not in expectation.float64_outputs:
        return (distance,)
    return distance, compare(expectation.float64_outputs[name], actual.astype(np.float64), limit)


def _compare_output_decisions(expectation: ReferenceCase, name: str, actual: Array) -> DecisionAgreement:
    return compare_decisions(
        expectation.outputs[name], actual, expectation.tolerances[name], expectation.decisions[name]
    )


def _pick_worst(
    worst: WorstElement | None, case: str, name: str, distances: Iterable[ErrorMetrics]
) -> WorstElement | None:
    for one in distances:
        found = one.worst
        if found is not None and (worst is None or one.error_over_limit > worst.error_over_limit):
            worst = WorstElement(case, name, found.index, found.expected, found.actual, one.error_over_limit)
    return worst


def _is_within_tolerance(errors: OutputErrors) -> bool:
    return (
        errors.mismatched_nonfinite == 0
        and errors.error_over_limit <= 1.0
        and (errors.error_over_limit_float64 or 0.0) <= 1.0
    )


def _format_sizes(expectation: ReferenceCase) -> str:
    """` (batch=3 length=5)`: a dim that does not follow its input is told by them."""
    return f" ({' '.join(f'{name}={size}' for name, size in expectation.sizes.items())})" if expectation.sizes else ""


def _describe_worst(worst: WorstElement | None) -> str:
    if worst is None:
        return "no element was compared"
    place = f"{worst.output}[{', '.join(str(one) for one in worst.index)}] in case {worst.case}"
    times = f", {worst.error_over_limit:.3g} times the limit" if math.isfinite(worst.error_over_limit) else ""
    return f"{place}: PyTorch gives {worst.expected!r}, the artifact {worst.actual!r}{times}"
