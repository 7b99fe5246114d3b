"""Two runs side by side, the reference and the suspect, and the divergence between them. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from packager.parity.diagnosis.budget import Budget
from packager.parity.diagnosis.soundness import ClassifiedRun
from packager.parity.numerics.compare import Array

Substitute = Callable[[Mapping[int, Array], Sequence[int], Sequence[int]], Mapping[int, Array]]
"""Run the suspect with some values replaced: (arrays by index, the readers that get them or () for all, the indices
of the values to return) → those values."""


@dataclass(frozen=True)
class Divergence:
    """Where two runs diverge; indices point into the suspect's values, unless said otherwise.

    `suspect_index` is the value that is wrong. `matched_inputs` are the right values that it is computed from, each
    with the reference's index of the same value, and `path` the values in between, in order, itself included.
    `expected_index` is the reference's index of the value that it should be.

    If `is_extra`, the suspect applies an operation that the reference lacks: the value should be its own input, which
    is `expected_index`, on the way to `next_index` (of the reference). If `is_missing`, it lacks an operation: the
    value is right, but its `readers` should read `expected_index` instead, which the suspect does not compute.

    `confirmed` tells that putting the expected value in its place makes later values right.
    """

    suspect_index: int
    matched_inputs: Mapping[int, int]
    path: tuple[int, ...]
    expected_index: int
    is_extra: bool = False
    is_missing: bool = False
    readers: tuple[int, ...] = ()
    next_index: int | None = None
    confirmed: bool = False


@dataclass(frozen=True)
class RunPair:
    """The reference with its right output, the suspect with its wrong one, how to run it again, and for how long."""

    reference: ClassifiedRun
    suspect: ClassifiedRun
    expected_output: int
    suspect_output: int
    substitute: Substitute
    budget: Budget

    def diverge_at(self, index: int, expected: int) -> Divergence:
        """Make the divergence in which the suspect's value `index` should be the reference's value `expected`."""
        matched, path = self.suspect.find_matched_ancestors(index)
        return Divergence(index, matched, path, expected)

    def miss_after(self, index: int, expected: int, readers: tuple[int, ...]) -> Divergence:
        """Make the divergence in which `readers` of the suspect's value `index` should read `expected` instead."""
        matches = self.suspect.matches[index]
        matched, path = ({index: matches[0]}, ()) if matches else self.suspect.find_matched_ancestors(index)
        return Divergence(index, matched, path, expected, is_missing=True, readers=readers)
