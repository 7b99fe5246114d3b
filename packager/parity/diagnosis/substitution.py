"""Confirm a divergence by substitution: put the reference's value into the suspect, and see what it makes right.

The first unsound value of the suspect is where it goes wrong, and that of the reference is what it should have
computed there. It is unknown which later value of the suspect stands for the latter. So the reference's value is put
in the place of one after the other: where the values computed from it match again, it belongs. Then the operations
up to there are wrong, and those after it are right. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from packager.parity.diagnosis.matching import finite_rms, has_type_of, is_distinctive, matches, rms_difference
from packager.parity.diagnosis.run_pair import Divergence, RunPair
from packager.parity.numerics.compare import Array

_MAX_CANDIDATES, _MAX_NEIGHBORS = 14, 2  # places for the right value; inputs of the first wrong value
MAX_SUBSTITUTIONS = _MAX_CANDIDATES + 2 * _MAX_NEIGHBORS
"""The most substitutions that are tried, each of which runs the suspect once."""

_MIN_FIRST_CANDIDATES = 6  # of the candidates, those reserved for the first wrong value itself
_OUTPUT_MATCHED = 1 << 30  # more than any number of values
_MIN_MATCHED = 2  # one value may match by chance, as an activation function computes the same wherever it stands
_MAX_EXPECTED = 8  # values of the reference that are looked for in the suspect
_FAR_DISTANCE = 0.5  # relative to its size: an array this far away may be the one, but closer ones are tried first
_MAX_DEPENDENTS = 64  # values computed from a substituted one that are compared


@dataclass(frozen=True)
class _Attempt:
    """A possible divergence, and the substitution that would confirm it.

    `array` replaces the suspect's value `index` for its `readers`, or for all if there are none. It is right if values
    computed from it then match some of the reference's values `expected`.
    """

    divergence: Divergence
    index: int
    array: Array
    readers: tuple[int, ...]
    expected: Sequence[int]


def find_by_substitution(pair: RunPair, first: int, target: int, report: Callable[[str], None]) -> Divergence | None:
    """Find the divergence whose correction makes the output right, or else the most of the values computed from it.

    `first` is the first unsound value of the suspect, `target` that of the reference. Returns None if no correction
    makes enough values right. `report` is called before each run of the suspect.
    """
    best, most = None, 0
    for number, attempt in enumerate(_iter_attempts(pair, first, target), start=1):
        report(f"substitution {number} of at most {MAX_SUBSTITUTIONS}")
        matched = _count_matched(pair, attempt)
        if matched > most:
            best, most = attempt.divergence, matched
        if most == _OUTPUT_MATCHED:
            break
    return replace(best, confirmed=True) if best is not None and most >= _MIN_MATCHED else None


def _iter_attempts(pair: RunPair, first: int, target: int) -> Iterator[_Attempt]:
    """Iterate over at most `MAX_SUBSTITUTIONS` attempts, the likeliest first."""
    yield from _iter_extra(pair, first, target)
    array = pair.reference.activations.values[target].array
    if array is None or target == pair.expected_output:
        return
    candidates = _list_candidates(pair, first, target)
    for_target = [candidate for candidate in candidates if candidate[0] == target][:_MIN_FIRST_CANDIDATES]
    others = [candidate for candidate in candidates if candidate not in for_target]
    yield from (_make_attempt(pair, *candidate) for candidate in for_target)
    yield from _iter_missing(pair, first, target, array)
    for candidate in others[: _MAX_CANDIDATES - _MIN_FIRST_CANDIDATES]:
        yield _make_attempt(pair, *candidate)


def _iter_extra(pair: RunPair, first: int, target: int) -> Iterator[_Attempt]:
    """Iterate over attempts to skip the operation of the first wrong value, which the reference may lack."""
    reference, value = pair.reference.activations.values, pair.suspect.activations.values[first]
    matched = [read for read in value.input_indices if pair.suspect.matches[read]]
    for read in matched[:_MAX_NEIGHBORS]:
        match = pair.suspect.matches[read][0]
        array = reference[match].array
        if array is not None and has_type_of(value, array):
            extra = Divergence(first, {read: match}, (first,), match, is_extra=True, next_index=target)
            yield _Attempt(extra, first, array, (), range(len(reference)))


def _iter_missing(pair: RunPair, first: int, target: int, array: Array) -> Iterator[_Attempt]:
    """Iterate over attempts to insert the reference's `target` before the first wrong value."""
    values, expected = pair.suspect.activations.values, pair.reference.find_descendants(target)
    reads = [read for read in values[first].input_indices if has_type_of(values[read], array)]
    for read in reads[:_MAX_NEIGHBORS]:
        readers = tuple(reader for reader in pair.suspect.readers[read] if not pair.suspect.sound[reader])
        yield _Attempt(pair.miss_after(read, target, readers), read, array, readers, expected)


def _make_attempt(pair: RunPair, expected: int, index: int) -> _Attempt:
    """Attempt to put the reference's value `expected` in the place of the suspect's value `index`."""
    array = pair.reference.activations.values[expected].array
    assert array is not None
    return _Attempt(pair.diverge_at(index, expected), index, array, (), pair.reference.find_descendants(expected))


def _list_candidates(pair: RunPair, first: int, target: int) -> list[tuple[int, int]]:
    """List unsound values of the reference from `target` on, with those of the suspect from `first` on for each.

    Of the reference more than `target` itself, because the suspect may compute two operations as one. In order, but
    pairs that are far apart come last. Raises `OutOfTime`.
    """
    after_first = {first, *pair.suspect.find_descendants(first)}
    suspects = [
        index
        for index in pair.suspect.find_ancestors(pair.suspect_output)
        if index in after_first and not pair.suspect.sound[index]
    ]
    before_output = set(pair.reference.find_ancestors(pair.expected_output))
    expected = [
        index
        for index in (target, *pair.reference.find_descendants(target))
        if index in before_output and not pair.reference.sound[index]
    ]
    ranked = []
    for order, candidate in enumerate(expected[:_MAX_EXPECTED]):
        array = pair.reference.activations.values[candidate].array
        if array is None:
            continue
        for index in suspects:
            pair.budget.check()
            value = pair.suspect.activations.values[index]
            if value.array is not None and has_type_of(value, array):
                distance = rms_difference(array, value.array) / (finite_rms(array) or 1.0)
                ranked.append((distance > _FAR_DISTANCE, order, distance, candidate, index))
    return [(candidate, index) for *_, candidate, index in sorted(ranked)]


def _count_matched(pair: RunPair, attempt: _Attempt) -> int:
    """Count the values that a substitution makes match; `_OUTPUT_MATCHED` if the output is one of them."""
    values, suspect = pair.reference.activations.values, pair.suspect
    if attempt.index == pair.suspect_output and not attempt.readers:
        return _OUTPUT_MATCHED if matches(values[pair.expected_output], attempt.array) else 0
    expected = [values[index] for index in attempt.expected if not pair.reference.sound[index]]
    dependents = [index for index in suspect.find_descendants(attempt.index) if not suspect.sound[index]]
    requested = sorted({*dependents[:_MAX_DEPENDENTS], pair.suspect_output})
    count = 0
    for index, actual in pair.substitute({attempt.index: attempt.array}, attempt.readers, requested).items():
        if index == pair.suspect_output and matches(values[pair.expected_output], actual):
            return _OUTPUT_MATCHED
        count += is_distinctive(actual) and any(matches(value, actual) for value in expected)
    return count
