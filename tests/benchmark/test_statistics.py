"""The laws of the figures: percentiles, throughput, and the interval of a comparison."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.benchmark.statistics import compare, find_interval_rank, summarize

DURATIONS = st.lists(st.integers(1, 10**9), min_size=1, max_size=300)


@given(DURATIONS)
def test_a_percentile_is_the_smallest_call_that_so_many_calls_do_not_exceed(nanoseconds):
    summary = summarize(nanoseconds, 1)
    for percent, value in ((90, summary.p90_ms), (99, summary.p99_ms)):
        if len(nanoseconds) * (100 - percent) < 100:
            assert value is None
        else:
            enough = math.ceil(len(nanoseconds) * percent / 100)
            assert value == min(n for n in nanoseconds if sum(m <= n for m in nanoseconds) >= enough) / 1e6


def test_a_percentile_that_hardly_any_call_exceeds_needs_enough_calls():
    assert [summarize([5] * count, 1).p90_ms is None for count in (9, 10)] == [True, False]
    assert [summarize([5] * count, 1).p99_ms is None for count in (99, 100)] == [True, False]


def test_throughput_counts_the_rows_of_all_calls():
    summary = summarize([1_000_000, 3_000_000], 8)
    assert (summary.calls, summary.p50_ms) == (2, 2.0)
    assert summary.rows_per_second == pytest.approx(16 / 0.004)


@pytest.mark.parametrize("count", range(1, 120))
def test_the_interval_is_the_narrowest_that_encloses_the_median_with_99_percent(count):
    def miss(rank):  # the median is outside the rank-th smallest and largest of `count` values
        return 2 * sum(Fraction(math.comb(count, below), 2**count) for below in range(rank))

    rank = find_interval_rank(count)
    assert miss(rank) <= Fraction(1, 100)
    assert miss(rank + 1) > Fraction(1, 100)


def test_fewer_than_eight_rounds_decide_nothing():
    few, enough = compare([1.0] * 7, [9.0] * 7), compare([1.0] * 8, [9.0] * 8)
    assert (few.ratio, few.low, few.high, few.verdict) == (9.0, None, None, "undecided")
    assert (enough.low, enough.high, enough.verdict) == (9.0, 9.0, "faster")


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=8, max_size=60))
def test_a_comparison_the_other_way_round_says_the_opposite(pairs):
    first, second = zip(*pairs, strict=True)
    forth, back = compare(first, second), compare(second, first)
    assert back.low == pytest.approx(1 / forth.high) and back.high == pytest.approx(1 / forth.low)
    assert forth.low <= forth.ratio <= forth.high
    assert {forth.verdict, back.verdict} in ({"faster", "slower"}, {"undecided"})


def simulate(generator, factor, rounds=25):
    """Return the durations of two variants, the second slower by a factor, on a machine with bursts of load."""
    load = np.where(generator.random(rounds) < 0.2, generator.uniform(2, 20, rounds), 1.0)
    return (load * scale * generator.lognormal(0, 0.02, rounds) for scale in (1.0, factor))


def test_noise_alone_is_not_called_a_difference():
    generator = np.random.default_rng(0)
    verdicts = [compare(*simulate(generator, 1.0)).verdict for _ in range(1000)]
    assert verdicts.count("undecided") >= 980  # 99 % are expected


def test_a_small_difference_is_called_one_although_bursts_of_load_are_far_larger():
    generator = np.random.default_rng(0)
    verdicts = [compare(*simulate(generator, 1.05)).verdict for _ in range(200)]
    assert verdicts.count("faster") >= 195
    assert "slower" not in verdicts
