"""Two runs that should compute the same, and do not: the first operation at which they part. numpy only.

`reference` is right, `suspect` is wrong in one of its outputs. Both are flows
(`packager.parity.diagnosis.activations`): all values
on the way. Names and scopes are not trusted, since every exporter and every pass has its own and gets some wrong.
Values are recognized by what they are:

    matched    a value that equals one of the other run, within the tolerance
    sound      a matched value, and one from which a matched value was computed: the run may lack its like, since
               operators are split up and put together differently, but wrong it was not
    first      an unsound value that is computed from sound ones only

How far a matched value vouches for what it was computed from is a matter of judgement, as a small error may vanish
behind an operation: there are several `RULES`, and the one is taken that finds least and is confirmed.

The first unsound value of the suspect is where it goes wrong, that of the reference is what it should have done
there. Which later value of the suspect stands for the latter is not known, and found by substitution: the
reference's value is put in its place, and where the values behind it match again, it was the place. So the
operations between are wrong, and those behind are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from packager.parity.diagnosis.activations import INPUT_OPERATOR, Activation, Activations, measure_typical_magnitude
from packager.parity.numerics.compare import Array, ElementTolerance, ErrorMetrics, ShapesDiffer, compare

_MAX_CANDIDATES, _MAX_NEIGHBORS = 14, 2  # places for the right value; values that the first wrong node reads
MAX_SUBSTITUTIONS = _MAX_CANDIDATES + 2 * _MAX_NEIGHBORS
"""So many places are tried at most, each a run of what lies behind it."""

MatchRule = Literal["all", "unlike", "whole"]
MATCH_RULES: tuple[MatchRule, ...] = ("all", "unlike", "whole")
"""For what a matched value vouches: for all that it was computed from; for what is unlike anything in the other run,
as what is nearly like something in it has its like, and is off; for what was not merely selected from."""

_MIN_FIRST_CANDIDATES = 6  # of the candidates, at least so many for the first wrong value itself
_OUTPUT_MATCHED = 1 << 30  # more than any number of values
_MIN_MATCHED = 2  # values made right: one may be by chance, as an activation does the same wherever it stands
_MAX_EXPECTED = 8  # values of the reference that are looked for in the suspect
_FAR_DISTANCE = 0.5  # of its own size: an array that is so far from another may be that one, but others come first
_MAX_DEPENDENTS = 64  # values behind a substitution
_SAMPLE_SIZE = 16  # elements that are looked at before whole arrays are compared
_NEAR_MISS = 0.01  # so far from another array, in its own size, an array is that one with an error
# What takes some elements and leaves others: that it is right says nothing of the value that it takes them from.
_SELECTION_ONNX = {"Compress", "Gather", "GatherElements", "GatherND", "MaxPool", "Slice", "Split", "TopK", "Where"}
_SELECTION_ATEN = {"chunk", "gather", "index", "index_select", "max_pool2d", "narrow", "select", "slice", "split"}
_SELECTION_OPERATORS = frozenset(_SELECTION_ONNX | _SELECTION_ATEN | {"split_with_sizes", "topk", "unbind", "where"})
_SHAPE_OPERATORS = frozenset({"Shape", "Size"})

Substitute = Callable[[Mapping[int, Array], Sequence[int], Sequence[int]], Mapping[int, Array]]
"""(values to put in place of the suspect's, the readers that get them or () for all, values wanted) → those values."""


@dataclass(frozen=True)
class Divergence:
    """Where two runs part.

    `end` is the suspect's value that is wrong, `begins` those that it is computed from and that are right, with the
    reference's value of each; `between` the values on the way from `begins` to `end`, in order, `end` included.
    `target` is the reference's value that `end` should be. With `extra` the suspect does something that the reference
    does not: `end` should be what it is computed from, which is `target`, on the way `towards` the next one. With
    `missing` it is the other way round: `end` is right, and `readers` should have read `target` instead, for which
    the suspect has no operation.
    `confirmed` says that `target` in its place makes values behind it right.
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


def find_divergence(
    reference: Activations, suspect: Activations, output: str, substitute: Substitute, rule: MatchRule = "all"
) -> Divergence | None:
    """Where the suspect parts from the reference on the way to `output`, which is wrong in it.

    None where the reference does not compute that output from its inputs. `substitute` runs the suspect with some
    values replaced, `SUBSTITUTIONS` times at most.
    """
    wanted = reference.outputs.get(output)
    if wanted is None:
        return None
    goal = suspect.outputs[output]
    to_suspect, to_reference = _match_values(reference, suspect)
    if goal in to_suspect[wanted]:  # it is only a little too far away for an output
        to_suspect[wanted].remove(goal)
        to_reference[goal].remove(wanted)
    off = _find_near_misses(reference, suspect) if rule == "unlike" else (frozenset[int](), frozenset[int]())
    left = _classify(reference, to_suspect, to_reference, off[0] | {wanted}, whole=rule == "whole")
    right = _classify(suspect, to_reference, to_suspect, off[1] | {goal}, whole=rule == "whole")
    two = _RunPair(left, right, wanted, goal, substitute)
    first = next((one for one in _find_ancestors(suspect, two.suspect_output) if _is_first_unsound(right, one)), None)
    targets = [one for one in _find_ancestors(reference, wanted) if _is_first_unsound(left, one)]
    if first is None:  # what the suspect computes is right, and one more operation should have followed
        return _make_missing(two, two.suspect_output, targets[0] if targets else wanted, ())
    targets.sort(key=lambda one: -len(_find_common_ancestors(left, one, right, first)))  # stable: else in order
    target = targets[0] if targets else wanted
    return _find_by_substitution(two, first, target) or _make_divergence(two, two.suspect_output, wanted)


def get_tolerance(value: Activation) -> ElementTolerance:
    """The limit of a value of the reference: what is exact in kind is exact.

    An element is judged on the scale of its own size and the lower quartile of its tensor's.
    """
    if value.array is None or value.array.dtype.kind not in "fc":
        return ElementTolerance(0.0, 0.0)
    return ElementTolerance(value.relative_tolerance * measure_typical_magnitude(value.array), value.relative_tolerance)


def compare_activation(expected: Activation, actual: Array | None) -> ErrorMetrics | None:
    """How far a value is from what it should be; None where the two have not one shape and dtype."""
    if expected.array is None or actual is None:
        return None
    try:
        return compare(expected.array, actual, get_tolerance(expected))
    except ShapesDiffer:
        return None


# -- which value is like which --------------------------------------------------------------


@dataclass(frozen=True)
class _MatchedRun:
    """One run, as far as the other one shows it: the values like each, which are sound, and who reads each."""

    activations: Activations
    matches: tuple[tuple[int, ...], ...]
    sound: tuple[bool, ...]
    readers: tuple[tuple[int, ...], ...]


def _match_values(reference: Activations, suspect: Activations) -> tuple[list[list[int]], list[list[int]]]:
    """For each value of the reference those of the suspect that equal it, and the other way round."""
    known: dict[tuple[str, tuple[int, ...]], list[tuple[int, NDArray[np.complex128]]]] = {}
    for place, value in enumerate(reference.values):
        if value.array is not None:
            key = (value.array.dtype.str, value.array.shape)
            known.setdefault(key, []).append((place, _sample(value.array)))
    to_suspect: list[list[int]] = [[] for _ in reference.values]
    to_reference: list[list[int]] = [[] for _ in suspect.values]
    for place, value in enumerate(suspect.values):
        if value.array is None:
            continue
        sample = _sample(value.array)
        for other, expected in known.get((value.array.dtype.str, value.array.shape), ()):
            if _samples_agree(expected, sample, get_tolerance(reference.values[other])):
                found = compare_activation(reference.values[other], value.array)
                if found is not None and found.within_tolerance:
                    to_suspect[other].append(place)
                    to_reference[place].append(other)
    return to_suspect, to_reference


def _find_near_misses(reference: Activations, suspect: Activations) -> tuple[frozenset[int], frozenset[int]]:
    """The values of each run that are nearly like one of the other: if they are not like any, they are off."""
    left, right = set(), set()
    for place, value in enumerate(reference.values):
        if value.array is None or not _is_distinctive(value.array):
            continue
        size = _finite_rms(value.array)
        for other, held in enumerate(suspect.values):
            if held.array is None or not _same_shape_and_dtype(held, value.array):
                continue
            if _rms_difference(_sample(value.array), _sample(held.array)) > 4 * _NEAR_MISS * size:
                continue
            if _rms_difference(value.array, held.array) <= _NEAR_MISS * size:
                left.add(place)
                right.add(other)
    return frozenset(left), frozenset(right)


def _sample(array: Array) -> NDArray[np.complex128]:
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLE_SIZE)].astype(np.complex128)


def _samples_agree(expected: NDArray[np.complex128], actual: NDArray[np.complex128], limit: ElementTolerance) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(actual - expected) <= limit.atol + limit.rtol * np.abs(expected)
    return bool(np.all(near | (actual == expected) | (np.isnan(actual) & np.isnan(expected))))


def _same_shape_and_dtype(value: Activation, array: Array) -> bool:
    return value.array is not None and value.array.shape == array.shape and value.array.dtype == array.dtype


# -- which value is sound -------------------------------------------------------------------


def _classify(
    flow: Activations,
    alike: Sequence[Sequence[int]],
    back: Sequence[Sequence[int]],
    never: frozenset[int],
    *,
    whole: bool,
) -> _MatchedRun:
    """`never` are values for which no other one vouches."""
    readers: list[list[int]] = [[] for _ in flow.values]
    for place, value in enumerate(flow.values):
        for read in value.input_indices:
            readers[read].append(place)
    # A second value like the same one (x times a mask of ones) is right, and tells of nothing but the first.
    alone = [
        tuple(one for one in alike[place] if value.operator == INPUT_OPERATOR or back[one][0] == place)
        for place, value in enumerate(flow.values)
    ]
    vouched = [False] * len(flow.values)  # that it is right is seen in it, or behind it
    for place in reversed(range(len(flow.values))):
        vouched[place] = bool(alone[place]) and _is_distinctive(flow.values[place].array)
        if not vouched[place] and (place not in never or alike[place]):
            vouched[place] = any(
                vouched[reader] and not (whole and flow.values[reader].operator in _SELECTION_OPERATORS)
                for reader in readers[place]
            )
    # A shape is what is computed from it: where one is wrong, it shows in the array that gets it.
    shapes: list[bool] = []
    for value in flow.values:
        reads = value.input_indices
        shapes.append(value.operator in _SHAPE_OPERATORS or (bool(reads) and all(shapes[one] for one in reads)))
    sound = (
        vouched[place]
        or bool(alike[place])
        or value.operator == INPUT_OPERATOR
        or (shapes[place] and place not in never)
        for place, value in enumerate(flow.values)
    )
    return _MatchedRun(flow, tuple(alone), tuple(sound), tuple(map(tuple, readers)))


def _is_distinctive(array: Array | None) -> bool:
    """Whether an array that equals another one does so for a reason: shapes, masks and zeros do so by chance."""
    if array is None or array.dtype.kind not in "fc" or array.size == 0:
        return False
    values = array.astype(np.complex128)
    finite = values[np.isfinite(values)]
    return bool(np.any(finite != np.round(finite)))


def _is_first_unsound(seen: _MatchedRun, place: int) -> bool:
    return not seen.sound[place] and all(seen.sound[one] for one in seen.activations.values[place].input_indices)


def _find_ancestors(flow: Activations, goal: int) -> list[int]:
    """What a value is computed from, and itself, in order."""
    found = {goal}
    for place in range(goal, -1, -1):
        if place in found:
            found.update(flow.values[place].input_indices)
    return sorted(found)


def _find_descendants(seen: _MatchedRun, place: int) -> list[int]:
    """What is computed from a value, in order."""
    found = {place}
    for one in range(place, len(seen.activations.values)):
        if one in found:
            found.update(seen.readers[one])
    return sorted(found - {place})


def _find_matched_ancestors(seen: _MatchedRun, place: int) -> tuple[dict[int, int], set[int]]:
    """The nearest matched values that a value is computed from, with what each is like; and all on the way to it."""
    begins: dict[int, int] = {}
    between: set[int] = set()
    waiting = [place]
    while waiting:
        one = waiting.pop()
        if one != place and seen.matches[one]:
            begins[one] = seen.matches[one][0]
        elif one not in between:
            between.add(one)
            waiting.extend(seen.activations.values[one].input_indices)
    return dict(sorted(begins.items())), between


def _find_common_ancestors(left: _MatchedRun, target: int, right: _MatchedRun, first: int) -> set[int]:
    begins, _ = _find_matched_ancestors(right, first)
    likes = {like for one in begins for like in right.matches[one]}
    return likes & set(_find_matched_ancestors(left, target)[0])


# -- which value of the suspect stands for that of the reference ----------------------------


@dataclass(frozen=True)
class _RunPair:
    """The reference and its right output, the suspect and its wrong one, and the way to run the suspect anew."""

    reference: _MatchedRun
    suspect: _MatchedRun
    expected_output: int
    suspect_output: int
    substitute: Substitute


def _find_by_substitution(two: _RunPair, first: int, target: int) -> Divergence | None:
    """The place at which the reference's value makes the output right, or else most of what lies behind it."""
    best, most = None, 0
    for parting, place, array, readers, behind in _iter_substitutions(two, first, target):
        made_right = _count_matched(two, place, array, readers, behind)
        if made_right > most:
            best, most = parting, made_right
        if most == _OUTPUT_MATCHED:
            break
    return replace(best, confirmed=True) if best is not None and most >= _MIN_MATCHED else None


def _iter_substitutions(
    two: _RunPair, first: int, target: int
) -> Iterator[tuple[Divergence, int, Array, tuple[int, ...], Sequence[int]]]:
    """What may be wrong, and the substitution that would show it: `SUBSTITUTIONS` at most, the likeliest first."""
    left, right = two.reference.activations.values, two.suspect.activations.values
    for read in [one for one in right[first].input_indices if two.suspect.matches[one]][:_MAX_NEIGHBORS]:
        like = two.suspect.matches[read][0]
        array = left[like].array
        if array is not None and _same_shape_and_dtype(right[first], array):
            extra = Divergence(first, {read: like}, (first,), like, is_extra=True, next_index=target)
            yield extra, first, array, (), range(len(left))
    array = left[target].array
    if array is None or target == two.expected_output:
        return
    pairs = _pair_candidates(two, first, target)
    itself = [pair for pair in pairs if pair[0] == target][:_MIN_FIRST_CANDIDATES]
    others = [pair for pair in pairs if pair not in itself][: _MAX_CANDIDATES - _MIN_FIRST_CANDIDATES]
    for expected, place in itself:
        yield _make_divergence(two, place, expected), place, array, (), _find_descendants(two.reference, expected)
    for place in [one for one in right[first].input_indices if _same_shape_and_dtype(right[one], array)][
        :_MAX_NEIGHBORS
    ]:
        readers = tuple(one for one in two.suspect.readers[place] if not two.suspect.sound[one])
        yield (
            _make_missing(two, place, target, readers),
            place,
            array,
            readers,
            _find_descendants(two.reference, target),
        )
    for expected, place in others:
        instead = left[expected].array
        assert instead is not None
        yield _make_divergence(two, place, expected), place, instead, (), _find_descendants(two.reference, expected)


def _pair_candidates(two: _RunPair, first: int, target: int) -> list[tuple[int, int]]:
    """Values of the reference from `target` on, and those of the suspect from `first` on that could be they.

    The suspect may have no like of `target` itself, where it does two operations as one. In order, but pairs that
    are far apart last.
    """
    behind = {first, *_find_descendants(two.suspect, first)}
    path = [
        one
        for one in _find_ancestors(two.suspect.activations, two.suspect_output)
        if one in behind and not two.suspect.sound[one]
    ]
    wanted = set(_find_ancestors(two.reference.activations, two.expected_output))
    expected = [
        one
        for one in (target, *_find_descendants(two.reference, target))
        if one in wanted and not two.reference.sound[one]
    ]
    found = []
    for order, one in enumerate(expected[:_MAX_EXPECTED]):
        array = two.reference.activations.values[one].array
        for place in path if array is not None else ():
            held = two.suspect.activations.values[place].array
            if (
                array is not None
                and held is not None
                and _same_shape_and_dtype(two.suspect.activations.values[place], array)
            ):
                apart = _rms_difference(array, held) / (_finite_rms(array) or 1.0)
                found.append((apart > _FAR_DISTANCE, order, apart, one, place))
    return [(one, place) for *_, one, place in sorted(found)]


def _rms_difference(one: Array, other: Array) -> float:
    with np.errstate(all="ignore"):
        return _finite_rms(one.astype(np.complex128) - other.astype(np.complex128))


def _finite_rms(array: Array) -> float:
    """Of the finite elements; infinite where there are none."""
    with np.errstate(all="ignore"):
        sizes = np.abs(array.astype(np.complex128))
        finite = sizes[np.isfinite(sizes)]
        return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else float("inf")


def _count_matched(two: _RunPair, place: int, array: Array, readers: Sequence[int], behind: Sequence[int]) -> int:
    """How many values the array in this place makes what the reference has `behind`; `_OUTPUT` if the output is one."""
    values = two.reference.activations.values
    if place == two.suspect_output and not readers:
        return _OUTPUT_MATCHED if _matches(values[two.expected_output], array) else 0
    expected = [one for one in behind if not two.reference.sound[one]]
    asked = [one for one in _find_descendants(two.suspect, place) if not two.suspect.sound[one]][:_MAX_DEPENDENTS]
    count = 0
    for one, actual in two.substitute({place: array}, readers, sorted({*asked, two.suspect_output})).items():
        if one == two.suspect_output and _matches(values[two.expected_output], actual):
            return _OUTPUT_MATCHED
        count += _is_distinctive(actual) and any(_matches(values[other], actual) for other in expected)
    return count


def _matches(expected: Activation, actual: Array) -> bool:
    if expected.array is None or not _same_shape_and_dtype(expected, actual):
        return False
    if not _samples_agree(_sample(expected.array), _sample(actual), get_tolerance(expected)):
        return False
    found = compare_activation(expected, actual)
    return found is not None and found.within_tolerance


def _make_missing(two: _RunPair, place: int, target: int, readers: tuple[int, ...]) -> Divergence:
    if two.suspect.matches[place]:
        return Divergence(place, {place: two.suspect.matches[place][0]}, (), target, is_missing=True, readers=readers)
    begins, between = _find_matched_ancestors(two.suspect, place)
    return Divergence(place, begins, tuple(sorted(between)), target, is_missing=True, readers=readers)


def _make_divergence(two: _RunPair, end: int, target: int) -> Divergence:
    begins, between = _find_matched_ancestors(two.suspect, end)
    return Divergence(end, begins, tuple(sorted(between)), target)
