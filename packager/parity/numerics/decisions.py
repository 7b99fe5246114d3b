"""Compare the decisions that two arrays of scores lead to.

Scores that agree to six digits can still rank two classes the other way round, if those two are tied. So if the
manifest declares what an output is used for (`parity.decisions`), that decision is compared as well:

    argmax         the index of the largest score     classification, segmentation
    top-K          the set of the K largest           retrieval, classification
    rank           the whole order                    ranking
    threshold T    which scores are above T           detection, multi-label classification

A decision that changes counts against an artifact, except at a tie: the scores it depends on are closer to each other
than the noise of both sides. Each score has a slack of `tie` times its tolerance, so that with [low, high] = score ±
slack, two scores are tied if their intervals overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packager.parity.numerics.compare import Array, ElementTolerance

RULE_PATTERN = r"^(argmax|rank|top-[1-9][0-9]{0,5}|threshold -?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?)$"
"""A regular expression of the four rules; the manifest's and the evidence's schema contain it."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class DecisionRule:
    """The decision taken on an output: a rule of `RULE_PATTERN` and the axis along which the scores compete.

    Two scores are tied if they differ by at most `tie` times the sum of their tolerances. A threshold has no axis.
    """

    rule: str
    axis: int
    tie: float


@dataclass(frozen=True)
class DecisionAgreement:
    """How many decisions were compared, how many agreed, and how many disagreed because of a tie."""

    rule: str
    compared: int
    agreed: int
    ties: int

    @property
    def changed(self) -> int:
        """How many decisions disagreed, not counting ties."""
        return self.compared - self.agreed - self.ties

    def merge(self, other: DecisionAgreement) -> DecisionAgreement:
        """Add the counts of another test case."""
        compared, agreed = self.compared + other.compared, self.agreed + other.agreed
        return DecisionAgreement(self.rule, compared, agreed, self.ties + other.ties)


class AxisMissing(Exception):
    """The output lacks the axis along which the decision is taken."""


def compare_decisions(
    expected: Array, actual: Array, tolerance: ElementTolerance, decision: DecisionRule
) -> DecisionAgreement:
    """Compare the decisions of two float arrays of the same shape.

    With a threshold, every element is a decision. With the other rules, every row of scores along `decision.axis` is
    one. Decisions with a NaN among their scores are not counted: `compare` judges the NaN itself.

    Raises:
        AxisMissing: the arrays lack `decision.axis`.
    """
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    slack = decision.tie * (tolerance.atol + tolerance.rtol * np.abs(np.where(np.isfinite(left), left, 0.0)))
    if decision.rule.startswith("threshold"):
        return _compare_threshold(left, right, slack, decision.rule)
    if not -left.ndim <= decision.axis < left.ndim:
        raise AxisMissing(f"axis {decision.axis} is out of range for an output of rank {left.ndim}")
    if left.size == 0:
        return DecisionAgreement(decision.rule, 0, 0, 0)
    left, right, slack = (
        np.moveaxis(array, decision.axis, -1).reshape(-1, array.shape[decision.axis]) for array in (left, right, slack)
    )
    comparable = ~(np.isnan(left) | np.isnan(right)).any(axis=1)
    same, tied = _compare_order(left[comparable], right[comparable], slack[comparable], decision.rule)
    return DecisionAgreement(decision.rule, int(comparable.sum()), int(same.sum()), int((tied & ~same).sum()))


def _compare_threshold(left: Scores, right: Scores, slack: Scores, rule: str) -> DecisionAgreement:
    threshold = float(rule.split()[1])
    comparable = ~(np.isnan(left) | np.isnan(right))
    same = comparable & ((left > threshold) == (right > threshold))
    tied = comparable & ~same & (np.abs(left - threshold) <= slack)
    return DecisionAgreement(rule, int(comparable.sum()), int(same.sum()), int(tied.sum()))


def _compare_order(
    left: Scores, right: Scores, slack: Scores, rule: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare an order, row by row; the arguments have the shape (rows, scores).

    Returns two arrays of the shape (rows,): whether the decision is the same, and whether ties explain the difference.
    Ties explain it if the scores of `left`, put into the order of `right`, fall as they should but for the slack: no
    score is followed by one that is larger by more than the slack of both.
    """
    count = left.shape[1]
    first = count if rule == "rank" else 1 if rule == "argmax" else min(count, int(rule.removeprefix("top-")))
    left_order, right_order = (np.argsort(-scores, axis=1, kind="stable") for scores in (left, right))
    high, low = (np.take_along_axis(bound, right_order, axis=1) for bound in (left + slack, left - slack))
    if rule == "rank":
        same = (left_order == right_order).all(axis=1)
        tied = (low <= np.minimum.accumulate(high, axis=1)).all(axis=1)
    else:  # the order among the first K, and among the others, is no part of the decision
        same = (np.sort(left_order[:, :first], axis=1) == np.sort(right_order[:, :first], axis=1)).all(axis=1)
        largest_other = low[:, first:].max(axis=1, initial=-np.inf)
        tied = np.asarray(largest_other <= high[:, :first].min(axis=1, initial=np.inf))
    return same, np.asarray(tied)
