"""Do two arrays lead to the same decisions? What is done with scores: the largest, an order. numpy only.

Scores that agree to six digits may still rank two classes the other way round, where those are tied. A decision
that changes counts against an artifact, except where the scores it hangs on are nearer to each other than the
noise of both sides: those are ties.

    argmax         the index of the largest          classification, segmentation
    top-K          the set of the K largest          retrieval, classification
    rank           the whole order                   ranking
    threshold T    which elements are above T        detection scores, several labels
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packager.parity.numerics.compare import Array, ElementTolerance

RULE_PATTERN = r"^(argmax|rank|top-[1-9][0-9]{0,5}|threshold -?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?)$"


Scores = NDArray[np.float64]


@dataclass(frozen=True)
class DecisionRule:
    """What is decided by an output along an axis, and the share of its limit within which two scores are tied."""

    rule: str
    axis: int
    tie: float


@dataclass(frozen=True)
class DecisionAgreement:
    """How many decisions were compared, how many agreed, and how many others hang on a tie."""

    rule: str
    compared: int
    agreed: int
    ties: int

    @property
    def changed(self) -> int:
        """Decisions that changed and hang on no tie."""
        return self.compared - self.agreed - self.ties

    def merge(self, other: DecisionAgreement) -> DecisionAgreement:
        """These decisions and those of one more case."""
        compared, agreed = self.compared + other.compared, self.agreed + other.agreed
        return DecisionAgreement(self.rule, compared, agreed, self.ties + other.ties)


class AxisMissing(Exception):
    """The output has no such axis."""


def compare_decisions(
    expected: Array, actual: Array, tolerance: ElementTolerance, decision: DecisionRule
) -> DecisionAgreement:
    """Compare the decisions of two float arrays of one shape. Raises `AxisMissing`.

    Where a NaN is among the scores of a decision, it is not compared: the numbers themselves are.
    """
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    slack = decision.tie * (tolerance.atol + tolerance.rtol * np.abs(np.where(np.isfinite(left), left, 0.0)))
    if decision.rule.startswith("threshold"):
        return _compare_threshold(left, right, slack, decision.rule)
    if not -left.ndim <= decision.axis < left.ndim:
        raise AxisMissing(f"it has {left.ndim} axes, and no axis {decision.axis}")
    if left.size == 0:
        return DecisionAgreement(decision.rule, 0, 0, 0)
    left, right, slack = (
        np.moveaxis(one, decision.axis, -1).reshape(-1, one.shape[decision.axis]) for one in (left, right, slack)
    )
    known = ~(np.isnan(left) | np.isnan(right)).any(axis=1)
    same, tied = _compare_order(left[known], right[known], slack[known], decision.rule)
    return DecisionAgreement(decision.rule, int(known.sum()), int(same.sum()), int((tied & ~same).sum()))


def _compare_threshold(left: Scores, right: Scores, slack: Scores, rule: str) -> DecisionAgreement:
    threshold = float(rule.split()[1])
    known = ~(np.isnan(left) | np.isnan(right))
    same = (left > threshold) == (right > threshold)
    tied = np.abs(left - threshold) <= slack
    return DecisionAgreement(rule, int(known.sum()), int((same & known).sum()), int((tied & ~same & known).sum()))


def _compare_order(
    left: Scores, right: Scores, slack: Scores, rule: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each row of scores, the largest first: whether the decision is the same, and whether it hangs on ties.

    Put into the order that `right` has, the scores of `left` would fall. They are tied where none stands behind
    one that is smaller by more than the slack of both.
    """
    count = left.shape[1]
    first = count if rule == "rank" else 1 if rule == "argmax" else min(count, int(rule.removeprefix("top-")))
    ours, theirs = (np.argsort(-one, axis=1, kind="stable") for one in (left, right))
    if rule == "rank":
        same = (ours == theirs).all(axis=1)
    else:
        same = (np.sort(ours[:, :first], axis=1) == np.sort(theirs[:, :first], axis=1)).all(axis=1)
    most, least = (np.take_along_axis(one, theirs, axis=1) for one in (left + slack, left - slack))
    if rule == "rank":
        tied = (least <= np.minimum.accumulate(most, axis=1)).all(axis=1)
    else:  # the order among the first, and among the others, decides nothing
        others = least[:, first:].max(axis=1, initial=-np.inf)
        tied = np.asarray(others <= most[:, :first].min(axis=1, initial=np.inf))
    return same, np.asarray(tied)
