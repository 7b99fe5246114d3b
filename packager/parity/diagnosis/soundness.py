"""Classify the values of one run by the values that match in the other: which are certainly right. numpy only.

    matched    equals a value of the other run, within the tolerance
    sound      matched, or something matched was computed from it: the other run may lack its counterpart, because
               operators are split and merged differently, but it cannot have been wrong
    first      unsound, and computed from sound values only

How far a matched value vouches for those it was computed from is uncertain, because a small error may vanish in an
operation. So there are several `MATCH_RULES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from packager.parity.diagnosis.activations import INPUT_OPERATOR, Activations
from packager.parity.diagnosis.matching import is_distinctive

MatchRule = Literal["all", "unlike", "whole"]
MATCH_RULES: tuple[MatchRule, ...] = ("all", "unlike", "whole")
"""Which of the values that it was computed from a matched value vouches for. `all`: every one. `unlike`: those that
are not nearly like a value of the other run, because such a value should have matched it, and is off. `whole`: those
that it was not merely selected from."""

# Operators that take some elements and leave others: a right selection does not make its source right.
_SELECTION_ONNX = {"Compress", "Gather", "GatherElements", "GatherND", "MaxPool", "Slice", "Split", "TopK", "Where"}
_SELECTION_ATEN = {"chunk", "gather", "index", "index_select", "max_pool2d", "narrow", "select", "slice", "split"}
_SELECTION_OPERATORS = frozenset(_SELECTION_ONNX | _SELECTION_ATEN | {"split_with_sizes", "topk", "unbind", "where"})
_SHAPE_OPERATORS = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class ClassifiedRun:
    """One run, with the matches of each value in the other run, whether it is sound, and who reads it, by index."""

    activations: Activations
    matches: tuple[tuple[int, ...], ...]
    sound: tuple[bool, ...]
    readers: tuple[tuple[int, ...], ...]

    def is_first_unsound(self, index: int) -> bool:
        """Tell whether a value is unsound, and computed from sound values only."""
        return not self.sound[index] and all(self.sound[read] for read in self.activations.values[index].input_indices)

    def find_ancestors(self, index: int) -> list[int]:
        """List the values that a value is computed from, itself included, in order."""
        ancestors = {index}
        for earlier in range(index, -1, -1):
            if earlier in ancestors:
                ancestors.update(self.activations.values[earlier].input_indices)
        return sorted(ancestors)

    def find_descendants(self, index: int) -> list[int]:
        """List the values that are computed from a value, itself excluded, in order."""
        descendants = {index}
        for later in range(index, len(self.activations.values)):
            if later in descendants:
                descendants.update(self.readers[later])
        return sorted(descendants - {index})

    def find_matched_ancestors(self, index: int) -> tuple[dict[int, int], tuple[int, ...]]:
        """Find the nearest matched values that a value is computed from, with the first match of each.

        Returns the values on the way as well, the value itself included, in order.
        """
        matched: dict[int, int] = {}
        path: set[int] = set()
        waiting = [index]
        while waiting:
            current = waiting.pop()
            if current != index and self.matches[current]:
                matched[current] = self.matches[current][0]
            elif current not in path:
                path.add(current)
                waiting.extend(self.activations.values[current].input_indices)
        return dict(sorted(matched.items())), tuple(sorted(path))


def classify(
    activations: Activations,
    matches: Sequence[Sequence[int]],
    reverse_matches: Sequence[Sequence[int]],
    off: frozenset[int],
    *,
    whole: bool,
) -> ClassifiedRun:
    """Classify the values of a run by its matches in the other run, and by the other run's matches in it.

    Nothing vouches for the values `off`, unless they match. With `whole`, a selection does not vouch for its source.
    """
    values = activations.values
    readers: list[list[int]] = [[] for _ in values]
    for index, value in enumerate(values):
        for read in value.input_indices:
            readers[read].append(index)
    # A second match of the same value (x times a mask of ones) is right, but says nothing beyond the first.
    unique = [
        tuple(
            other for other in matches[index] if value.operator == INPUT_OPERATOR or reverse_matches[other][0] == index
        )
        for index, value in enumerate(values)
    ]
    vouched = [False] * len(values)  # seen to be right, in itself or in a value computed from it
    for index in reversed(range(len(values))):
        vouched[index] = bool(unique[index]) and is_distinctive(values[index].array)
        if not vouched[index] and (index not in off or matches[index]):
            vouched[index] = any(
                vouched[reader] and not (whole and values[reader].operator in _SELECTION_OPERATORS)
                for reader in readers[index]
            )
    # A shape computation counts as sound: if a shape is wrong, that shows in the array that gets it.
    shapes: list[bool] = []
    for value in values:
        reads = value.input_indices
        shapes.append(value.operator in _SHAPE_OPERATORS or (bool(reads) and all(shapes[read] for read in reads)))
    sound = (
        vouched[index]
        or bool(matches[index])
        or value.operator == INPUT_OPERATOR
        or (shapes[index] and index not in off)
        for index, value in enumerate(values)
    )
    return ClassifiedRun(activations, tuple(unique), tuple(sound), tuple(map(tuple, readers)))
