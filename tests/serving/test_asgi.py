"""The service as an ASGI app: under uvicorn's own protocol, under granian, below a path, and called by hand."""

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import uvicorn

import packager
from packager.serving import Settings, app

ONES = np.ones((1, 16), np.int32)
BODY = json.dumps({"inputs": [
    {"name": name, "shape": [1, 16], "datatype": "INT32", "data": [1] * 16} for name in ("INPUT0", "INPUT1")
]}).encode()  # fmt: skip
PATH = "/v2/models/simple/infer"


def ask(port, method, path, body=None, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def first_sum(body):
    return json.loads(body)["outputs"][0]["data"][0]


@pytest.fixture(scope="module")
def port(simple):
    """Return the port of uvicorn with its own protocol, one that knows nothing of this project."""
    service = app(simple, settings=Settings(max_request_bytes=5000, time_limit=1.0))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(service, http="httptools", loop="uvloop", log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def test_uvicorn_runs_the_app(port):
    status, headers, body = ask(port, "POST", PATH, BODY, {"Accept-Encoding": "gzip, deflate"})
    assert (status, first_sum(body)) == (200, 2)
    assert int(headers["content-length"]) == len(body)
    assert ask(port, "GET", "/v2/health/ready")[0] == 200
    assert ask(port, "GET", "/v2/none")[0] == 404
    assert ask(port, "GET", PATH)[0] == 405
    assert ask(port, "HEAD", "/v2")[::2] == (200, b"")


def test_a_body_that_is_too_large_is_refused(port):
    assert ask(port, "POST", PATH, BODY.ljust(5001))[0] == 413
    assert ask(port, "POST", PATH, iter([BODY, b" " * 5000]))[0] == 413
    assert ask(port, "POST", PATH, BODY.ljust(5000))[0] == 200


def test_a_body_may_come_in_chunks(port):
    pieces = iter([BODY[:10], BODY[10:]])
    status, _, body = ask(port, "POST", PATH, pieces)
    assert (status, first_sum(body)) == (200, 2)


def test_a_body_that_does_not_arrive_is_given_up(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
        client.sendall(head.encode() + BODY[:-1])
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


def call(service, *, path=PATH, root="", body=BODY, kind="http", messages=None):
    """Call an app as an ASGI server does; returns what it sends."""
    sent, left = [], list(messages or [{"type": "http.request", "body": body}])
    scope = {"type": kind, "method": "POST", "path": path, "root_path": root, "headers": [(b"host", b"x")]}

    async def receive():
        return left.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(service(scope, receive, send))
    return sent


@pytest.mark.parametrize(("path", "root"), [(f"/models{PATH}", "/models"), (PATH, "/models"), (PATH, "")])
def test_the_app_may_be_mounted_below_a_path(simple, path, root):
    start, end = call(app(simple), path=path, root=root)
    assert (start["status"], first_sum(end["body"])) == (200, 2)


def test_a_loaded_bundle_is_served_as_it_is(simple):
    bundle = packager.load(simple, threads=1)
    service = app(bundle)
    assert service.service.models.get("simple").bundle is bundle
    assert call(service)[0]["status"] == 200


def test_the_app_takes_part_in_the_lifespan_of_its_server(simple):
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = call(app(simple), kind="lifespan", messages=messages)
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_websocket_is_closed(simple):
    assert [message["type"] for message in call(app(simple), kind="websocket")] == ["websocket.close"]


def test_a_client_that_leaves_gets_no_answer_and_keeps_no_memory(simple):
    service = app(simple)
    messages = [{"type": "http.request", "body": BODY[:9], "more_body": True}, {"type": "http.disconnect"}]
    assert call(service, messages=messages) == []
    assert service.budget._total == 0
    assert call(service)[0]["status"] == 200


def test_all_bodies_share_a_budget(simple):
    service = app(simple, settings=Settings(max_buffered_bytes=100))
    start, end = call(service)
    assert start["status"] == 503
    assert "error" in json.loads(end["body"])


def test_granian_runs_the_app(simple, tmp_path):
    (tmp_path / "service.py").write_text(f"import packager.serving\n\napp = packager.serving.app({str(simple)!r})\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(port), "service:app"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                assert ask(port, "GET", "/v2/health/ready")[0] == 200
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        for _ in range(3):
            status, _, body = ask(port, "POST", PATH, BODY)
            assert (status, first_sum(body)) == (200, 2)
        assert ask(port, "POST", PATH, b"{")[0] == 400
        assert b"nv_inference_request_success" in ask(port, "GET", "/metrics")[2]
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert "Traceback" not in output, output
