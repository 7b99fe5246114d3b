"""Turn the durations of calls into percentiles, throughput, and comparisons that noise does not decide.

A comparison is between the medians of two variants in the same round, so that whatever slows the machine for a while
slows both. Its interval follows from ranks alone: the median of n ratios lies between the k-th smallest and the k-th
largest with a probability that the binomial distribution gives, whatever distribution the ratios have
(H. A. David, H. N. Nagaraja: Order Statistics, section 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

CONFIDENCE = 0.99


@dataclass(frozen=True)
class Summary:
    """The calls of one variant: milliseconds at three percentiles, and rows a second, one call after the other.

    A percentile is None if fewer than one call in the sample is expected to take longer.
    """

    calls: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    rows_per_second: float


@dataclass(frozen=True)
class Comparison:
    """How many times as fast one variant is as a second: the median of the ratios of all rounds.

    `low` and `high` enclose the true median with a probability of 99 %; None if there are fewer than 8 rounds.
    """

    ratio: float
    low: float | None
    high: float | None
    rounds: int

    @property
    def verdict(self) -> Literal["faster", "slower", "undecided"]:
        """Whether the first variant is faster or slower; undecided if the interval includes 1."""
        if self.low is not None and self.low > 1:
            return "faster"
        return "slower" if self.high is not None and self.high < 1 else "undecided"


def summarize(nanoseconds: Sequence[int], rows: int) -> Summary:
    """Summarize the durations of calls with so many rows each; there is at least one."""
    ordered = sorted(nanoseconds)
    seconds = sum(ordered) / 1e9
    return Summary(
        calls=len(ordered),
        p50_ms=median(ordered) / 1e6,
        p90_ms=_find_percentile(ordered, 90),
        p99_ms=_find_percentile(ordered, 99),
        rows_per_second=rows * len(ordered) / max(seconds, 1e-9),
    )


def compare(durations: Sequence[float], others: Sequence[float]) -> Comparison:
    """Compare two variants by their durations in the same rounds; there is at least one round.

    The ratio is above 1 if the first is faster.
    """
    ratios = sorted(other / max(duration, 1e-9) for duration, other in zip(durations, others, strict=True))
    rank = find_interval_rank(len(ratios))
    low, high = (ratios[rank - 1], ratios[-rank]) if rank else (None, None)
    return Comparison(median(ratios), low, high, len(ratios))


def find_interval_rank(count: int) -> int:
    """Return the largest k for which the k-th smallest and largest of `count` values enclose their median; else 0.

    They do so with a probability of at least 99 %: with fewer than k values below the median, or above, they do not.
    """
    tail, rank = 0, 0
    while rank < count and 2 * (tail + math.comb(count, rank)) <= (1 - CONFIDENCE) * 2**count:
        tail += math.comb(count, rank)
        rank += 1
    return rank


def _find_percentile(ordered: Sequence[int], percent: int) -> float | None:
    """Return the nearest-rank percentile of sorted nanoseconds in milliseconds; None if the sample is too small."""
    if len(ordered) * (100 - percent) < 100:
        return None
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] / 1e6
