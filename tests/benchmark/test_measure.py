"""The order of the turns, and the calls of a turn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions

from packager.benchmark.measure import Variant, measure, order_round
from packager.benchmark.measuring_process import time_calls
from packager.benchmark.plan import Case, Plan
from packager.benchmark.processes import NotMeasurable
from packager.errors import InferenceFailed

CASES = tuple(Case(rows, {"batch": rows}, "zeros", {"x": np.zeros((rows, 4))}) for rows in (1, 10, 100))
PLAN = Plan("batch", CASES, (1, 2))


class ScriptedProcess:
    """A measuring process whose calls take a given time for each row, and that fails on one case after some turns."""

    def __init__(self, seconds_per_row=1e-3, failing_case=None, turns_before=0, error=None):
        self.turns = []
        self.seconds_per_row, self.failing_case, self.turns_before = seconds_per_row, failing_case, turns_before
        self.error = error or NotMeasurable("the process ended with SIGKILL")

    def run_turn(self, turn):
        self.turns.append(turn)
        if turn.case == self.failing_case and len(self.turns) > self.turns_before:
            raise self.error
        return (int(CASES[turn.case].rows * self.seconds_per_row * 1e9),)


def run(seconds=0.01, **processes):
    return measure(processes, PLAN, seconds, lambda number, of: None)


@given(st.integers(1, 20), st.integers(0, 100))
def test_every_variant_has_one_turn_in_a_round(count, number):
    assert sorted(order_round(range(count), number)) == list(range(count))


@given(st.integers(1, 12))
def test_every_variant_has_every_position_equally_often(count):
    rounds = [order_round(range(count), number) for number in range(2 * count)]
    for position in range(count):
        assert sorted(order[position] for order in rounds) == sorted([*range(count), *range(count)])


def test_no_variant_always_follows_the_same_one():
    rounds = [order_round(range(5), number) for number in range(10)]
    before = {order[order.index(0) - 1] for order in rounds if order[0] != 0}
    assert before == {1, 4}


def test_a_turn_without_time_is_one_call():
    calls = []
    assert len(time_calls(calls.append, {}, 0.0)) == len(calls) == 1


def test_the_first_call_of_a_turn_is_left_out_if_there_are_others():
    calls = []
    durations = time_calls(calls.append, {}, 0.01)
    assert len(durations) == len(calls) - 1 > 0
    assert min(durations) >= 0


def test_a_call_that_fails_ends_the_turn():
    with pytest.raises(KeyError):
        time_calls({}.__getitem__, ("absent",), 1.0)


def test_every_variant_of_every_backend_is_in_every_round():
    measured = run(onnx=ScriptedProcess(), eager=ScriptedProcess())
    variants = {Variant(name, threads, case) for name in ("onnx", "eager") for threads in (1, 2) for case in range(3)}
    assert len(measured.rounds) > 1 and all(set(durations) == variants for durations in measured.rounds)
    assert measured.skipped == {}
    assert {durations[Variant("onnx", 2, 1)] for durations in measured.rounds} == {(10_000_000,)}


def test_there_is_a_round_even_without_time_for_one():
    assert len(run(seconds=1e-9, onnx=ScriptedProcess()).rounds) == 1


def test_a_case_that_would_take_too_long_is_never_called():
    process = ScriptedProcess(seconds_per_row=0.3)  # 0.3 s, 3 s, and 30 s for the cases
    measured = run(onnx=process)
    skipped = {variant: reason for variant, reason in measured.skipped.items() if variant.threads == 1}
    assert set(skipped) == {Variant("onnx", 1, 1), Variant("onnx", 1, 2)}
    assert skipped[Variant("onnx", 1, 1)].startswith("a call would take about 3.0 s")
    assert {turn.case for turn in process.turns} == {0}


def test_a_slow_call_is_measured_if_there_is_time_for_enough_of_them():
    assert Variant("onnx", 1, 1) in run_one_round(ScriptedProcess(seconds_per_row=0.3), seconds=30.0)


def run_one_round(process, seconds):
    """Return the variants that are warm after the first round begins, without waiting for the time to pass."""
    begun = []

    class Begun(Exception):
        pass

    def stop(number, of):
        begun.append(number)
        raise Begun

    with pytest.raises(Begun):
        measure({"onnx": process}, PLAN, seconds, stop)
    return {Variant("onnx", turn.threads, turn.case) for turn in process.turns}


@pytest.mark.parametrize(
    "error", [NotMeasurable("the process ended with SIGKILL"), InferenceFailed("onnx", IndexError("7"))]
)
def test_a_case_that_fails_in_the_warm_up_or_later_is_skipped_and_the_others_go_on(error):
    for turns_before in (0, 25):
        measured = run(onnx=ScriptedProcess(failing_case=1, turns_before=turns_before, error=error))
        assert {variant.case for variant in measured.skipped} == {1}
        assert {variant.case for variant in measured.rounds[-1]} == {0, 2}
        mentions(measured.skipped[Variant("onnx", 1, 1)], "SIGKILL" if isinstance(error, NotMeasurable) else "7")
