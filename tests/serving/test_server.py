"""`package serve` as a process: its output, its signals, its log, and errors before it starts."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from projects import package, python

import packager

ONES = np.ones((1, 16), np.int32)
BODY = json.dumps({"inputs": [
    {"name": name, "shape": [1, 16], "datatype": "INT32", "data": [1] * 16} for name in ("INPUT0", "INPUT1")
]})  # fmt: skip


@contextlib.contextmanager
def serving(*arguments):
    """Run `package serve`; yields the process and its port."""
    command = [sys.executable, "-m", "packager", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)\n", address)
        assert match, address + process.stderr.read()
        yield process, int(match[1])
    finally:
        process.kill()
        process.communicate()


def ask(port, method, path, body=None, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()


def infer(port, **headers):
    return ask(port, "POST", "/v2/models/simple/infer", BODY, headers)[0]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_status_0(simple, sent):
    with serving(simple, "--drain", "0") as (process, port):
        assert infer(port) == 200
        process.send_signal(sent)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")


def test_readiness_ends_first_and_requests_are_answered_until_the_sockets_close(simple):
    with serving(simple, "--drain", "1.5") as (process, port):
        assert ask(port, "GET", "/v2/health/ready")[0] == 200
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        status, body = ask(port, "GET", "/v2/health/ready")
        assert (status, json.loads(body)) == (503, {"ready": False, "error": "the server is stopping"})
        assert ask(port, "GET", "/v2/health/live")[0] == 200
        assert ask(port, "GET", "/v2/models/simple/ready")[0] == 503
        assert infer(port) == 200
        process.communicate(timeout=20)
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        infer(port)


def test_a_second_signal_does_not_wait(simple):
    with serving(simple, "--drain", "60") as (process, port):
        assert infer(port) == 200
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_what_runs_is_answered_before_the_server_ends(simple):
    with serving(simple, "--drain", "0", "--batch-delay", "1500") as (process, port):
        statuses = []
        clients = [threading.Thread(target=lambda: statuses.append(infer(port))) for _ in range(3)]
        for client in clients:
            client.start()
        time.sleep(0.7)  # they wait for others to join them
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(20)
        process.communicate(timeout=20)
    assert (statuses, process.returncode) == ([200] * 3, 0)


def test_connections_that_are_idle_do_not_hold_the_server_up(simple):
    with serving(simple, "--drain", "0") as (process, port):
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        idle[0].sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[0].recv(1000).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert time.monotonic() - started < 5
        for connection in idle:
            connection.close()
    assert process.returncode == 0


TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_each_request_is_a_line_of_json_in_the_log(simple):
    with serving(simple, "--drain", "0", "--access-log") as (process, port):
        infer(port, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        ask(port, "GET", "/v2/models/%0d%0aevil%1b[31m%ff/ready")
        ask(port, "POST", "/v2/models/simple/infer", "{")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    records = [json.loads(line) for line in errors.splitlines()]
    assert [(record["method"], record["status"]) for record in records] == [("POST", 200), ("GET", 404), ("POST", 400)]
    first, evil, bad = records
    assert (first["trace_id"], first["span_id"]) == (TRACE, "b7ad6b7169203331")
    assert (first["path"], first["request_bytes"]) == ("/v2/models/simple/infer", len(BODY))
    assert first["duration_ms"] > 0
    assert evil["path"].startswith("/v2/models/\r\nevil\x1b[31m")
    assert "\x1b" not in errors
    assert "'inputs'" in bad["error"] or "JSON" in bad["error"]


def test_without_the_option_nothing_is_logged_but_failures(simple):
    with serving(simple, "--drain", "0", "--queue", "1", "--time-limit", "0.3", "--batch-delay", "2000") as running:
        process, port = running
        assert infer(port, traceparent=f"00-{TRACE}-b7ad6b7169203331-01") == 504
        ask(port, "GET", "/v2/none")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    (line,) = errors.splitlines()
    record = json.loads(line)
    assert (record["status"], record["level"], record["trace_id"]) == (504, "warning", TRACE)


def test_two_processes_share_a_port(simple):
    with serving(simple, "--reuse-port", "--drain", "0") as (first, port):
        command = [sys.executable, "-m", "packager", "serve", simple, "--reuse-port", "--port", str(port)]
        second = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        try:
            assert second.stdout.readline() == f"http://127.0.0.1:{port}\n"
            assert [infer(port) for _ in range(10)] == [200] * 10
            first.send_signal(signal.SIGTERM)
            first.wait(20)
            assert [infer(port) for _ in range(10)] == [200] * 10
        finally:
            second.kill()
            second.communicate()


# -- errors before it starts ----------------------------------------------------------------


def test_a_port_in_use_is_an_error(simple):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = package("serve", simple, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "error[address-unusable]" in done.stderr
    assert done.stdout == ""


def test_an_address_of_another_machine_is_an_error(simple):
    done = package("serve", simple, "--host", "192.0.2.1")
    assert done.returncode == 2
    assert "error[address-unusable]" in done.stderr


def test_one_version_cannot_be_served_twice(simple):
    done = package("serve", simple, simple)
    assert done.returncode == 2
    assert "error[model-served-twice]" in done.stderr


def test_each_bundle_has_the_fingerprint_that_it_must_have(simple, tokens):
    fingerprints = [packager.load(bundle).fingerprint for bundle in (simple, tokens)]
    done = package("serve", simple, tokens, "--fingerprint", fingerprints[1], "--fingerprint", fingerprints[0])
    assert done.returncode == 1
    assert "error[fingerprint-wrong]" in done.stderr
    done = package("serve", simple, tokens, "--fingerprint", fingerprints[0])
    assert done.returncode == 2
    assert "error[usage]" in done.stderr
    arguments = [simple, tokens, "--fingerprint", fingerprints[0], "--fingerprint", fingerprints[1]]
    with serving(*arguments) as (_, port):
        assert infer(port) == 200


def test_a_path_that_is_no_bundle_is_an_error(tmp_path):
    done = package("serve", tmp_path)
    assert done.returncode == 2
    assert "error[not-a-bundle]" in done.stderr


@pytest.mark.parametrize("module", ["uvicorn", "httptools", "simdjson", "orjson"])
def test_a_package_of_the_extra_that_is_missing_is_named(simple, tmp_path, module):
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('gone', name={module!r})\n")
    done = package("serve", simple, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert f"package serve requires {module}, which is not installed" in done.stderr
    assert "pip install 'torch-packager[serve]'" in done.stderr


def test_a_server_imports_neither_torch_nor_onnx_nor_pydantic(simple):
    code = (
        "import sys, packager.serving.server, packager.serving\n"
        "packager.serving.app(sys.argv[1])\n"
        "heavy = {'torch', 'onnx', 'pydantic', 'yaml', 'rich', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python(code, simple)
    assert done.returncode == 0, done.stderr
