"""The queue of a model: what is joined, what is not, and that a joined run answers as runs alone do."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import packager
from packager.serving import Settings
from packager.serving.batching import Batcher
from packager.serving.jobs import Job
from packager.serving.messages import Rejected
from packager.serving.row_independence import rows_are_independent
from packager.serving.statistics import Statistics


class Model:
    """A model that doubles its rows and remembers the batches that it ran; it fails on negative numbers."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, inputs):
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        self.batches.append([row[0].item() for row in inputs["x"]])
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return {"y": inputs["x"] * 2}


def drive(model, requests, *, largest=None, instances=1, **settings):
    """Submit requests, lists of numbers with a key, at the same time; returns their results in order."""

    async def submit_all():
        loop = asyncio.get_running_loop()
        batcher = Batcher(model, Settings(instances=instances, **settings), Statistics(), largest=largest)
        futures = []
        for numbers, key in requests:
            future = loop.create_future()
            futures.append(future)
            inputs = {"x": np.array(numbers, np.float32).reshape(-1, 1)}
            try:
                batcher.submit(Job(inputs, len(numbers), key, future.set_result))
            except Rejected as error:
                future.set_result(error)
        results = await asyncio.wait_for(asyncio.gather(*futures), 30)
        assert batcher.pending == 0
        return [result if isinstance(result, Exception) else result["y"].ravel().tolist() for result in results]

    return asyncio.run(submit_all())


def test_requests_that_wait_are_joined():
    model = Model()
    assert drive(model, [([1], 0), ([2, 3], 0), ([4], 0)]) == [[2], [4, 6], [8]]
    assert model.batches == [[1, 2, 3, 4]]


def test_a_batch_counts_the_rows_of_its_requests():
    model = Model()
    requests = [([1, 2], 0), ([3, 4], 0), ([5], 0), ([6, 7, 8], 0)]
    assert drive(model, requests, largest=4) == [[2, 4], [6, 8], [10], [12, 14, 16]]
    assert model.batches == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_instances_share_what_waits():
    model = Model(seconds=0.2)
    drive(model, [([number], 0) for number in range(16)], instances=2)
    assert sorted(map(len, model.batches)) == [8, 8]


def test_a_request_larger_than_the_largest_batch_runs_alone():
    model = Model()
    assert drive(model, [([1], 0), ([2, 3, 4], 0)], largest=2) == [[2], [4, 6, 8]]
    assert model.batches == [[1], [2, 3, 4]]


def test_requests_with_different_keys_or_none_are_not_joined():
    model = Model()
    requests = [([1], 0), ([2], 1), ([3], 0), ([4], None), ([5], None), ([6], 1)]
    assert drive(model, requests) == [[2], [4], [6], [8], [10], [12]]
    assert sorted(model.batches) == [[1, 3], [2, 6], [4], [5]]


def test_a_request_that_fails_does_not_fail_its_mates():
    model = Model()
    good, bad, other = drive(model, [([1], 0), ([-1], 0), ([2, 3], 0)])
    assert (good, other) == ([2], [4, 6])
    assert isinstance(bad, ValueError)
    assert model.batches == [[1, -1, 2, 3], [1], [-1], [2, 3]]


def test_outputs_with_a_different_batch_are_never_handed_out():
    rows = iter([3, 1, 1])
    model = lambda inputs: {"y": inputs["x"][:1].repeat(next(rows), axis=0)}  # noqa: E731
    assert drive(model, [([1], 0), ([2], 0)]) == [[1], [2]]


def test_a_full_queue_refuses_with_a_time_to_retry():
    results = drive(Model(), [([number], 0) for number in range(5)], max_queue=3)
    assert results[:3] == [[0], [2], [4]]
    for error in results[3:]:
        assert (error.status, error.headers) == (503, ((b"retry-after", b"1"),))


def test_a_request_beyond_its_time_limit_is_answered_while_the_model_still_runs():
    model = Model()
    model.gate.clear()
    threading.Timer(1.0, model.gate.set).start()
    started = time.monotonic()

    async def submit():
        future, late = (asyncio.get_running_loop().create_future() for _ in range(2))
        batcher = Batcher(model, Settings(time_limit=0.2, instances=1), Statistics(), largest=1)
        batcher.submit(Job({"x": np.ones((1, 1))}, 1, None, future.set_result))
        await asyncio.sleep(0.05)
        batcher.submit(Job({"x": np.ones((1, 1))}, 1, None, late.set_result))
        errors = [await future, await late]
        return errors, time.monotonic() - started, batcher

    errors, seconds, batcher = asyncio.run(submit())
    assert [error.status for error in errors] == [504, 504]
    assert seconds < 0.9
    assert batcher._statistics.timed_out == 2
    assert not batcher._groups  # what nobody waits for does not run


def test_a_request_waits_for_others_for_as_long_as_the_delay():
    async def submit():
        loop = asyncio.get_running_loop()
        model = Model()
        batcher = Batcher(model, Settings(batch_delay=0.3, instances=1), Statistics(), largest=3)
        futures = [loop.create_future() for _ in range(4)]
        started = time.monotonic()
        for number, future in enumerate(futures):
            batcher.submit(Job({"x": np.full((1, 1), number)}, 1, 0, future.set_result))
            await asyncio.sleep(0.02)
        await futures[2]
        full = time.monotonic() - started
        await futures[3]
        return model.batches, full, time.monotonic() - started

    batches, full, late = asyncio.run(submit())
    assert batches == [[0, 1, 2], [3]]
    assert full < 0.25  # a full batch does not wait
    assert late >= 0.3


def come_back(count, *, clients=4, instances=1):
    """Answer clients who came at the same time, and let `count` of them come back 10 ms apart; returns the batches."""

    async def submit():
        loop = asyncio.get_running_loop()
        model = Model(seconds=2.0)
        batcher = Batcher(model, Settings(instances=instances), Statistics(), largest=None)
        futures = [loop.create_future() for _ in range(clients + count)]
        for number, future in enumerate(futures):
            if number == clients:
                await asyncio.gather(*futures[:clients])
                model.seconds = 0.2
            batcher.submit(Job({"x": np.full((1, 1), number)}, 1, 0, future.set_result))
            if number >= clients:
                await asyncio.sleep(0.01)
        await asyncio.gather(*futures)
        return model.batches

    return asyncio.run(submit())


def test_clients_that_come_back_one_after_the_other_are_joined_in_two_batches_that_take_turns():
    assert come_back(4) == [[0, 1, 2, 3], [4, 5], [6, 7]]


def test_clients_of_instances_that_finish_together_are_shared_by_them_again():
    assert sorted(map(sorted, come_back(8, clients=8, instances=2)))[2:] == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_a_request_waits_for_other_clients_no_longer_than_a_part_of_the_last_run():
    started = time.monotonic()
    assert come_back(1) == [[0, 1, 2, 3], [4]]
    assert 2.0 <= time.monotonic() - started < 3.0


def test_a_delay_does_not_hold_up_requests_that_cannot_be_joined():
    started = time.monotonic()
    assert drive(Model(), [([1], None), ([2], None)], batch_delay=5.0) == [[2], [4]]
    assert time.monotonic() - started < 3


def test_instances_run_at_the_same_time():
    model = Model(seconds=0.3)
    started = time.monotonic()
    drive(model, [([number], None) for number in range(3)], instances=3)
    assert time.monotonic() - started < 0.8


@given(
    requests=st.lists(st.tuples(st.lists(st.integers(-1, 99), min_size=1, max_size=4), st.integers(0, 2)), max_size=20),
    largest=st.none() | st.integers(1, 6),
    instances=st.integers(1, 3),
)
def test_joined_runs_answer_as_runs_alone(requests, largest, instances):
    model = Model()
    results = drive(model, requests, largest=largest, instances=instances)
    for (numbers, _), result in zip(requests, results, strict=True):
        if min(numbers) < 0:
            assert isinstance(result, ValueError)
        else:
            assert result == [number * 2 for number in numbers]
    if largest is not None:
        longest = max((len(numbers) for numbers, _ in requests), default=0)
        assert all(len(batch) <= max(largest, longest) for batch in model.batches)


# -- with bundles ---------------------------------------------------------------------------


def test_rows_that_depend_on_each_other_are_not_joined(simple, tokens, centered, caplog):
    assert rows_are_independent(packager.load(simple), "batch")
    assert rows_are_independent(packager.load(tokens), "batch")
    assert not caplog.records
    assert not rows_are_independent(packager.load(centered), "batch")
    assert "requests are not joined" in caplog.text


def test_a_model_whose_rows_depend_on_each_other_answers_each_request_alone(serve, centered, json_arrays):
    server = serve(centered, batch_delay=0.05)
    x = np.random.default_rng(0).random((8, 1, 4), np.float32)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda row: server.infer("centered", {"x": row}), x))
    for status, answer in answers:
        assert status == 200
        assert np.array_equal(json_arrays(answer)["y"], np.zeros((1, 3)))


def test_many_clients_get_their_own_answers(serve, tokens, json_arrays):
    server = serve(tokens, batch_delay=0.02)
    bundle = packager.load(tokens)

    def client(seed):
        random = np.random.default_rng(seed)
        for _ in range(20):
            batch, length = int(random.integers(1, 4)), int(random.integers(1, 5))
            ids, scale = random.integers(0, 50, (batch, length)), np.full((batch, 1), 1 + random.random(), np.float32)
            is_bad = random.random() < 0.2
            ids[0, 0] = 1000 if is_bad else ids[0, 0]
            status, answer = server.infer("tokens", {"ids": ids, "scale": scale})
            assert status == (400 if is_bad else 200)
            if not is_bad:
                expected = bundle.run({"ids": ids, "scale": scale})["mean"]
                np.testing.assert_allclose(json_arrays(answer)["mean"], expected, rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    (statistics,) = server.get("/v2/models/tokens/stats")[1]["model_stats"]
    assert statistics["execution_count"] < statistics["inference_stats"]["success"]["count"]  # some were joined


@pytest.mark.parametrize(("max_batch", "expected"), [(None, 8), (3, 3), (100, 8)])
def test_a_batch_keeps_within_the_limits_of_its_dim(serve, simple, max_batch, expected):
    server = serve(simple, max_batch=max_batch, batch_delay=0.2, instances=1)
    ones = np.ones((1, 16), np.int32)
    with ThreadPoolExecutor(16) as clients:
        statuses = list(clients.map(lambda _: server.infer("simple", {"INPUT0": ones, "INPUT1": ones})[0], range(32)))
    assert statuses == [200] * 32
    (statistics,) = server.get("/v2/models/simple/stats")[1]["model_stats"]
    sizes = [batch["batch_size"] for batch in statistics["batch_stats"]]
    assert max(sizes) <= expected
    assert max(sizes) > 1


def test_nothing_is_joined_where_the_largest_batch_is_one(serve, simple):
    server = serve(simple, max_batch=1)
    ones = np.ones((2, 16), np.int32)
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda _: server.infer("simple", {"INPUT0": ones, "INPUT1": ones}), range(16)))
    (statistics,) = server.get("/v2/models/simple/stats")[1]["model_stats"]
    assert (statistics["inference_count"], statistics["execution_count"]) == (32, 16)
