"""Choose the test cases on which noise is measured.

Evaluating a module in other ways costs more than a forward pass, float64 four times as much, so not every test case
gets every evaluation. Noise grows with size, so the largest affordable cases are chosen. It also depends on the values.
Constant ones come last: their noise says little about that of others (an image of zeros has ten times the noise of a
random one in a ResNet-50 with two classes, and none in an EfficientNetV2). One case of every other kind of values is
added, for a cheaper evaluation. What is left out is made up for by `packager.parity.remeasurement`: no artifact fails
on a test case that was not evaluated in every way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packager.parity.cases.sample_grid import Grid, InputCase

MAX_ROWS = 8
"""The largest batch that is evaluated row by row: every row costs a forward pass."""

FLOAT64_PRICE, SERIAL_PRICE, PLAIN_PRICE = 4, 2, 4
"""What an evaluation costs in forward passes: in float64, on one thread, and with torch's own kernels."""

_MAX_CASES = 64


@dataclass(frozen=True)
class NoiseCases:
    """The test cases on which noise is measured.

    `float64_cases` run in float64 and with onnxruntime's functions; there is at least one. `serial_cases` run on one
    thread: the first of them, if it is cheap enough. The first of `batch_cases` whose rows can stand alone runs row by
    row. `other_kind_cases` have kinds of values that none of `float64_cases` has, and run once, in one other way.
    """

    float64_cases: tuple[InputCase, ...]
    serial_cases: tuple[InputCase, ...]
    batch_cases: tuple[InputCase, ...]
    plain_cases: tuple[InputCase, ...]
    other_kind_cases: tuple[InputCase, ...]

    def all_cases(self) -> list[InputCase]:
        """Return every case once."""
        every = (*self.float64_cases, *self.batch_cases, *self.plain_cases, *self.other_kind_cases)
        return list({case.name: case for case in every}.values())


def choose_noise_cases(grid: Grid, estimate: Callable[[InputCase], float], budget: float) -> NoiseCases:
    """Choose the cases of a grid whose evaluations fit the budget; `estimate` returns the cost of a forward pass.

    Half of the budget is for float64, and an eighth for each of the other ways. The smallest of example and probe
    always runs in float64.
    """
    small = min((grid.probe_case, grid.example_case), key=_size_key)
    largest = sorted(grid.cases, key=lambda case: (not case.is_constant, *_size_key(case)), reverse=True)
    chosen = _choose_affordable(largest, estimate, budget / 2 / FLOAT64_PRICE)[:_MAX_CASES] or [small]
    batches = [case for case in chosen if _has_few_rows(case)] or [grid.example_case]
    smallest = min((*(case for case in batches if _has_few_rows(case)), chosen[0]), key=_size_key)
    others = _choose_other_kinds(grid.cases, chosen)
    return NoiseCases(
        tuple(chosen),
        tuple(_choose_affordable(chosen[:1], estimate, budget / 8 / SERIAL_PRICE)),
        tuple(_choose_affordable(batches, estimate, budget / 8)),
        tuple(_choose_affordable([smallest], estimate, budget / 8 / PLAIN_PRICE)),
        tuple(_choose_affordable(others, estimate, budget / 8 / PLAIN_PRICE)),
    )


def _choose_affordable(
    cases: Sequence[InputCase], estimate: Callable[[InputCase], float], budget: float
) -> list[InputCase]:
    """Return the cases that fit the budget together, in the order given."""
    chosen = []
    for case in cases:
        if estimate(case) <= budget:
            budget -= estimate(case)
            chosen.append(case)
    return chosen


def _choose_other_kinds(cases: Sequence[InputCase], measured: Sequence[InputCase]) -> list[InputCase]:
    """Choose the smallest case of every kind of values that is not among those measured."""
    seen = {kind for case in measured for kind in _get_value_kinds(case)}
    chosen = []
    for case in sorted(cases, key=_size_key):
        if not seen.issuperset(_get_value_kinds(case)):
            seen.update(_get_value_kinds(case))
            chosen.append(case)
    return chosen


def _get_value_kinds(case: InputCase) -> tuple[str, ...]:
    return case.value_kinds or (case.value_description,)  # the user's own data are a kind of their own


def _has_few_rows(case: InputCase) -> bool:
    first = next(iter(case.inputs.values()))
    return first.ndim > 0 and 2 <= len(first) <= MAX_ROWS


def _size_key(case: InputCase) -> tuple[int, str]:
    return case.element_count, case.name
