"""The same raw requests to `package serve` and to the executable: status, headers and JSON are the same."""

import copy
import gzip
import json
import random
import zlib

import numpy as np
import pytest
from raw_http import PATH, exchange, request
from serving_modules import load_module, read_table

infer, protocol = load_module("test_infer"), load_module("test_http_protocol")
COUNT, ONES, binary = infer.COUNT, infer.ONES, infer.binary


@pytest.fixture
def same(served, reference):
    """Return a function that sends bytes to both, compares the answers, and returns them."""

    def compare(content, **options):
        expected = exchange(reference.port, content, **options)
        assert exchange(served.port, content, **options) == expected
        return expected

    return compare


def test_documents_that_do_not_fit(same):
    for document, _ in read_table(infer, "test_a_request_that_does_not_fit_is_refused_with_the_reason"):
        assert [answer.status for answer in same(request(json.dumps(document).encode()))] == [400], document


def test_bodies_that_are_not_json(same):
    for (content,) in read_table(infer, "test_a_body_that_is_not_json_is_refused"):
        assert [answer.status for answer in same(request(content))] == [400]


def test_wrong_lengths_and_sizes(same):
    content, _ = binary({"INPUT0": COUNT, "INPUT1": ONES})
    for length, _ in read_table(infer, "test_a_wrong_length_of_the_json_is_refused"):
        assert [a.status for a in same(request(content, f"Inference-Header-Content-Length: {length}"))] == [400]
    for (size,) in read_table(infer, "test_a_wrong_size_of_a_binary_tensor_is_refused"):
        content, headers = infer.resized(size)
        lines = [f"{name}: {value}" for name, value in headers.items()]
        assert [answer.status for answer in same(request(content, *lines))] == [400]
    same(request(b"x", "Inference-Header-Content-Length: \xe9\x80"))


def test_malformed_heads(same):
    for head, status in read_table(protocol, "test_a_malformed_head_is_refused"):
        assert [answer.status for answer in same(f"{head}\r\n\r\n".encode("latin-1"))] == [status], head


TARGETS = [
    "*", "/", "//v2", "/v2/", "/v2?x", "/v2#x", "/v2?a#b?c", "http://x/v2", "HTTP://x:80/v2?y", "http://x:65536/v2",
    "http://x:/v2", "http://u:p@x/v2", "http://u@v@x/v2", "http://@x/v2", "http://[::1]/v2", "http://[::1%25e]/v2",
    "http://[x]/v2", "http://x", "http://x?/v2", "http:///v2", "http:/v2", "://x/v2", "h2://x/v2", "http://a_b/v2",
    "http://a-b.c/v2", "http://%41/v2", "/v2/%6d%6fdels/simple", "/v2/models/%73imple", "/v2%2Fmodels%2Fsimple",
    "/v2/models/%ff%fe", "/v2/models/%e2%82", "/v2/models/%f0%9f%98%80", "/v2/models/%zz%", "/v2/models/%", "/%00",
    "/v2/models/a%0d%0ab", "/v2;x", "/v2/models/simple/versions/1.0.0", "/v2/models/simple/versions",
    "/v2/models//ready",
    "/v2/models/simple/versions/1.0.0/none", "/v2/models/simple/", "/v2/models/simple//", "/v2//models/simple",
]  # fmt: skip


def test_targets(same):
    for target in TARGETS:
        same(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))


PATHS = [
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/health", "/v2/models", "/v2/models/simple", "/v2/models/none",
    "/v2/models/simple/ready", "/v2/models/simple/config", "/v2/models/simple/infer", "/v2/models/none/infer",
    "/v2/models/simple/versions/1.0.0/infer", "/v2/models/simple/versions/2/infer", "/v2/models/simple/versions/2",
    "/v2/models/none/versions/2/stats", "/v2/repository/models/simple/load", "/v2/repository/models/none/unload",
    "/v2/repository/models/simple", "/v2/repository", "/v2/systemsharedmemory", "/v2/systemsharedmemory/status",
    "/v2/systemsharedmemory/register", "/v2/systemsharedmemory/unregister", "/v2/systemsharedmemory/region/x/status",
    "/v2/systemsharedmemory/region/x/register", "/v2/systemsharedmemory/region/x/unregister", "/v2/none/x",
    "/v2/systemsharedmemory/region/x/none", "/v2/cudasharedmemory/status", "/v2/cudasharedmemory/region/x/status",
    "/v2/cudasharedmemory/region/x/register", "/v2/cudasharedmemory/register", "/v2/cudasharedmemory/unregister",
    "/v2/cudasharedmemory/region/x/unregister", "/v2/cudasharedmemory/region/x/none", "/v1", "/", "/metrics/x",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "NONE"])
def test_every_route_by_every_method(same, method):
    for path in PATHS:
        same(request(b"", method=method, path=path))
    same(request(b"{", method=method, path="/v2/systemsharedmemory/region/x/register"))
    same(request(b"{}", method=method, path="/v2/systemsharedmemory/region/x/register"))


def test_head_has_the_headers_of_get(same):
    for path in PATHS:
        same(request(method="HEAD", path=path), is_head=True)


def test_the_index_and_the_metadata(served, reference):
    for content in (b"", b" ", b"{}", b'{"ready": true}', b'{"ready": 1}', b"[]", b"{", b"1"):
        answers = []
        for server in (served, reference):
            (answer,) = exchange(server.port, request(content, path="/v2/repository/index"))
            answers.append(answer)
        if answers[1].status == 200:  # which serves a second model
            assert answers[0].body == [entry for entry in answers[1].body if entry["name"] == "simple"]
        else:
            assert answers[0] == answers[1]
    for path in ("/v2/models/tokens", "/v2/models/tokens/config"):
        assert served.get(path) == reference.get(path)


def test_statistics_have_the_same_fields(serve, serve_reference, simple):
    servers = [serve(simple), serve_reference(simple)]
    for server in servers:
        for batch in (1, 1, 3):
            ones = np.ones((batch, 16), np.int32)
            assert server.infer("simple", {"INPUT0": ones, "INPUT1": ones})[0] == 200
        assert server.infer("simple", {"INPUT0": ones})[0] == 400

    def without_times(value):
        if isinstance(value, dict):
            return {key: without_times(item) for key, item in value.items() if key not in ("ns", "last_inference")}
        return [without_times(item) for item in value] if isinstance(value, list) else value

    for path in ("/v2/models/stats", "/v2/models/simple/stats", "/v2/models/simple/versions/1.0.0/stats"):
        ours, theirs = (without_times(server.get(path)[1]) for server in servers)
        assert ours == theirs

    def names(text):
        return [line.split("} ")[0] if line[0] != "#" else line for line in text.decode().splitlines()]

    ours, theirs = (sorted(names(server.ask("GET", "/metrics")[2])) for server in servers)
    assert ours == theirs


def test_tensors(same):
    inputs = {"INPUT0": COUNT, "INPUT1": 7 * ONES}
    wanted = [
        {}, {"outputs": []}, {"outputs": [{"name": "OUTPUT1"}]}, {"id": ""}, {"id": "\u00e9\"\\\n\x01\U0001f600"},
        {"parameters": {"binary_data_output": True}}, {"parameters": None}, {"id": None}, {"x": [1]},
        {"outputs": [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, {"name": "OUTPUT0"}]},
        {"outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": False, "classification": 0}}],
         "parameters": {"binary_data_output": True}},
    ]  # fmt: skip
    for fields in wanted:
        content, headers = binary(inputs, **fields)
        lines = [f"{name}: {value}" for name, value in headers.items()]
        for extra in ([], ["Accept-Encoding: gzip, deflate"], ["traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01"]):
            assert [answer.status for answer in same(request(content, *lines, *extra))] == [200]
        document = {"inputs": [serving_tensor(name, array) for name, array in inputs.items()], **fields}
        assert [answer.status for answer in same(request(json.dumps(document).encode()))] == [200]


def serving_tensor(name, array):
    return load_module("conftest").json_tensor(name, array)


def test_errors_of_the_model(served, reference):
    inputs = {"ids": np.array([[1, 10**6]], np.int64), "scale": np.ones((1, 1), np.float32)}
    assert served.infer("tokens", inputs) == reference.infer("tokens", inputs)
    inputs["ids"][:] = 3
    inputs["scale"][:] = 0
    assert served.infer("tokens", inputs) == reference.infer("tokens", inputs)


def test_compressed_requests(same, served, reference):
    for coding, content, status in read_table(infer, "test_a_body_that_cannot_be_decompressed_is_refused"):
        raw = request(content, f"Content-Encoding: {coding}")
        (ours,), (theirs,) = (exchange(server.port, raw) for server in (served, reference))
        assert (ours.status, theirs.status) == (status, status)
        if ours != theirs:  # libdeflate does not say what is wrong where zlib does
            assert ours.body == {"error": f"the body is not valid {coding}, or it is cut off"}
            assert ours.headers == theirs.headers
    content, headers = binary({"INPUT0": COUNT, "INPUT1": ONES})
    lines = [f"{name}: {value}" for name, value in headers.items()]
    for coding, squeeze in (("gzip", gzip.compress), (" GZIP ", gzip.compress), ("deflate", zlib.compress)):
        assert [a.status for a in same(request(squeeze(content), f"Content-Encoding: {coding}", *lines))] == [200]
    for coding in ("identity", ""):
        assert [a.status for a in same(request(content, f"Content-Encoding: {coding}", *lines))] == [200]


def test_chunks(same):
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
    for (content,) in read_table(protocol, "test_malformed_chunks_are_refused"):
        same(head + content)
    body = protocol.body(3)
    for size in (1, 7, len(body)):
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        for trailer in (b"\r\n", b"A: b\r\n\r\n"):
            assert [answer.status for answer in same(head + chunks + b"0\r\n" + trailer)] == [200]


def test_pipelined_requests(same):
    keep = b"".join(protocol.request(protocol.body(value)) for value in range(50))
    bad = protocol.request(b"{") + protocol.request(b"", method="GET", path="/none")
    answers = same(b"\r\n" + keep + bad + b"\r\n" + request(protocol.body(9)), ends=False)
    assert [answer.status for answer in answers] == [200] * 50 + [400, 404, 200]
    assert [answer.body["id"] for answer in answers[:50]] == [str(value) for value in range(50)]


def test_old_clients(same):
    assert [a.status for a in same(protocol.request(protocol.body(1), version="1.0") * 2)] == [200]
    same(protocol.request(protocol.body(1), "Connection: keep-alive", version="1.0") * 2)


# -- fuzzed requests ------------------------------------------------------------------------


def mutate(content, randomness):
    """Return bytes with a few changes, of which many are of the sorts that confuse parsers."""
    content = bytearray(content)
    pieces = [*(bytes([byte]) for byte in b'\n\0 :%\xff,[]{"-\t'), b"\r\n", b"1e999", b"0x"]
    for _ in range(randomness.choice([1, 1, 2, 4])):
        position = randomness.randrange(len(content) + 1)
        kind = randomness.randrange(4)
        if kind == 0:
            content[position:position] = randomness.choice(pieces)
        elif kind == 1:
            del content[position : position + randomness.choice([1, 1, 2, 10])]
        elif kind == 2 and position < len(content):
            content[position] = randomness.randrange(256)
        else:
            content[position:position] = content[position : position + randomness.randrange(20)]
    return bytes(content)


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_requests(same, seed):
    randomness = random.Random(seed)
    content, headers = binary({"INPUT0": COUNT, "INPUT1": ONES})
    lines = [f"{name}: {value}" for name, value in headers.items()]
    trace = "traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    wholes = [
        request(protocol.body(1)), request(content, *lines), request(method="GET", path="/v2/models/simple"),
        request(b"", "Accept: x", trace, method="GET", path="/v2"), protocol.chunked(protocol.body(1)),
    ]  # fmt: skip
    for _ in range(150):
        same(mutate(randomness.choice(wholes), randomness))


VALUES = [
    None, True, False, 0, 1, -1, 2, 16, 2**31, 2**63, 2**64, 1e300, 0.5, -0.0, "", "x", "INPUT0", "INPUT1",
    "INT32", "FP32", "BOOL", [], [1], [[1, 2], [3]], [1, 16], [0] * 16, [[0] * 16], {}, {"a": 1},
    {"binary_data_size": 64}, "\u00e9'", "it's", 'a"b', "\x01\u2028",
]  # fmt: skip


def change(document, randomness):
    """Return a document with a value, key or item that is different, missing or one too many."""
    paths = [()]

    def walk(value, path):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            paths.append((*path, key))
            walk(item, (*path, key))

    walk(document, ())
    paths = [path for path in paths if len(path) < 5 or randomness.random() < 0.1]
    *path, key = randomness.choice(paths[1:])
    parent = document
    for step in path:
        parent = parent[step]
    kind = randomness.randrange(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[randomness.choice(["parameters", "id", "data", "shape", "x", "name"])] = copy.deepcopy(
            randomness.choice(VALUES)
        )
    else:
        parent[key] = copy.deepcopy(randomness.choice(VALUES))


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_documents(same, seed):
    randomness = random.Random(seed)
    for _ in range(150):
        document = {
            "id": "1", "parameters": {"binary_data_output": False},
            "inputs": [serving_tensor("INPUT0", COUNT), serving_tensor("INPUT1", ONES)],
            "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": False}}, {"name": "OUTPUT1"}],
        }  # fmt: skip
        for _ in range(randomness.choice([1, 1, 2, 3])):
            change(document, randomness)
        same(request(json.dumps(document).encode()))
