"""Run the requests to one model: in order, joined along the batch dim, in worker threads, within limits.

Requests that wait are joined if all their dims but the batch dim are equal: nothing is padded. They were checked
before, so that one cannot fail the others; if a joined run fails all the same, each of its requests runs alone. While
one batch runs, the next one collects: under load, batches form without any delay.

Runs of so few elements that they took less than a thread switch is worth run in the thread of the event loop itself.
That is learnt from the runs so far. Apart from `_execute`, everything here happens in that thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from packager.serving.jobs import Arrays, Job
from packager.serving.messages import Rejected
from packager.serving.settings import Settings
from packager.serving.statistics import RunTimes, Statistics

Run = Callable[[Arrays], Arrays]

_QUICK_NS = 500_000
"""A run that is expected to take less time than this blocks the event loop: switching threads costs about a tenth."""

_RETURN_SHARE = 1 / 8
"""How long the next batch waits for the clients that were just answered, as a share of the time that their run took.

Clients that wait for each answer come back within a millisecond, but not all at once. Without the wait, the first one
would run alone, and those that follow would wait for a whole run. It ends as soon as an instance's share of the clients
waits; that of a single instance is half of them, so that it has work while the others come back.
"""


class Batcher:
    """The queue of one model. Requests with the same key are joined up to a batch of `largest`; None has no limit."""

    def __init__(self, run: Run, settings: Settings, statistics: Statistics, *, largest: int | None) -> None:
        self._run = run
        self._settings = settings
        self._statistics = statistics
        self._largest = largest
        self._groups: dict[object, deque[Job]] = {}
        self._waiting = 0
        self._running: list[Sequence[Job]] = []
        self._instances = settings.instances_or_default
        self._threads = ThreadPoolExecutor(self._instances, thread_name_prefix="packager-serving")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dispatch_scheduled = False
        self._delay_timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._quick_elements = 0
        self._returning = 0  # clients who were answered and may come back by `_return_time` of the event loop
        self._return_time = 0.0

    @property
    def pending(self) -> int:
        """The number of requests that wait or run."""
        return self._waiting + sum(map(len, self._running))

    def submit(self, job: Job) -> None:
        """Queue a job, and run it when its turn comes. Raises `Rejected`, 503, if the queue is full."""
        if self._waiting >= self._settings.max_queue:
            self._statistics.rejected += 1
            raise Rejected(503, "the queue of the model is full; try again", ((b"retry-after", b"1"),))
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        job.queued_at = time.perf_counter_ns()
        job.deadline = loop.time() + self._settings.time_limit
        key = job if job.key is None else job.key
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = deque((job,))
        else:
            group.append(job)
        self._waiting += 1
        self._returning = max(0, self._returning - 1)
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(self._sweep_interval, self._sweep)
        self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Dispatch once the event loop has read what arrived at the same time."""
        if not self._dispatch_scheduled and len(self._running) < self._instances:
            self._dispatch_scheduled = True
            loop.call_soon(self._dispatch, loop)

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._dispatch_scheduled = False
        if self._delay_timer is not None:
            self._delay_timer.cancel()
            self._delay_timer = None
        if self._waiting < self._count_share(loop, max(2, self._instances)) and loop.time() < self._return_time:
            self._delay_timer = loop.call_at(self._return_time, self._dispatch, loop)
            return
        while self._groups and len(self._running) < self._instances:
            jobs = self._take_batch(loop)
            if not jobs:
                return
            if _count_elements(jobs) <= self._quick_elements:
                self._finish(jobs, *self._execute(jobs))
                if self._groups:
                    self._schedule(loop)
                return
            self._running.append(jobs)
            self._threads.submit(self._work, jobs, loop)

    def _take_batch(self, loop: asyncio.AbstractEventLoop) -> list[Job]:
        """Remove the next jobs to run together from the queue; none if they had better wait for others.

        They are no more than the share of one instance: if one had nearly all, the few others would run many times
        before those had their answers.
        """
        key = next((key for key, group in self._groups.items() if self._is_due(group)), None)
        if key is None:
            self._wait_for_delay(loop)
            return []
        group = self._groups.pop(key)
        jobs = [group.popleft()]
        size, elements = jobs[0].size, jobs[0].elements
        share = self._count_share(loop, self._instances)
        while group and (self._largest is None or size + group[0].size <= self._largest):
            if len(jobs) >= share and elements > self._quick_elements:
                break
            jobs.append(group.popleft())
            size += jobs[-1].size
            elements += jobs[-1].elements
        self._waiting -= len(jobs)
        if group:
            self._groups[key] = group  # at the end: the others have their turn first
        return jobs

    def _count_share(self, loop: asyncio.AbstractEventLoop, parts: int) -> int:
        """Return the size of one of `parts` equal batches of all requests and of the clients who may come back."""
        returning = self._returning if loop.time() < self._return_time else 0
        return -(-(self.pending + returning) // parts)

    def _is_due(self, group: deque[Job]) -> bool:
        if not self._settings.batch_delay:
            return True
        waited = time.perf_counter_ns() - group[0].queued_at
        if group[0].key is None or waited >= self._settings.batch_delay * 1e9:
            return True
        return self._largest is not None and sum(job.size for job in group) >= self._largest

    def _wait_for_delay(self, loop: asyncio.AbstractEventLoop) -> None:
        """Dispatch again when the oldest job has waited for long enough."""
        oldest = min(group[0].queued_at for group in self._groups.values())
        waited = (time.perf_counter_ns() - oldest) / 1e9
        self._delay_timer = loop.call_later(max(0.0, self._settings.batch_delay - waited), self._dispatch, loop)

    # -- running ----------------------------------------------------------------------------

    def _work(self, jobs: Sequence[Job], loop: asyncio.AbstractEventLoop) -> None:
        """Run jobs in a worker thread, and pass the results to the event loop's."""
        results, times = self._execute(jobs)
        try:
            loop.call_soon_threadsafe(self._finish_work, jobs, results, times)
        except RuntimeError:  # the event loop was closed meanwhile: nobody waits for the results
            return

    def _finish_work(
        self,
        jobs: Sequence[Job],
        results: Sequence[Arrays | Exception],
        times: RunTimes,
    ) -> None:
        self._running.remove(jobs)
        self._finish(jobs, results, times)
        if self._loop is not None:
            now = self._loop.time()
            self._returning = len(jobs) + (self._returning if now < self._return_time else 0)
            self._return_time = now + _RETURN_SHARE * (times.ran - times.started) / 1e9
            if self._groups:
                self._schedule(self._loop)

    def _execute(self, jobs: Sequence[Job]) -> tuple[Sequence[Arrays | Exception], RunTimes]:
        """Run jobs joined, or each alone if that fails. Returns the result of each, and what took how long."""
        started = time.perf_counter_ns()
        if len(jobs) == 1:
            result = self._run_alone(jobs[0])
            return [result], RunTimes(started, started, time.perf_counter_ns(), 0, 1)
        inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}
        joined = time.perf_counter_ns()
        sizes = [job.size for job in jobs]
        try:
            outputs = self._run(inputs)
            ran = time.perf_counter_ns()
            results: Sequence[Arrays | Exception] = _split(outputs, sizes)
        except Exception:  # noqa: BLE001 (whatever it is, it is raised again for the request that causes it)
            results = [self._run_alone(job) for job in jobs]
            return results, RunTimes(started, joined, time.perf_counter_ns(), 0, len(jobs))
        return results, RunTimes(started, joined, ran, time.perf_counter_ns() - ran, 1)

    def _run_alone(self, job: Job) -> Arrays | Exception:
        try:
            return self._run(job.inputs)
        except Exception as error:  # noqa: BLE001 (it becomes the answer to this request)
            return error

    def _finish(self, jobs: Sequence[Job], results: Sequence[Arrays | Exception], times: RunTimes) -> None:
        self._learn_quickness(jobs, times)
        self._statistics.record_run(jobs, results, times)
        for job, result in zip(jobs, results, strict=True):
            job.finish(result)

    def _learn_quickness(self, jobs: Sequence[Job], times: RunTimes) -> None:
        elements = _count_elements(jobs)
        if times.ran - times.started < _QUICK_NS:
            self._quick_elements = max(self._quick_elements, elements)
        elif elements <= self._quick_elements:
            self._quick_elements = elements // 2

    # -- the time limit ---------------------------------------------------------------------

    @property
    def _sweep_interval(self) -> float:
        return min(1.0, self._settings.time_limit / 8)

    def _sweep(self) -> None:
        """End the jobs that are beyond their time limit. A run cannot be stopped, but nobody waits for it any more."""
        assert self._loop is not None
        self._sweep_timer = None
        now = self._loop.time()
        for job in (job for group in (*self._groups.values(), *self._running) for job in group):
            if job.deadline <= now and not job.finished:
                self._statistics.timed_out += 1
                job.finish(Rejected(504, f"the request took longer than {self._settings.time_limit:g} seconds"))
        groups = {key: deque(job for job in group if not job.finished) for key, group in self._groups.items()}
        self._groups = {key: group for key, group in groups.items() if group}
        self._waiting = sum(map(len, self._groups.values()))
        if self._groups or self._running:
            self._sweep_timer = self._loop.call_later(self._sweep_interval, self._sweep)


def _count_elements(jobs: Sequence[Job]) -> int:
    return sum([job.elements for job in jobs])


def _split(outputs: Arrays, sizes: Sequence[int]) -> Sequence[Arrays]:
    """Split the outputs of a joined run by the batch of each request. Raises ValueError if they do not add up."""
    if any(array.shape[0] != sum(sizes) for array in outputs.values()):
        raise ValueError("the outputs have a different batch than the inputs")
    results: list[Arrays] = []
    start = 0
    for size in sizes:
        results.append({name: array[start : start + size] for name, array in outputs.items()})
        start += size
    return results
