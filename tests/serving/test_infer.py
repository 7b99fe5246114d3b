"""Infer requests over a real socket: JSON, binary tensors, compression, and everything that is refused."""

import gzip
import json
import zlib

import numpy as np
import pytest

COUNT = np.arange(16, dtype=np.int32)[None]
ONES = np.ones((1, 16), np.int32)
PATH = "/v2/models/simple/infer"


def binary(inputs, **fields):
    """Return the body and the headers of a request with binary tensors."""
    datatypes = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
    tensors = [
        {"name": name, "shape": list(array.shape), "datatype": datatypes[str(array.dtype)],
         "parameters": {"binary_data_size": array.nbytes}}
        for name, array in inputs.items()
    ]  # fmt: skip
    header = json.dumps({"inputs": tensors, **fields}).encode()
    body = header + b"".join(array.tobytes() for array in inputs.values())
    return body, {"Inference-Header-Content-Length": str(len(header))}


def parse_binary(headers, body):
    """Return the JSON of an answer and its binary tensors as int32, by name."""
    length = int(headers["inference-header-content-length"])
    answer, tail = json.loads(body[:length]), body[length:]
    outputs = {}
    for output in answer["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            outputs[output["name"]] = np.frombuffer(tail[:size], np.int32).reshape(output["shape"])
            tail = tail[size:]
    assert tail == b""
    return answer, outputs


def test_tensors_go_both_ways_as_bytes(served):
    body, headers = binary({"INPUT0": COUNT, "INPUT1": ONES}, parameters={"binary_data_output": True})
    status, headers, body = served.ask("POST", PATH, body, headers)
    assert status == 200
    assert headers["content-type"] == "application/octet-stream"
    answer, outputs = parse_binary(headers, body)
    assert "data" not in answer["outputs"][0]
    assert np.array_equal(outputs["OUTPUT0"], COUNT + 1)
    assert np.array_equal(outputs["OUTPUT1"], COUNT - 1)


def test_json_and_bytes_mix(served):
    header = {
        "inputs": [
            {"name": "INPUT1", "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": 64}},
            {"name": "INPUT0", "shape": [1, 16], "datatype": "INT32", "data": [COUNT.tolist()]},
        ],
        "outputs": [{"name": "OUTPUT1"}, {"name": "OUTPUT0", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    status, headers, body = served.ask("POST", PATH, text + (2 * ONES).tobytes(), headers)
    assert status == 200
    answer, outputs = parse_binary(headers, body)
    assert answer["outputs"][0]["data"] == (COUNT - 2)[0].tolist()
    assert list(outputs) == ["OUTPUT0"]
    assert np.array_equal(outputs["OUTPUT0"], COUNT + 2)


def test_an_output_may_refuse_the_bytes_that_the_request_asks_for(served):
    wanted = [{"name": "OUTPUT0", "parameters": {"binary_data": False}}]
    body, headers = binary({"INPUT0": COUNT, "INPUT1": ONES}, outputs=wanted, parameters={"binary_data_output": True})
    status, headers, body = served.ask("POST", PATH, body, headers)
    assert status == 200
    assert "inference-header-content-length" not in headers
    assert json.loads(body)["outputs"][0]["data"] == (COUNT + 1)[0].tolist()


def test_a_body_without_json_is_the_only_input(serve, linear_bundle):
    server = serve(linear_bundle("1.9.0"))
    x = np.random.default_rng(0).random((3, 4), np.float32)
    expected = np.array(server.infer("net", {"x": x})[1]["outputs"][0]["data"], np.float32)
    raw = {"Inference-Header-Content-Length": "0"}
    status, headers, body = server.ask("POST", "/v2/models/net/infer", x.tobytes(), raw)
    assert status == 200
    _, outputs = parse_binary(headers, body)
    assert np.allclose(outputs["y"].view(np.float32).ravel(), expected, atol=1e-6)
    assert server.ask("POST", "/v2/models/net/infer", x.tobytes()[:-1], raw)[0] == 400


def test_a_body_without_json_needs_a_model_with_one_input(served):
    status, _, body = served.ask("POST", PATH, bytes(128), {"Inference-Header-Content-Length": "0"})
    assert status == 400
    assert "Raw request must only have 1 input" in json.loads(body)["error"]


# -- compression ----------------------------------------------------------------------------


@pytest.mark.parametrize(("coding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_request_may_be_compressed(served, coding, squeeze):
    body, headers = binary({"INPUT0": COUNT, "INPUT1": ONES}, parameters={"binary_data_output": True})
    status, headers, body = served.ask("POST", PATH, squeeze(body), {**headers, "Content-Encoding": coding})
    assert status == 200
    assert np.array_equal(parse_binary(headers, body)[1]["OUTPUT0"], COUNT + 1)


@pytest.mark.parametrize(("coding", "expand"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_an_answer_is_compressed_for_a_client_that_asks_for_one_coding(served, coding, expand):
    body, headers = binary({"INPUT0": COUNT, "INPUT1": ONES}, parameters={"binary_data_output": True})
    status, headers, body = served.ask("POST", PATH, body, {**headers, "Accept-Encoding": coding})
    assert (status, headers["content-encoding"]) == (200, coding)
    assert np.array_equal(parse_binary(headers, expand(body))[1]["OUTPUT0"], COUNT + 1)


@pytest.mark.parametrize("accepted", ["gzip, deflate, br", "br", "identity", "*", "gzip;q=0", ""])
def test_an_answer_is_not_compressed_for_what_libraries_send_on_their_own(served, accepted):
    body, headers = binary({"INPUT0": COUNT, "INPUT1": ONES})
    status, headers, body = served.ask("POST", PATH, body, {**headers, "Accept-Encoding": accepted})
    assert status == 200
    assert "content-encoding" not in headers
    assert json.loads(body)["model_name"] == "simple"


def test_only_answers_with_tensors_are_compressed(served):
    for method, path in (("GET", "/v2"), ("GET", "/v2/models/simple"), ("POST", PATH)):
        status, headers, body = served.ask(method, path, "{}", {"Accept-Encoding": "gzip"})
        assert status == (400 if method == "POST" else 200)
        assert "content-encoding" not in headers
        assert json.loads(body)


# The time stays out of these bodies: a file of gzip states it, and pytest names the tests after their bytes.
GZIP = gzip.compress(b"{}", mtime=0)


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", b"{}", 400),
        ("gzip", GZIP[:-1], 400),
        ("gzip", GZIP + b"x", 400),
        ("gzip", GZIP * 2, 400),
        ("deflate", GZIP, 400),
        ("gzip", zlib.compress(b"{}"), 400),
        ("gzip", b"", 400),
        ("br", b"{}", 415),
        ("gzip, gzip", gzip.compress(GZIP, mtime=0), 415),
        ("gzip", gzip.compress(bytes(80 << 20), mtime=0), 413),
        ("deflate", zlib.compress(bytes(80 << 20)), 413),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_refused(served, coding, body, status):
    actual, _, body = served.ask("POST", PATH, body, {"Content-Encoding": coding})
    assert actual == status
    assert json.loads(body)["error"]


# -- what is refused ------------------------------------------------------------------------

TENSOR = {"name": "INPUT0", "shape": [1, 16], "datatype": "INT32", "data": COUNT.tolist()}
OTHER = {**TENSOR, "name": "INPUT1"}


def without(tensor, key):
    return {name: value for name, value in tensor.items() if name != key}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "'inputs'"),
        ({"inputs": None}, "'inputs'"),
        ({"inputs": {}}, "'inputs'"),
        ({"inputs": [1]}, "'inputs'"),
        ([], "object"),
        (1, "object"),
        ({"inputs": []}, "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing "
                         "required input(s) ['INPUT0','INPUT1']. Please provide all required input(s)."),
        ({"inputs": [TENSOR]}, "missing required input(s) ['INPUT1']"),
        ({"inputs": [TENSOR, TENSOR]}, "given twice"),
        ({"inputs": [TENSOR, OTHER, {**TENSOR, "name": "INPUT2"}]}, "unexpected inference input 'INPUT2'"),
        ({"inputs": [without(TENSOR, "name"), OTHER]}, "'name'"),
        ({"inputs": [without(TENSOR, "shape"), OTHER]}, "'shape'"),
        ({"inputs": [without(TENSOR, "datatype"), OTHER]}, "'datatype'"),
        ({"inputs": [without(TENSOR, "data"), OTHER]}, "'data'"),
        ({"inputs": [{**TENSOR, "name": 1}, OTHER]}, "'name'"),
        ({"inputs": [{**TENSOR, "datatype": "FP32"}, OTHER]},
         "data-type is 'FP32', but model 'simple' expects 'INT32'"),
        ({"inputs": [{**TENSOR, "datatype": "int32"}, OTHER]}, "data-type is 'int32'"),
        ({"inputs": [{**TENSOR, "shape": [16]}, OTHER]}, "Expected [-1,16], got [16]"),
        ({"inputs": [{**TENSOR, "shape": [1, 15]}, OTHER]}, "Expected [-1,16], got [1,15]"),
        ({"inputs": [{**TENSOR, "shape": [2, 16]}, OTHER]}, "16 elements, expected 32"),
        ({"inputs": [{**TENSOR, "shape": [-1, 16]}, OTHER]}, "invalid dim: -1"),
        ({"inputs": [{**TENSOR, "shape": [1.0, 16]}, OTHER]}, "invalid dim: 1.0"),
        ({"inputs": [{**TENSOR, "shape": [True, 16]}, OTHER]}, "invalid dim: True"),
        ({"inputs": [{**TENSOR, "shape": ["1", 16]}, OTHER]}, "invalid dim: '1'"),
        ({"inputs": [{**TENSOR, "shape": [2**63, 16]}, OTHER]}, "invalid dim: 9223372036854775808"),
        ({"inputs": [{**TENSOR, "shape": [2**60, 16]}, OTHER]}, "batch is 1152921504606846976"),
        ({"inputs": [{**TENSOR, "shape": [1] * 100}, OTHER]}, "100 dims"),
        ({"inputs": [{**TENSOR, "shape": 16}, OTHER]}, "'shape'"),
        ({"inputs": [{**TENSOR, "shape": [0, 16], "data": []}, OTHER]}, "batch is 0"),
        ({"inputs": [{**TENSOR, "shape": [9, 16]}, OTHER]}, "batch is 9"),
        ({"inputs": [{**TENSOR, "shape": [2, 16], "data": [[0] * 16] * 2}, OTHER]}, "batch is 1 in input 'INPUT1'"),
        ({"inputs": [{**TENSOR, "data": [[0] * 15]}, OTHER]}, "15 elements, expected 16"),
        ({"inputs": [{**TENSOR, "data": [0.5] * 16}, OTHER]}, "not INT32"),
        ({"inputs": [{**TENSOR, "data": ["0"] * 16}, OTHER]}, "not INT32"),
        ({"inputs": [{**TENSOR, "data": [None] * 16}, OTHER]}, "not INT32"),
        ({"inputs": [{**TENSOR, "data": [True] * 16}, OTHER]}, "not INT32"),
        ({"inputs": [{**TENSOR, "data": [2**31] * 16}, OTHER]}, "not INT32"),
        ({"inputs": [{**TENSOR, "data": [2**64] * 16}, OTHER]}, "JSON"),
        ({"inputs": [{**TENSOR, "data": 1}, OTHER]}, "'data'"),
        ({"inputs": [{**TENSOR, "data": "AAAA"}, OTHER]}, "'data'"),
        ({"inputs": [{**TENSOR, "parameters": 1}, OTHER]}, "'parameters'"),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 64}}, OTHER]}, "both"),
        ({"inputs": [{**TENSOR, "parameters": {"shared_memory_region": "x"}}, OTHER]}, "--shared-memory"),
        ({"inputs": [TENSOR, OTHER], "outputs": [{"name": "OUTPUT2"}]}, "unexpected inference output 'OUTPUT2'"),
        ({"inputs": [TENSOR, OTHER], "outputs": [{}]}, "'name'"),
        ({"inputs": [TENSOR, OTHER], "outputs": [{"name": "OUTPUT0"}] * 2}, "requested twice"),
        ({"inputs": [TENSOR, OTHER], "outputs": {}}, "'outputs'"),
        ({"inputs": [TENSOR, OTHER], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]}, "boolean"),
        ({"inputs": [TENSOR, OTHER], "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 2}}]},
         "classification"),
        ({"inputs": [TENSOR, OTHER], "parameters": {"binary_data_output": "yes"}}, "boolean"),
        ({"inputs": [TENSOR, OTHER], "id": 7}, "'id'"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_is_refused_with_the_reason(served, document, message):
    status, _, body = served.ask("POST", PATH, json.dumps(document))
    assert status == 400
    error = json.loads(body)["error"]
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": -9223372036854775809, "inputs": []}', b'{"inputs": [18446744073709551616]}', b"", b"{", b"nonsense",
        b'{"inputs": [}', b"\xff\xfe", b'{"inputs": "\xff"}', b"[" * 100_000,
        b'{"inputs":' * 2000, b'{"inputs": [{"name": "\\ud800"}]}', b'{"inputs": [NaN]}', b"\x00" * 10, b"{}{}",
    ],
)  # fmt: skip
def test_a_body_that_is_not_json_is_refused(served, body):
    status, headers, answer = served.ask("POST", PATH, body)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("100000", "header size"), ("-1", "header size"), ("x", "header size"), ("1e2", "header size"),
        ("", "header size"), (" ", "header size"), ("9" * 100, "header size"), ("5", "JSON"),
    ],
)  # fmt: skip
def test_a_wrong_length_of_the_json_is_refused(served, length, message):
    body, _ = binary({"INPUT0": COUNT, "INPUT1": ONES})
    status, _, body = served.ask("POST", PATH, body, {"Inference-Header-Content-Length": length})
    assert status == 400
    assert message in json.loads(body)["error"]


def resized(size):
    header = [
        {"name": "INPUT0", "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": size}},
        {"name": "INPUT1", "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": 64}},
    ]
    text = json.dumps({"inputs": header}).encode()
    return text + bytes(128), {"Inference-Header-Content-Length": str(len(text))}


@pytest.mark.parametrize("size", [0, 60, 63, 65, 128, 129, 10**9, 2**63, -64, "64", 64.0, True, [64]])
def test_a_wrong_size_of_a_binary_tensor_is_refused(served, size):
    status, _, body = served.ask("POST", PATH, *resized(size))
    assert status == 400
    assert "size" in json.loads(body)["error"]


def test_bytes_after_the_last_tensor_are_refused(served):
    body, headers = binary({"INPUT0": COUNT, "INPUT1": ONES})
    status, _, body = served.ask("POST", PATH, body + b"\x00", headers)
    assert status == 400
    assert "unexpected additional input data" in json.loads(body)["error"]


def test_a_value_outside_its_range_is_refused_by_the_model(served):
    ids = np.array([[1, 2, 10**6]], np.int64)
    status, answer = served.infer("tokens", {"ids": ids, "scale": np.ones((1, 1), np.float32)})
    assert status == 400
    assert "out of data bounds" in answer["error"]
    assert "Traceback" not in answer["error"]


def test_infinity_is_an_error_in_json_and_a_number_in_bytes(served):
    inputs = {"ids": np.array([[1, 2]], np.int64), "scale": np.zeros((1, 1), np.float32)}
    status, answer = served.infer("tokens", inputs)
    assert status == 400
    assert "NaN or infinite values, which JSON lacks" in answer["error"]
    body, headers = binary(inputs, parameters={"binary_data_output": True})
    status, headers, body = served.ask("POST", "/v2/models/tokens/infer", body, headers)
    assert status == 200
    _, outputs = parse_binary(headers, body)
    assert np.isinf(outputs["mean"].view(np.float32)).all()


def test_a_number_too_large_for_float32_is_refused(served):
    body = json.dumps({"inputs": [
        {"name": "ids", "shape": [1, 1], "datatype": "INT64", "data": [1]},
        {"name": "scale", "shape": [1, 1], "datatype": "FP32", "data": [1e39]},
    ]})  # fmt: skip
    status, _, answer = served.ask("POST", "/v2/models/tokens/infer", body)
    assert status == 400
    assert "not FP32" in json.loads(answer)["error"]


def test_small_numbers_are_rounded_silently(served):
    scale = np.array([[1 + 1e-300]], np.float64)
    body = json.dumps({"inputs": [
        {"name": "ids", "shape": [1, 1], "datatype": "INT64", "data": [1]},
        {"name": "scale", "shape": [1, 1], "datatype": "FP32", "data": scale.tolist()},
    ]})  # fmt: skip
    assert served.ask("POST", "/v2/models/tokens/infer", body)[0] == 200


def test_unknown_parameters_and_fields_are_ignored(served):
    document = {"inputs": [{**TENSOR, "parameters": {"x": [1, {"y": None}]}, "z": 1}, OTHER], "parameters": {"a": 1}}
    assert served.ask("POST", PATH, json.dumps(document))[0] == 200
    query = served.ask("POST", f"{PATH}?test_1=1&test_2=2", json.dumps(document))
    assert query[0] == 200


@pytest.mark.parametrize("coding", [None, "gzip"])
def test_large_tensors_go_both_ways(serve, linear_bundle, coding):
    server = serve(linear_bundle("1.9.0"))
    x = np.random.default_rng(0).random((60_000, 4), np.float32)
    small = [server.infer("net", {"x": x[row : row + 1]})[1]["outputs"][0]["data"] for row in (0, 59_999)]
    body, headers = binary({"x": x}, parameters={"binary_data_output": True})
    if coding is not None:
        body = gzip.compress(body, 1)
        headers = {**headers, "Content-Encoding": coding, "Accept-Encoding": coding}
    status, headers, body = server.ask("POST", "/v2/models/net/infer", body, headers)
    assert status == 200
    body = body if coding is None else gzip.decompress(body)
    y = parse_binary(headers, body)[1]["y"].view(np.float32)
    assert y.shape == (60_000, 3)
    np.testing.assert_allclose(y[[0, -1]], small, rtol=1e-5, atol=1e-6)
    status, answer = server.infer("net", {"x": x})
    assert status == 200
    assert np.array_equal(np.array(answer["outputs"][0]["data"], np.float32).reshape(60_000, 3), y)
