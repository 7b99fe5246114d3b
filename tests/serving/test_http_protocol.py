"""HTTP/1.1 on a raw socket: requests in pieces, several at once, and from clients that mean harm."""

import json
import re
import select
import socket
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.serving.chunks import ChunkDecoder
from packager.serving.http_head import HEADS, parse_head
from packager.serving.messages import Rejected

ONES = np.ones((1, 16), np.int32)
PATH = "/v2/models/simple/infer"


def tensor(name, value=1):
    return {"name": name, "shape": [1, 16], "datatype": "INT32", "data": [value] * 16}


def body(value=1):
    return json.dumps({"id": str(value), "inputs": [tensor("INPUT0", value), tensor("INPUT1")]}).encode()


def request(content, *headers, method="POST", path=PATH, version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", "Host: test", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def chunked(*chunks):
    head = f"POST {PATH} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


class Client:
    """A socket, and what was read from it and belongs to the next answer."""

    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.left = b""

    def send(self, *pieces):
        for piece in pieces:
            self.socket.sendall(piece)
            if len(pieces) > 1:
                time.sleep(0.01)

    def answer(self, *, is_head=False):
        """Read one answer: status, headers and body."""
        while b"\r\n\r\n" not in self.left:
            self.read()
        head, _, self.left = self.left.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        size = 0 if is_head else int(headers.get("content-length", 0))
        while len(self.left) < size:
            self.read()
        content, self.left = self.left[:size], self.left[size:]
        return int(lines[0].split()[1]), headers, content

    def read(self):
        piece = self.socket.recv(65536)
        assert piece, f"closed after {self.left!r}"
        self.left += piece

    def is_closed(self):
        """Return whether the server closes the connection, without another byte."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def connect(served):
    with closing(socket.socket()):
        clients = []

        def make(server=served):
            clients.append(Client(server))
            return clients[-1]

        yield make
        for client in clients:
            client.socket.close()


def first_sum(content):
    return json.loads(content)["outputs"][0]["data"][0]


def test_a_connection_is_used_again(connect):
    client = connect()
    for value in range(5):
        client.send(request(body(value)))
        status, headers, content = client.answer()
        assert (status, first_sum(content)) == (200, value + 1)
        assert "connection" not in headers
        assert headers["date"]


def test_a_request_arrives_in_any_pieces(connect):
    client = connect()
    content = request(body(3))
    for size in (1, 7, 40, len(content) - 1):
        client.send(*[content[start : start + size] for start in range(0, len(content), size)])
        assert first_sum(client.answer()[2]) == 4


def test_pipelined_requests_are_answered_in_their_order(connect):
    client = connect()
    client.send(b"".join(request(body(value)) for value in range(40)))
    for value in range(40):
        status, _, content = client.answer()
        assert (status, json.loads(content)["id"], first_sum(content)) == (200, str(value), value + 1)


def test_pipelined_requests_may_fail_in_between(connect):
    client = connect()
    client.send(request(body(1)) + request(b"{") + request(b"", method="GET", path="/v2") + request(body(2)))
    assert [client.answer()[0] for _ in range(4)] == [200, 400, 200, 200]


@pytest.mark.parametrize("sizes", [[1000], [1] * 200, [3, 5, 200], [0, 10]])
def test_a_body_may_come_in_chunks(connect, sizes):
    client, content, chunks = connect(), body(6), []
    for size in sizes:
        chunks.append(content[:size])
        content = content[size:]
    chunks = [chunk for chunk in [*chunks, content] if chunk]
    client.send(chunked(*chunks) + request(body(7)))
    assert [first_sum(client.answer()[2]) for _ in range(2)] == [7, 8]


@given(chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6), cuts=st.lists(st.integers(0, 300), max_size=8))
def test_chunks_are_decoded_wherever_they_are_cut(chunks, cuts):
    content = chunked(*chunks).partition(b"\r\n\r\n")[2] + b"next"
    decoder, buffer, is_complete, start = ChunkDecoder(), bytearray(), False, 0
    for end in [*sorted(min(cut, len(content)) for cut in cuts), len(content)]:
        buffer += content[start:end]
        start = end
        is_complete = is_complete or decoder.feed(buffer)
    assert is_complete
    assert bytes(decoder.body) == b"".join(chunks)
    assert buffer == b"next"


@pytest.mark.parametrize(
    "content",
    [
        b"5\r\nabc\r\n0\r\n\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n", b"x\r\n", b"\r\n\r\n", b"1\nA\n0\n\n",
        b"0x1\r\nA\r\n0\r\n\r\n", b"1 \x01\r\nA\r\n", b"1" * 2000, b"ffffffffffffffffff\r\n", b"1;a=\"\x00\"\r\nA\r\n",
    ],
)  # fmt: skip
def test_malformed_chunks_are_refused(connect, content):
    client = connect()
    client.send(b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode() + content)
    if content.startswith(b"5"):
        client.socket.shutdown(socket.SHUT_WR)
    status, headers, answer = client.answer()
    assert (status, headers["connection"]) == (400, "close")
    assert json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("nonsense", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/1.1\r\nA: b\nContent-Length: 5", 400),
        ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", 400),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: identity", 400),
        ("POST / HTTP/1.1\r\nContent-Length: -1", 400),
        ("POST / HTTP/1.1\r\nContent-Length: +1", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 0x1", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999", 400),
        ("POST / HTTP/1.1\r\nContent-Length : 1", 400),
        ("GET / HTTP/1.1\r\n folded: x", 400),
        ("GET / HTTP/1.1\r\nA\x00: b", 400),
        ("GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c", 501),
        ("GET /\x80 HTTP/1.1", 400),
        ("GET http://other/v2 HTTP/1.1", 200),
        ("OPTIONS * HTTP/1.1", 404),
        ("GET  / HTTP/1.1", 404),
    ],
)
def test_a_malformed_head_is_refused(connect, head, status):
    client = connect()
    client.send(f"{head}\r\n\r\n".encode("latin-1"))
    actual, headers, content = client.answer()
    assert actual == status, content
    assert headers["content-type"] == "application/json"
    if status in (400, 501, 505):
        assert "error" in json.loads(content)


def test_a_head_that_never_ends_is_refused(connect):
    client = connect()
    client.send(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 8000)
    assert client.answer()[0] == 431
    assert client.is_closed()


def test_clients_that_close_are_closed_for(connect):
    client = connect()
    client.send(request(body(1), "Connection: close"))
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert client.is_closed()
    without_body = connect()
    without_body.send(request(b"", "Connection: close", method="GET", path="/v2"))
    status, headers, _ = without_body.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert without_body.is_closed()
    old = connect()
    old.send(request(body(1), version="1.0"))
    assert old.answer()[0] == 200
    assert old.is_closed()


def test_a_client_that_sends_no_more_gets_its_answer(connect):
    client = connect()
    client.send(request(body(1)))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.answer()[0] == 200
    assert client.is_closed()


def test_head_has_no_body(connect):
    client = connect()
    client.send(request(b"", method="HEAD", path="/v2") + request(b"", method="GET", path="/v2"))
    status, headers, _ = client.answer(is_head=True)
    assert status == 200
    assert int(headers["content-length"]) > 0
    assert json.loads(client.answer()[2])["name"] == "triton"


def test_a_client_that_asks_first_is_told_to_go_on(connect):
    client = connect()
    content = request(body(1), "Expect: 100-continue")
    head, _, rest = content.partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.answer()[0] == 100
    client.send(rest)
    assert client.answer()[0] == 200


def test_remembered_heads_are_bounded(connect):
    client = connect()
    for number in range(1100):
        client.send(request(b"", f"X-Request-Id: {number}", method="GET", path="/v2/health/live"))
        assert client.answer()[0] == 200
    assert len(HEADS) <= 512
    long = request(b"", "A: " + "b" * 5000, method="GET", path="/v2/health/live")
    client.send(long)
    assert client.answer()[0] == 200
    assert long not in HEADS


def test_the_value_of_a_header_does_not_leak_into_another_request(connect):
    client = connect()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.send(request(body(1), f"traceparent: {trace}"))
    assert client.answer()[1]["traceparent"] == trace
    client.send(request(body(1)))
    assert "traceparent" not in client.answer()[1]


@pytest.mark.parametrize("trace", ["x", "00-0-0-00", "ff-" + "1" * 32 + "-" + "1" * 16 + "-00", "a" * 3000])
def test_a_trace_that_is_not_valid_is_not_sent_back(connect, trace):
    client = connect()
    client.send(request(body(1), f"traceparent: {trace}"))
    status, headers, _ = client.answer()
    assert status == 200
    assert "traceparent" not in headers


# -- limits ---------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_before_it_is_read(serve, simple, connect):
    server = serve(simple, max_request_bytes=1000)
    client = connect(server)
    client.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n".encode())
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (413, "close")
    client = connect(server)
    client.send(chunked(*[b" " * 100] * 20))
    assert client.answer()[0] == 413
    assert server.ask("POST", PATH, body().ljust(1000))[0] == 200


def test_a_client_that_still_sends_reads_why_it_was_refused(serve, simple, connect):
    client = connect(serve(simple, max_request_bytes=1000))
    client.send(request(bytes(20_000_000)))
    assert client.answer()[0] == 413


def test_the_bodies_of_all_requests_are_bounded_together(serve, simple, connect):
    server = serve(simple, max_request_bytes=100_000, max_buffered_bytes=150_000)
    content = request(body().ljust(100_000))
    first, second = connect(server), connect(server)
    first.send(content[:-1])
    time.sleep(0.2)
    second.send(content[:-1])
    status, headers, _ = second.answer()
    assert (status, headers["retry-after"]) == (503, "1")
    first.send(content[-1:])
    assert first.answer()[0] == 200
    third = connect(server)
    third.send(content)
    assert third.answer()[0] == 200
    assert server.app.budget._total == 0


def test_a_client_that_is_too_slow_is_cut_off(serve, simple, connect):
    server = serve(simple, time_limit=0.4)
    started = time.monotonic()
    slow_head, slow_body, silent = connect(server), connect(server), connect(server)
    slow_head.send(b"POST ")
    slow_body.send(request(body())[:-1])
    assert slow_head.answer()[0] == 408
    assert slow_body.answer()[0] == 408
    assert time.monotonic() - started < 3
    silent.send(request(body()))  # it has not begun a request, and may wait for longer
    assert silent.answer()[0] == 200


def test_a_trickle_of_bytes_does_not_extend_the_time(serve, simple, connect):
    client = connect(serve(simple, time_limit=0.5))
    started = time.monotonic()
    for byte in request(body()):
        client.send(bytes([byte]))
        if select.select([client.socket], [], [], 0.05)[0]:
            break
    assert client.answer()[0] == 408
    assert time.monotonic() - started < 3


def test_too_many_connections_are_turned_away(serve, simple, connect):
    server = serve(simple, max_connections=2)
    clients = [connect(server) for _ in range(3)]
    assert clients[2].answer()[0] == 503
    clients[0].send(request(body()))
    assert clients[0].answer()[0] == 200


def test_a_client_that_does_not_read_stops_its_own_requests_alone(serve, simple, connect):
    server = serve(simple, time_limit=1.0)
    greedy = connect(server)
    greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.socket.setblocking(False)
    sent, is_open = 0, True
    deadline = time.monotonic() + 10
    while is_open and time.monotonic() < deadline:
        try:
            sent += greedy.socket.send(request(b"", method="GET", path="/metrics") * 100)
        except BlockingIOError:
            time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            is_open = False
    assert not is_open
    assert sent < 50_000_000
    other = connect(server)
    other.send(request(body()))
    assert other.answer()[0] == 200


# -- heads ----------------------------------------------------------------------------------


def test_paths_are_decoded_once():
    head = parse_head(b"GET /a%20b/%2541?x=%20 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (head.path, head.method, head.length, head.keep_alive) == ("/a b/%41", "GET", 0, True)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_head_or_refused(content):
    content = re.sub(rb"\r\n\r\n", b"", content) + b"\r\n\r\n"
    assert status_of_head(content) in (200, 400, 501, 505)


def status_of_head(content):
    try:
        return 200 if parse_head(content).length >= -1 else None
    except Rejected as error:
        return error.status
