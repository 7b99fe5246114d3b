"""Judge an artifact: run it on every case, compare every output, give one verdict. numpy only.

The same function judges during a build, where the expected outputs come straight from PyTorch,
and in `package verify`, where they come from the bundle's own evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from packager.parity.compare import Array, Distance, Limit, ShapesDiffer, compare

MULTIPLE = 16
"""An artifact may be this many noise floors away. Two evaluations that are each one floor from the
truth are two apart; the rest is for floors measured on few inputs. Real defects are hundreds away."""

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Expectation:
    """One case to replay: its inputs, what PyTorch gave, and the limit for each output."""

    case: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    limits: Mapping[str, Limit]


@dataclass(frozen=True)
class OutputErrors:
    """The largest errors of one output over all cases; `cosine` is the smallest."""

    max_abs: float
    max_rel: float
    rms: float
    cosine: float
    mismatched_nonfinite: int
    excess: float

    def joined(self, distance: Distance) -> OutputErrors:
        """These errors and those of one more case."""
        return OutputErrors(
            max(self.max_abs, distance.max_abs),
            max(self.max_rel, distance.max_rel),
            max(self.rms, distance.rms),
            min(self.cosine, distance.cosine),
            self.mismatched_nonfinite + distance.mismatched_nonfinite,
            max(self.excess, distance.excess),
        )


@dataclass(frozen=True)
class WorstElement:
    """The element nearest to its limit, or farthest beyond it, over all cases and outputs."""

    case: str
    output: str
    index: tuple[int, ...]
    expected: float | int | bool
    actual: float | int | bool
    excess: float


@dataclass(frozen=True)
class Judgement:
    """What was found; `reason` says in words why the verdict is fail, and is empty where it is pass."""

    passed: bool
    reason: str
    outputs: Mapping[str, OutputErrors]
    worst: WorstElement | None


def judge(run: Run, expectations: Iterable[Expectation]) -> Judgement:
    """Run every case and compare every output; stops at a case whose outputs cannot be set side by side."""
    errors: dict[str, OutputErrors] = {}
    worst: WorstElement | None = None
    for expectation in expectations:
        actual = run(expectation.inputs)
        if list(actual) != list(expectation.outputs):
            reason = f"outputs {list(actual)}, expected {list(expectation.outputs)}"
            return Judgement(False, f"case {expectation.case}: {reason}", errors, worst)
        for name, expected in expectation.outputs.items():
            try:
                distance = compare(expected, actual[name], expectation.limits[name])
            except ShapesDiffer as difference:
                return Judgement(False, f"case {expectation.case}, output {name}: {difference}", errors, worst)
            errors[name] = errors.get(name, OutputErrors(0.0, 0.0, 0.0, 1.0, 0, 0.0)).joined(distance)
            if distance.worst is not None and (worst is None or distance.excess > worst.excess):
                found = distance.worst
                worst = WorstElement(expectation.case, name, found.index, found.expected, found.actual, distance.excess)
    # No case, no output, or no element in any of them, proves nothing: that is not a pass.
    passed = worst is not None and all(one.mismatched_nonfinite == 0 and one.excess <= 1.0 for one in errors.values())
    return Judgement(passed, "" if passed else _say(worst), errors, worst)


def _say(worst: WorstElement | None) -> str:
    if worst is None:
        return "no element was compared"
    place = f"{worst.output}[{', '.join(str(one) for one in worst.index)}] in case {worst.case}"
    times = f", {worst.excess:.3g} times the limit" if math.isfinite(worst.excess) else ""
    return f"{place}: PyTorch gives {worst.expected!r}, the artifact {worst.actual!r}{times}"
