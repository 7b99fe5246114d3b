"""Tasks beside the main thread: their results arrive, and an error of the main thread ends them."""

import threading
from concurrent.futures import CancelledError

import pytest

from packager.builder.background import Background
from packager.export.graph.messages import ExportedGraph, OptimizeJob
from packager.export.passes.worker import OnnxWorker

TIMEOUT = 20  # seconds, for tasks that would otherwise wait forever


def test_results_and_errors_of_tasks_arrive():
    with OnnxWorker() as worker, Background(worker) as background:
        power = background.submit(pow, 2, exp=5)
        failure = background.submit(int, "five")
        assert power.result(TIMEOUT) == 32
        with pytest.raises(ValueError, match="five"):
            failure.result(TIMEOUT)


def test_two_tasks_run_at_the_same_time():
    meeting = threading.Barrier(3)
    with OnnxWorker() as worker, Background(worker) as background:
        tasks = [background.submit(meeting.wait, TIMEOUT) for _ in range(2)]
        positions = [meeting.wait(TIMEOUT), *(task.result(TIMEOUT) for task in tasks)]
    assert sorted(positions) == [0, 1, 2]


def test_the_block_ends_after_its_tasks_even_if_nobody_asks_for_their_results():
    finished = []
    with OnnxWorker() as worker, Background(worker) as background:
        for number in range(5):
            background.submit(finished.append, number)
    assert sorted(finished) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_cancels_the_worker_for_which_a_task_waits(error, tmp_path):
    job = OptimizeJob(ExportedGraph(tmp_path / "raw.onnx"), tmp_path / "out.onnx", True, "basic", {}, {}, (), {})
    submitted, tasks = threading.Event(), []

    def wait_for_worker():
        answer = worker.submit(job)
        submitted.set()
        return answer.result(TIMEOUT)

    def fail_while_the_task_waits():
        with Background(worker) as background:
            tasks.append(background.submit(wait_for_worker))
            assert submitted.wait(TIMEOUT)
            raise error

    with OnnxWorker() as worker:  # it imports onnx first, so the job is not answered yet when the error comes
        with pytest.raises(error):
            fail_while_the_task_waits()
        with pytest.raises(CancelledError):
            tasks[0].result(TIMEOUT)


def test_an_error_drops_queued_tasks_and_waits_for_those_that_run():
    started, release, finished, tasks = threading.Semaphore(0), threading.Event(), [], []

    def run(number):
        started.release()
        release.wait(TIMEOUT)
        finished.append(number)

    def fail_while_two_tasks_run(worker):
        with Background(worker) as background:
            tasks.extend(background.submit(run, number) for number in range(4))
            for _ in range(2):
                assert started.acquire(timeout=TIMEOUT)
            threading.Timer(0.1, release.set).start()
            raise ValueError

    with OnnxWorker() as worker, pytest.raises(ValueError):
        fail_while_two_tasks_run(worker)
    assert sorted(finished) == [0, 1]
    assert [task.cancelled() for task in tasks] == [False, False, True, True]
