"""The executable's server as a process: signals, its log, its queue, and many clients at once."""

import contextlib
import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from raw_http import exchange, parse_answers, request
from serving_modules import load_module

process_tests, infer_tests = load_module("test_server"), load_module("test_infer")
binary = infer_tests.binary


@contextlib.contextmanager
def serving(executable, *arguments):
    command = [executable, "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)\n", address)
        assert match, address + process.stderr.read()
        yield process, int(match[1])
    finally:
        process.kill()
        process.communicate()


def run(command, executable, *arguments):
    return subprocess.run([executable, command, *map(str, arguments)], capture_output=True, text=True)


process_tests.serving, process_tests.package = serving, run
for _name in (
    "test_a_signal_ends_the_server_with_status_0",
    "test_readiness_ends_first_and_requests_are_answered_until_the_sockets_close",
    "test_a_second_signal_does_not_wait",
    "test_connections_that_are_idle_do_not_hold_the_server_up",
    "test_each_request_is_a_line_of_json_in_the_log",
    "test_a_port_in_use_is_an_error",
    "test_an_address_of_another_machine_is_an_error",
):
    globals()[_name] = getattr(process_tests, _name)


@pytest.fixture
def simple(simple, executable_of):
    return executable_of(simple)


def slow_request(rows=1024, value=0.5):
    """Return the bytes of a request that runs for about a second."""
    content, headers = binary({"x": np.full((rows, 1024), value, np.float32)})
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return request(content, *lines, path="/v2/models/slow/infer")


def test_an_address_is_printed_as_a_client_needs_it(simple):
    process = subprocess.Popen(
        [simple, "serve", "--host", "::1", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        match = re.fullmatch(r"http://\[::1\]:(\d+)\n", process.stdout.readline())
        connection = http.client.HTTPConnection("::1", int(match[1]), timeout=10)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
    finally:
        process.kill()
        process.communicate()


def test_requests_beyond_the_queue_are_turned_away(serve, slow):
    server = serve(slow, max_queue=1, instances=1)
    with ThreadPoolExecutor(5) as pool:
        answers = [answer for [answer] in pool.map(lambda _: exchange(server.port, slow_request()), range(5))]
    turned_away = [answer for answer in answers if answer.status == 503]
    assert sorted(answer.status for answer in answers) == [200] * (5 - len(turned_away)) + [503] * len(turned_away)
    assert len(turned_away) in (2, 3)  # one runs, one waits, and a third may come when the first is done
    for answer in turned_away:
        assert answer.headers["retry-after"] == "1"
        assert answer.body == {"error": "the queue of the model is full; try again"}
    (statistics,) = server.get("/v2/models/slow/stats")[1]["model_stats"]
    assert statistics["inference_stats"]["fail"]["count"] == len(turned_away)
    records = [json.loads(line) for line in server.stop().splitlines()]
    assert [(record["status"], record["level"]) for record in records] == [(503, "warning")] * len(turned_away)
    assert records[0]["error"] == "the queue of the model is full; try again"


def test_an_answer_that_takes_too_long_is_given_up(serve, slow):
    server = serve(slow, time_limit=0.3, instances=1)
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:  # one that runs, and one that waits
        answers = [answer for [answer] in pool.map(lambda _: exchange(server.port, slow_request(2048)), range(2))]
    assert [(answer.status, answer.body) for answer in answers] == [
        (504, {"error": "the request took longer than 0.3 seconds"})
    ] * 2
    assert time.monotonic() - started < 3
    metrics = server.ask("GET", "/metrics")[2].decode()
    assert 'nv_inference_request_failure{model="slow",version="1.0.0",reason="CANCELED"} 2' in metrics
    assert 'nv_inference_pending_request_count{model="slow",version="1.0.0"} 1' in metrics  # it cannot be stopped
    deadline = time.monotonic() + 20
    while 'pending_request_count{model="slow",version="1.0.0"} 0' not in server.ask("GET", "/metrics")[2].decode():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert exchange(server.port, slow_request(8))[0].status == 200


def test_a_client_that_leaves_takes_its_request_out_of_the_queue(serve, slow):
    server = serve(slow, instances=1)
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    for client in clients:
        client.sendall(slow_request(2048))
    gauge = 'nv_inference_pending_request_count{model="slow",version="1.0.0"} '
    deadline = time.monotonic() + 10
    while f"{gauge}4\n" not in server.ask("GET", "/metrics")[2].decode():
        assert time.monotonic() < deadline
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
        client.close()
    deadline = time.monotonic() + 1
    while f"{gauge}1\n" not in server.ask("GET", "/metrics")[2].decode():
        assert time.monotonic() < deadline


def test_a_run_is_answered_before_the_server_ends(slow, executable_of):
    with serving(executable_of(slow), "--drain", "0", "--threads", "1") as (process, port):
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(exchange, port, slow_request()) for _ in range(2)]
            time.sleep(0.4)
            process.send_signal(signal.SIGTERM)
            statuses = [future.result()[0].status for future in answers]
        output, errors = process.communicate(timeout=20)
    assert (statuses, process.returncode, output, errors) == ([200, 200], 0, "", "")


def test_a_second_ctrl_c_waits_for_nothing(slow, executable_of):
    with serving(executable_of(slow), "--threads", "1") as (process, port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(slow_request(4096) * 3)
        time.sleep(0.4)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        started = time.monotonic()
        process.communicate(timeout=20)
        assert time.monotonic() - started < 1
        client.close()
    assert process.returncode == 0


def test_other_requests_are_answered_while_a_model_runs(serve, slow):
    server = serve(slow, instances=1)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(slow_request(2048))
        time.sleep(0.1)
        for _ in range(20):
            started = time.monotonic()
            assert server.get("/v2/health/live") == (200, {"live": True})
            assert time.monotonic() - started < 0.5


def test_sixteen_clients_get_their_own_values(simple):
    with serving(simple, "--drain", "0") as (process, port):
        failures = []

        def ask(seed):
            random = np.random.default_rng(seed)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            for number in range(200):
                batch = int(random.integers(1, 9))
                inputs = {name: random.integers(-1000, 1000, (batch, 16), np.int32) for name in ("INPUT0", "INPUT1")}
                is_binary = bool(random.integers(2))
                request_id = f"{seed}-{number}"
                body, headers = binary(inputs, id=request_id, parameters={"binary_data_output": is_binary})
                if random.integers(2):
                    tensors = [load_module("conftest").json_tensor(name, array) for name, array in inputs.items()]
                    document = {"id": request_id, "inputs": tensors, "parameters": {"binary_data_output": is_binary}}
                    body, headers = json.dumps(document).encode(), {}
                connection.request("POST", "/v2/models/simple/infer", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                if is_binary:
                    parsed, outputs = infer_tests.parse_binary(
                        {name.lower(): value for name, value in answer.getheaders()}, content
                    )
                else:
                    parsed = json.loads(content)
                    outputs = {
                        output["name"]: np.array(output["data"]).reshape(output["shape"])
                        for output in parsed["outputs"]
                    }
                first, second = inputs["INPUT0"], inputs["INPUT1"]
                are_equal = np.array_equal(outputs["OUTPUT0"], first + second)
                if parsed["id"] != request_id or not (are_equal and np.array_equal(outputs["OUTPUT1"], first - second)):
                    failures.append((seed, number))
            connection.close()

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, range(16)))
        assert failures == []
        statistics = json.loads(process_tests.ask(port, "GET", "/v2/models/stats")[1])["model_stats"][0]
        assert statistics["inference_stats"]["success"]["count"] == 16 * 200
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")


def test_a_client_that_reads_late_gets_the_answers_of_all_pipelined_requests_in_their_order(simple):
    """Small answers are held for a moment, and the socket may not take them then."""
    count = 10_000
    content, headers = binary({name: np.zeros((1, 16), np.int32) for name in ("INPUT0", "INPUT1")}, id="=number=")
    lines = [f"{name}: {value}" for name, value in headers.items()]
    numbers = [b"%08d" % number for number in range(count)]
    single = request(content, *lines).replace(b"Connection: close\r\n", b"")
    requests = b"".join(single.replace(b"=number=", number) for number in numbers[:-1])
    requests += request(content, *lines).replace(b"=number=", numbers[-1])
    with serving(simple) as (_, port), ThreadPoolExecutor(1) as pool:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        sending = pool.submit(client.sendall, requests)
        time.sleep(0.5)
        received = b""
        while piece := client.recv(1 << 20):
            received += piece
        sending.result()
        client.close()
    answers = parse_answers(received)
    assert [answer.status for answer in answers] == [200] * count
    texts = [answer.body[0] if isinstance(answer.body, tuple) else answer.body for answer in answers]
    assert [text["id"].encode() for text in texts] == numbers


def test_too_many_connections_are_turned_away(simple):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with serving(simple) as (_, port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(1001)]
        (answer,) = parse_answers(clients[-1].makefile("rb").read())
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.body == {"error": "too many connections; try again"}
        clients[0].sendall(request(b"", method="GET", path="/v2/health/live"))
        assert parse_answers(clients[0].makefile("rb").read())[0].status == 200
        for client in clients[1:10]:
            client.close()
        time.sleep(0.2)
        assert process_tests.infer(port) == 200


@pytest.mark.slow
def test_the_bodies_of_all_requests_are_bounded_together(simple):
    part = bytes(63 << 20)
    head = f"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {64 << 20}\r\n\r\n".encode()
    with serving(simple) as (_, port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(9)]
        for client in clients[:8]:
            client.sendall(head + part)
        with contextlib.suppress(ConnectionError):
            clients[8].sendall(head + part)
        (answer,) = parse_answers(clients[8].makefile("rb").read())
        assert answer.status == 503
        assert answer.body == {"error": "too many requests are being received; try again"}
        for client in clients[:8]:
            client.close()
        deadline = time.monotonic() + 10
        while exchange(port, request(bytes(63 << 20)))[0].status == 503:
            assert time.monotonic() < deadline


def test_threads_end_with_the_requests_that_they_have(simple):
    """Stop the server again and again while clients ask: whatever was accepted is answered whole."""
    for delay in (0.05, 0.1, 0.15):
        with serving(simple, "--drain", "0") as (process, port):
            broken = []

            def ask(port=port, broken=broken):
                content = request(process_tests.BODY.encode(), path="/v2/models/simple/infer")
                while True:
                    try:
                        answers = exchange(port, content)
                    except OSError:
                        return
                    if any(answer.status != 200 for answer in answers):
                        broken.append(answers)

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=20)
            for thread in threads:
                thread.join(20)
            assert (process.returncode, output, errors, broken) == (0, "", "", [])
