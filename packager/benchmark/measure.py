"""Measure variants in rounds, so that noise hits all of them alike.

In every round each variant has one turn, a few milliseconds of calls one after the other. The order rotates from round
to round, and is reversed after each full rotation, so that no variant always comes first or follows the same one.
The rounds end with the time: a difference that shows in most of many rounds is one, and a burst of load is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from packager.benchmark.messages import BackendName, Turn
from packager.benchmark.plan import Case, Plan
from packager.benchmark.processes import MeasuringProcess, NotMeasurable
from packager.errors import InferenceFailed

MIN_ROUNDS = 8  # fewer give no interval: see packager.benchmark.statistics
_AIMED_ROUNDS = 25
_MAX_TURN_SECONDS = 0.1
_WARM_UP_CALLS = 3  # TorchScript optimizes in the second
_SHORT_CALL_SECONDS = 2.0  # a call that is not skipped, however little time there is

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Variant:
    """One way to predict: a backend with a number of threads, on a case, which is an index into the plan's."""

    backend: BackendName
    threads: int
    case: int


@dataclass(frozen=True)
class Measured:
    """The result of measuring: the durations of calls in nanoseconds, by round and then by variant.

    `skipped` are the variants that were not measured, with the reason.
    """

    rounds: tuple[dict[Variant, tuple[int, ...]], ...]
    seconds: float
    skipped: dict[Variant, str] = field(default_factory=dict)


def measure(
    processes: dict[BackendName, MeasuringProcess], plan: Plan, seconds: float, report_round: Report
) -> Measured:
    """Warm all variants up, then measure them in rounds for so many seconds.

    `report_round` is called with the number of the round that begins, and how many there may be. Raises the errors of
    packager that a call raises because the inputs do not fit.
    """
    skipped: dict[Variant, str] = {}
    variants = []
    for backend, process in processes.items():
        for threads in plan.threads:
            variants += _warm_up(process, backend, threads, plan.cases, seconds, skipped)
    if not variants:
        return Measured((), 0.0, skipped)
    turn_seconds = min(_MAX_TURN_SECONDS, seconds / len(variants) / _AIMED_ROUNDS)
    rounds: list[dict[Variant, tuple[int, ...]]] = []
    began = now = time.monotonic()
    longest = 0.0
    while variants and (not rounds or now + longest - began <= seconds):
        report_round(len(rounds) + 1, max(1, int(seconds / max(longest, 1e-9))) if rounds else _AIMED_ROUNDS)
        durations = {}
        for variant in order_round(variants, len(rounds)):
            try:
                turn = Turn(variant.case, variant.threads, turn_seconds)
                durations[variant] = processes[variant.backend].run_turn(turn)
            except (InferenceFailed, NotMeasurable) as error:
                skipped[variant] = _format_failure(error)
                variants.remove(variant)
        rounds.append(durations)
        longest, now = max(longest, time.monotonic() - now), time.monotonic()
    return Measured(tuple(rounds), now - began, skipped)


def order_round(variants: Sequence[Variant], number: int) -> list[Variant]:
    """Return the variants in the order of this round, which counts from 0."""
    start = number % len(variants)
    order = [*variants[start:], *variants[:start]]
    return order[::-1] if number // len(variants) % 2 else order


def _warm_up(
    process: MeasuringProcess,
    backend: BackendName,
    threads: int,
    cases: Sequence[Case],
    seconds: float,
    skipped: dict[Variant, str],
) -> list[Variant]:
    """Call each case a few times, the smallest first. Returns the variants that can be measured in the time.

    A case is skipped if a call would take over two seconds and an eighth of the time, to judge by the case before.
    """
    usable, elements, call_seconds = [], 0, 0.0
    for index, case in enumerate(cases):
        variant = Variant(backend, threads, index)
        size = sum(array.size for array in case.inputs.values())
        expected = call_seconds * size / max(elements, 1)
        if expected > max(_SHORT_CALL_SECONDS, seconds / MIN_ROUNDS):
            skipped[variant] = f"a call would take about {expected:.1f} s; give it more time with --seconds"
            continue
        try:
            calls = [process.run_turn(Turn(index, threads, 0.0))[0] for _ in range(_WARM_UP_CALLS)]
            call_seconds, elements = min(calls) / 1e9, size
        except (InferenceFailed, NotMeasurable) as error:
            skipped[variant] = _format_failure(error)
        else:
            usable.append(variant)
    return usable


def _format_failure(error: InferenceFailed | NotMeasurable) -> str:
    return f"{error.message}: {error.why}" if isinstance(error, InferenceFailed) else str(error)
