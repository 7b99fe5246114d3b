"""Choose the test cases on which noise is measured.

Evaluating a module in float64 costs several times as much as in float32, so not every test case gets every evaluation.
Noise grows with size, so the largest affordable cases are chosen. It also depends on the values (an image of zeros had
ten times the noise of a random one, in a ResNet-50 with two classes), so one case of every other kind of values is
added, for a cheaper evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packager.parity.cases.sample_grid import Grid, InputCase

MAX_ROWS = 8
"""The largest batch that is evaluated row by row: every row costs a forward pass."""

_MAX_CASES = 64
_MAX_CASES_LARGE_MODEL = 8
_LARGE_PARAMETERS = 1 << 20
_MAX_INPUT_ELEMENTS = 1 << 19  # of all cases together
_MAX_EXAMPLES = 64  # all cases together in multiples of the example, which is small
_FEW_INPUT_ELEMENTS = 1 << 16  # cheap in any case; an example with more counts as a large input


@dataclass(frozen=True)
class NoiseCases:
    """The test cases on which noise is measured.

    `float64_cases` run in float64, and the first of them on one thread; there is at least one. The first of
    `batch_cases` whose rows can stand alone runs row by row. `other_kind_cases` have kinds of values that none of
    `float64_cases` has, and run once, in the cheapest way.
    """

    float64_cases: tuple[InputCase, ...]
    batch_cases: tuple[InputCase, ...]
    other_kind_cases: tuple[InputCase, ...]

    def all_cases(self) -> list[InputCase]:
        """Return every case once."""
        every = (*self.float64_cases, *self.batch_cases, *self.other_kind_cases)
        return list({case.name: case for case in every}.values())


def choose_noise_cases(grid: Grid, parameters: int) -> NoiseCases:
    """Choose the cases of a grid for a module with this many parameters.

    For large inputs, one small case runs in float64. Otherwise the largest affordable cases do, with one that has few
    rows among them.
    """
    if grid.example_case.element_count > _FEW_INPUT_ELEMENTS:
        small = sorted((grid.probe_case, grid.example_case), key=_size_key)
        chosen, batches = small[:1], [case for case in small if _has_few_rows(case)]
    else:
        chosen = _choose_largest(grid, parameters)
        if not any(_has_few_rows(case) for case in chosen):
            chosen.append(grid.example_case)  # it is small, and its batch is 2 where the manifest allows it
        batches = chosen
    return NoiseCases(tuple(chosen), tuple(batches), tuple(_choose_other_kinds(grid.cases, chosen)))


def _choose_largest(grid: Grid, parameters: int) -> list[InputCase]:
    """Choose the largest cases whose inputs fit the budget together, the largest first."""
    budget = min(_MAX_INPUT_ELEMENTS, max(_FEW_INPUT_ELEMENTS, _MAX_EXAMPLES * grid.example_case.element_count))
    most = _MAX_CASES if parameters <= _LARGE_PARAMETERS else _MAX_CASES_LARGE_MODEL
    chosen: list[InputCase] = []
    elements = 0
    for case in sorted(grid.cases, key=_size_key, reverse=True):
        if elements + case.element_count <= budget and len(chosen) < most:
            chosen.append(case)
            elements += case.element_count
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
