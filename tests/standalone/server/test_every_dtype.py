"""Tensors of every dtype, in JSON and as bytes: the answers of `package serve`, with the right values."""

import json

import numpy as np
import pytest
from raw_http import exchange, request
from serving_modules import load_module

from packager.runtime.onnx_backend import to_bfloat16

DATATYPES = load_module("test_encodings").DATATYPES
PATH = "/v2/models/dtypes/infer"
HALVES = ("float16", "bfloat16")


@pytest.fixture(scope="module")
def same(both, every_dtype):
    """Return a function that sends a request to both servers, compares their answers, and returns one."""
    with both(every_dtype) as servers:

        def compare(content, *headers):
            ours, theirs = (exchange(server.port, request(content, *headers, path=PATH)) for server in servers)
            assert ours == theirs
            return ours[0]

        yield compare


def draw(dtype, random, shape):
    """Return an array of random values, as numpy has them, and its bytes."""
    if dtype == "bool":
        array = random.integers(0, 2, shape).astype(bool)
    elif dtype == "bfloat16":
        bits = to_bfloat16(random.normal(size=shape).astype(np.float32))
        return (bits.astype(np.uint32) << 16).view(np.float32), bits.tobytes()
    elif dtype.startswith("float"):
        scale = 1 if dtype == "float16" else 10.0 ** random.integers(-30, 30, shape)
        array = (random.normal(size=shape) * scale).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        array = random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return array, array.tobytes()


def make_request(arrays, as_bytes):
    """Return the body and the headers of a request; `as_bytes` are the dtypes that do not come in JSON."""
    tensors, tail = [], b""
    for dtype, (array, content) in arrays.items():
        tensor = {"name": f"a_{dtype}", "datatype": DATATYPES[dtype], "shape": list(array.shape)}
        if dtype in as_bytes:
            tensors.append({**tensor, "parameters": {"binary_data_size": len(content)}})
            tail += content
        else:
            tensors.append({**tensor, "data": array.tolist()})
    outputs = [{"name": f"b_{dtype}", "parameters": {"binary_data": dtype in as_bytes}} for dtype in arrays]
    text = json.dumps({"inputs": tensors, "outputs": outputs}).encode()
    return text + tail, f"Inference-Header-Content-Length: {len(text)}"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(1, 5), (3, 4), (2, 1)])
def test_tensors_of_every_dtype(same, seed, shape):
    random = np.random.default_rng(seed)
    arrays = {
        dtype: draw(dtype, random, shape) for dtype in DATATYPES if not dtype.startswith("uint") or dtype == "uint8"
    }
    as_bytes = {dtype for dtype in arrays if dtype in HALVES or random.integers(2)}
    answer = same(*make_request(arrays, as_bytes))
    assert answer.status == 200
    document, tail = answer.body
    for output in document["outputs"]:
        dtype = output["name"].removeprefix("b_")
        expected = ~arrays[dtype][0] if dtype == "bool" else arrays[dtype][0][:, ::-1]
        if dtype in as_bytes:
            size = output["parameters"]["binary_data_size"]
            actual = np.frombuffer(tail[:size], expected.dtype).reshape(shape)
            tail = tail[size:]
        else:
            actual = np.array(output["data"], expected.dtype).reshape(shape)
        assert np.array_equal(actual, expected), dtype
    assert tail == b""


def test_values_that_do_not_fit(same):
    random = np.random.default_rng(0)
    arrays = {
        dtype: draw(dtype, random, (1, 2)) for dtype in DATATYPES if not dtype.startswith("uint") or dtype == "uint8"
    }
    body, header = make_request(arrays, set(HALVES))
    length = int(header.split()[1])
    document, tail = json.loads(body[:length]), body[length:]
    values = [
        True,
        None,
        "1",
        0.5,
        1.0,
        -1,
        128,
        256,
        32768,
        2**31,
        2**63,
        2**63 - 1,
        -(2**63),
        1e39,
        1e308,
        [1],
        [[1], 2],
        {},
    ]
    for tensor in document["inputs"]:
        for data in (*([value, 1] for value in values), [], [1], [1, 1, 1], [[1, 1]], [[[1], [1]]], 1, None, "x"):
            changed = [{**each, "data": data} if each is tensor else each for each in document["inputs"]]
            text = json.dumps({"inputs": changed}).encode()
            same(text + tail, f"Inference-Header-Content-Length: {len(text)}")


def test_a_bool_has_two_values_and_halves_do_not_travel_in_json(same):
    arrays = {dtype: draw(dtype, np.random.default_rng(0), (1, 2)) for dtype in DATATYPES}
    arrays = {dtype: pair for dtype, pair in arrays.items() if not dtype.startswith("uint") or dtype == "uint8"}
    arrays["bool"] = arrays["bool"][0], b"\x01\x02"
    assert "neither 0 nor 1" in same(*make_request(arrays, set(arrays))).body["error"]
    arrays["bool"] = arrays["bool"][0], b"\x01\x00"
    for dtype in HALVES:
        assert "via JSON is not supported" in same(*make_request(arrays, {*HALVES, "bool"} - {dtype})).body["error"]
