"""Count what happens to the requests of one model, in the terms of Triton's statistics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from packager.serving.jobs import Job

_MAX_SIZES = 1000
"""Different batches that are counted each by itself: clients choose them."""


class RunTimes(NamedTuple):
    """The times of one run, in nanoseconds: when it started, when its inputs were joined, and when the model ended.

    `output` is how long its outputs took to split, and `executions` how often the model ran.
    """

    started: int
    joined: int
    ran: int
    output: int
    executions: int


class Statistics:
    """The counters of one version of a model; durations are in nanoseconds and counted once for each request."""

    __slots__ = (
        "compute_infer", "compute_input", "compute_output", "executions", "fail_ns", "failures", "inferences",
        "invalid", "last_inference", "queue", "rejected", "runs_by_size", "success", "success_ns", "timed_out",
    )  # fmt: skip

    def __init__(self) -> None:
        self.success = 0
        self.success_ns = 0
        self.failures = 0
        self.fail_ns = 0
        self.invalid = 0
        self.rejected = 0
        self.timed_out = 0
        self.inferences = 0
        self.executions = 0
        self.queue = 0
        self.compute_input = 0
        self.compute_infer = 0
        self.compute_output = 0
        self.last_inference = 0
        self.runs_by_size: dict[int, list[int]] = {}
        """By the size of the batch: how many runs, and how long joining, running and splitting took."""

    def record_run(self, jobs: Sequence[Job], results: Sequence[object], times: RunTimes) -> None:
        """Add a run of jobs; those that have ended at their time limit are counted there."""
        count = len(jobs)
        now = time.perf_counter_ns()
        self.queue += times.started * count - sum([job.queued_at for job in jobs])
        self.compute_input += (times.joined - times.started) * count
        self.compute_infer += (times.ran - times.joined) * count
        self.compute_output += times.output * count
        size = 0
        for job, result in zip(jobs, results, strict=True):
            if job.finished:
                continue
            if isinstance(result, Exception):
                self.failures += 1
                self.fail_ns += now - job.queued_at
            else:
                self.success += 1
                self.success_ns += now - job.queued_at
                size += job.size
        if size:
            self.executions += times.executions
            self.inferences += size
            if size in self.runs_by_size or len(self.runs_by_size) < _MAX_SIZES:
                durations = (1, times.joined - times.started, times.ran - times.joined, times.output)
                sums = self.runs_by_size.get(size, (0, 0, 0, 0))
                self.runs_by_size[size] = [sum(pair) for pair in zip(sums, durations, strict=True)]
            self.last_inference = time.time_ns()
