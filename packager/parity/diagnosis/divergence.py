"""Find where two runs that should compute the same diverge: the first operation that differs. numpy only.

The reference is right, the suspect is wrong in one of its outputs, and both are known as activations
(`packager.parity.diagnosis.activations`). Three steps, each a module:

    matching       which values of the two runs are equal
    soundness      which values are therefore right, and which are the first that are not
    substitution   which value of the suspect should have been the reference's first unsound value
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from packager.parity.diagnosis import matching, soundness
from packager.parity.diagnosis.activations import Activations
from packager.parity.diagnosis.budget import UNLIMITED, Budget, OutOfTime
from packager.parity.diagnosis.run_pair import Divergence, RunPair, Substitute
from packager.parity.diagnosis.soundness import MATCH_RULES, MatchRule
from packager.parity.diagnosis.substitution import find_by_substitution


def find_divergence(
    reference: Activations,
    suspect: Activations,
    output: str,
    substitute: Substitute,
    rule: MatchRule = "all",
    budget: Budget = UNLIMITED,
) -> Divergence | None:
    """Find where the suspect diverges from the reference on the way to `output`, in which it is wrong.

    `substitute` runs the suspect with some values replaced, `substitution.MAX_SUBSTITUTIONS` times at most. Returns
    None if the reference does not compute the output from its inputs. Raises `OutOfTime`, with the suspect's values of
    which one is the first wrong one.
    """
    expected_output = reference.outputs.get(output)
    if expected_output is None:
        return None
    suspect_output = suspect.outputs[output]
    to_suspect, to_reference = matching.match_values(reference, suspect, budget)
    if suspect_output in to_suspect[expected_output]:  # within the tolerance of an inner value, but not of an output
        to_suspect[expected_output].remove(suspect_output)
        to_reference[suspect_output].remove(expected_output)
    off: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    if rule == "unlike":
        off = matching.find_near_misses(reference, suspect, budget)
    whole = rule == "whole"
    left = soundness.classify(reference, to_suspect, to_reference, off[0] | {expected_output}, whole=whole)
    right = soundness.classify(suspect, to_reference, to_suspect, off[1] | {suspect_output}, whole=whole)
    pair = RunPair(left, right, expected_output, suspect_output, substitute, budget)
    first = next((index for index in right.find_ancestors(suspect_output) if right.is_first_unsound(index)), None)
    targets = [index for index in left.find_ancestors(expected_output) if left.is_first_unsound(index)]
    if first is None:  # all that the suspect computes is right, and one more operation should have followed
        return pair.miss_after(suspect_output, targets[0] if targets else expected_output, ())
    try:
        return _confirm(pair, first, targets, partial(budget.report, f"comparison {MATCH_RULES.index(rule) + 1}"))
    except OutOfTime:
        ancestors = right.find_ancestors(suspect_output)
        raise OutOfTime(tuple(index for index in ancestors if not right.sound[index])) from None


def _confirm(pair: RunPair, first: int, targets: list[int], report: Callable[[str], None]) -> Divergence:
    """Find by substitution what the first wrong value of the suspect, `first`, should have been.

    `targets` are the first unsound values of the reference. If no substitution helps, everything from there to the
    output is at fault. `report` is called with the substitution that is under way, and raises `OutOfTime`.
    """
    left, inputs = pair.reference, _find_matches_of_inputs(pair.suspect, first)
    # The target that shares the most inputs with the first wrong value; the earliest, if several do.
    target = max(
        targets,
        key=lambda index: len(inputs & set(left.find_matched_ancestors(index)[0])),
        default=pair.expected_output,
    )
    confirmed = find_by_substitution(pair, first, target, report)
    return confirmed or pair.diverge_at(pair.suspect_output, pair.expected_output)


def _find_matches_of_inputs(suspect: soundness.ClassifiedRun, index: int) -> set[int]:
    """Find the reference's values that match the inputs of a value."""
    return {match for read in suspect.find_matched_ancestors(index)[0] for match in suspect.matches[read]}
