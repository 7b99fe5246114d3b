"""Tensors of every dtype to the bytes of a request and of an answer, and back, without a server."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packager.runtime.onnx_backend import to_bfloat16
from packager.serving.decoding import InferRequest, RequestDecoder, RequestedOutput
from packager.serving.encoding import ResponseEncoder
from packager.serving.messages import Rejected
from packager.serving.shared_memory import SharedMemory
from packager.serving.signature import read_signature

DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32",
    "uint64": "UINT64",
}  # fmt: skip
NUMPY = [dtype for dtype in DATATYPES if dtype != "bfloat16"]


def signature_of(dtype, shape, outputs=None):
    """Return the signature of a model with one input and output of this shape; outputs are never bfloat16."""
    tensors = [{"name": "x", "dtype": dtype, "shape": list(shape)}]
    outputs = outputs or [{"name": "y", "dtype": "float32" if dtype == "bfloat16" else dtype, "shape": list(shape)}]
    dims = {dim: {"min": 0, "max": None} for dim in shape if isinstance(dim, str)}
    return read_signature({"name": "net", "inputs": tensors, "outputs": outputs, "dims": dims})


def decode(signature, body, header=None):
    return RequestDecoder(signature, SharedMemory(enabled=False)).decode(body, header)


def request_of(dtype, array, content=None):
    tensor = {"name": "x", "datatype": DATATYPES[dtype], "shape": list(array.shape)}
    if content is None:
        return json.dumps({"inputs": [{**tensor, "data": array.tolist()}]}).encode(), None
    text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}]}).encode()
    return text + content, b"%d" % len(text)


def dynamic(array):
    return [f"d{number}" for number in range(array.ndim)]


ARRAYS = st.sampled_from(NUMPY).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@given(array=ARRAYS)
def test_bytes_become_the_same_array(array):
    signature = signature_of(str(array.dtype), dynamic(array))
    decoded = decode(signature, *request_of(str(array.dtype), array, array.tobytes())).inputs["x"]
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    assert decoded.tobytes() == array.tobytes()
    assert decoded.flags.aligned


@given(array=ARRAYS)
def test_json_becomes_the_same_array(array):
    dtype = str(array.dtype)
    signature = signature_of(dtype, dynamic(array))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        with pytest.raises(Rejected, match="JSON"):
            decode(signature, *request_of(dtype, array))
    elif dtype == "float16":
        with pytest.raises(Rejected, match="via JSON is not supported"):
            decode(signature, *request_of(dtype, array))
    elif array.ndim == 0:
        with pytest.raises(Rejected, match="'data'"):  # `data` is an array
            decode(signature, *request_of(dtype, array))
    else:
        decoded = decode(signature, *request_of(dtype, array)).inputs["x"]
        assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
        assert np.array_equal(decoded, array)


@given(array=hnp.arrays("float32", hnp.array_shapes(max_dims=3, max_side=4)))
def test_bfloat16_becomes_the_float32_of_the_same_value(array):
    bits = to_bfloat16(array)
    decoded = decode(signature_of("bfloat16", dynamic(array)), *request_of("bfloat16", array, bits.tobytes()))
    assert decoded.inputs["x"].dtype == np.float32
    assert np.array_equal(to_bfloat16(decoded.inputs["x"]), bits)


def test_bfloat16_does_not_travel_in_json():
    array = np.ones(3, np.float32)
    with pytest.raises(Rejected, match="receiving BF16 data via JSON is not supported"):
        decode(signature_of("bfloat16", [3]), *request_of("bfloat16", array))


@given(array=ARRAYS, binary=st.booleans(), request_id=st.none() | st.text(st.characters(exclude_categories=["Cs"])))
def test_an_answer_holds_the_array(array, binary, request_id):
    encoder = ResponseEncoder(signature_of(str(array.dtype), dynamic(array)), "1.0.0")
    request = InferRequest(request_id, {}, [RequestedOutput("y", binary)])
    if not binary and (array.dtype == np.float16 or (array.dtype.kind == "f" and not np.isfinite(array).all())):
        with pytest.raises(Rejected):
            encoder.encode(request, {"y": array})
        return
    for _ in range(2):  # the second time, the head of the output is remembered
        parts, length = encoder.encode(request, {"y": array})
        body = b"".join(parts)
        answer = json.loads(body[:length])
        assert answer.get("id") == request_id
        (output,) = answer["outputs"]
        assert (output["name"], output["datatype"]) == ("y", DATATYPES[str(array.dtype)])
        assert output["shape"] == list(array.shape)
        if binary:
            assert body[length:] == array.tobytes()
            assert output["parameters"]["binary_data_size"] == array.nbytes
        else:
            assert length is None
            assert np.array_equal(np.array(output["data"], array.dtype).reshape(array.shape), array)


def test_views_and_foreign_byte_orders_are_written_in_order():
    array = np.arange(12, dtype=">i4").reshape(3, 4).T[::2]
    encoder = ResponseEncoder(signature_of("int32", dynamic(array)), "1.0.0")
    parts, length = encoder.encode(InferRequest(None, {}, [RequestedOutput("y", True)]), {"y": array})
    values = np.frombuffer(b"".join(parts)[length:], np.int32)
    assert np.array_equal(values.reshape(array.shape), array)


def test_a_bool_is_0_or_1():
    array = np.array([True, False])
    signature = signature_of("bool", [2])
    assert decode(signature, *request_of("bool", array, b"\x01\x00")).inputs["x"].tolist() == [True, False]
    with pytest.raises(Rejected, match="neither 0 nor 1"):
        decode(signature, *request_of("bool", array, b"\x01\x02"))
    for data in ([1, 0], [True, None], [[True], 1]):
        with pytest.raises(Rejected, match="not BOOL"):
            decode(signature, json.dumps(
                {"inputs": [{"name": "x", "datatype": "BOOL", "shape": [2], "data": data}]}
            ).encode())  # fmt: skip


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers_just_outside_their_range_are_refused(dtype):
    limits, signature = np.iinfo(dtype), signature_of(dtype, [1])
    tensor = {"name": "x", "datatype": DATATYPES[dtype], "shape": [1]}
    for value in (int(limits.min), int(limits.max)):
        body = json.dumps({"inputs": [{**tensor, "data": [value]}]}).encode()
        assert decode(signature, body).inputs["x"].tolist() == [value]
    for value in (int(limits.min) - 1, int(limits.max) + 1):
        with pytest.raises(Rejected):
            decode(signature, json.dumps({"inputs": [{**tensor, "data": [value]}]}).encode())


# -- what is remembered ---------------------------------------------------------------------

PAIR = {
    "name": "net",
    "inputs": [{"name": name, "dtype": "float32", "shape": ["batch", 2]} for name in ("a", "b")],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 2]}],
    "dims": {"batch": {"min": 1, "max": 4}},
}


def pair(arrays, order=("a", "b")):
    tensors = [
        {"name": name, "datatype": "FP32", "shape": list(arrays[name].shape),
         "parameters": {"binary_data_size": arrays[name].nbytes}}
        for name in order
    ]  # fmt: skip
    text = json.dumps({"inputs": tensors}).encode()
    return text + b"".join(arrays[name].tobytes() for name in order), b"%d" % len(text)


@given(
    batches=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12),
    seed=st.integers(0, 100),
)
def test_a_remembered_request_is_decoded_as_a_new_one(batches, seed):
    signature = read_signature(PAIR)
    decoder = RequestDecoder(signature, SharedMemory(enabled=False))
    random = np.random.default_rng(seed)
    for batch, is_reversed in batches:
        arrays = {name: random.random((batch, 2), np.float32) for name in ("a", "b")}
        body, header = pair(arrays, ("b", "a") if is_reversed else ("a", "b"))
        for request in (decoder.decode(body, header), decode(signature, body, header)):
            assert list(request.inputs) == ["a", "b"]
            assert all(np.array_equal(request.inputs[name], arrays[name]) for name in arrays)
            assert request.outputs == [RequestedOutput("y", False)]


def test_a_remembered_request_with_other_bytes_is_refused_as_a_new_one_is():
    decoder = RequestDecoder(read_signature(PAIR), SharedMemory(enabled=False))
    body, header = pair({name: np.ones((2, 2), np.float32) for name in ("a", "b")})
    decoder.decode(body, header)
    for wrong in (body[:-1], body + b"\x00"):
        with pytest.raises(Rejected):
            decoder.decode(wrong, header)


NUMBERS = st.lists(st.integers(-9, 9), min_size=2, max_size=2)


def pair_in_json(a, b, style, batch):
    """Return a request in JSON whose keys and blanks are in one of several orders."""
    tensors = [{"name": name, "datatype": "FP32", "shape": [batch, 2], "data": data} for name, data in (a, b)]
    if style & 1:
        tensors = [{"data": tensor["data"], **tensor} for tensor in tensors]
    if style & 2:
        tensors[0]["parameters"] = {"data": [1, 2]}
    if style & 4:
        tensors[0]["parameters"] = {"x": "data"}
    text = json.dumps({"inputs": tensors}, separators=None if style & 8 else (",", ":"), indent=style & 16 or None)
    if style & 32:
        text = text.replace('"data"', '"d\\u0061ta"', 1)
    return text.replace('"data":', '"data" :', 1).encode() if style & 64 else text.encode()


@given(
    requests=st.lists(
        st.tuples(st.permutations(["a", "b"]), NUMBERS, NUMBERS, st.integers(0, 127), st.booleans(), st.booleans()),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_a_remembered_template_is_filled_as_the_whole_is_parsed(requests):
    signature = read_signature(PAIR)
    decoder = RequestDecoder(signature, SharedMemory(enabled=False))
    for names, first, second, style, is_cut, is_nested in requests:
        data = [[first[:1] if is_cut else first], second] if is_nested else [first[:1] if is_cut else first, second]
        text = pair_in_json((names[0], data[0]), (names[1], data[1]), style, 1)
        for _ in range(2):
            outcomes = []
            for each in (decoder, RequestDecoder(signature, SharedMemory(enabled=False))):
                try:
                    inputs = each.decode(text, None).inputs
                    outcomes.append([(name, array.tolist()) for name, array in inputs.items()])
                except Rejected as error:
                    outcomes.append(error.message)
            assert outcomes[0] == outcomes[1]
            if not is_cut:
                expected = dict(zip(names, (first, second), strict=True))
                assert outcomes[0] == [(name, [expected[name]]) for name in ("a", "b")]


@pytest.mark.parametrize(
    "data", ["[1,2", "1,2]", "[1,2]]", "[[1,2]", "[1,,2]", "[1,2],", "{}", "", "null", "[1,2]}", '[1,"2"]', "[1,2][3]"]
)
def test_a_template_takes_nothing_but_whole_arrays(data):
    decoder = RequestDecoder(signature_of("float32", [2]), SharedMemory(enabled=False))
    text = '{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":%s}]}'
    assert decoder.decode((text % "[1,2]").encode(), None).inputs["x"].tolist() == [1, 2]
    assert len(decoder._templates) == 1
    with pytest.raises(Rejected):
        decoder.decode((text % data).encode(), None)


def test_a_template_is_used():
    decoder = RequestDecoder(signature_of("float32", [2]), SharedMemory(enabled=False))
    text = '{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[%d,2]}]}'
    decoder.decode((text % 1).encode(), None)
    decoder._parse = None
    assert decoder.decode((text % 7).encode(), None).inputs["x"].tolist() == [7, 2]


def test_what_is_remembered_is_bounded():
    decoder = RequestDecoder(read_signature(PAIR), SharedMemory(enabled=False))
    encoder = ResponseEncoder(signature_of("int8", ["n"]), "1.0.0")
    arrays = {name: np.ones((1, 2), np.float32) for name in ("a", "b")}
    for number in range(1000):
        body, header = pair(arrays)
        text = body[: int(header)] + b" " * number
        decoder.decode(text + body[int(header) :], b"%d" % len(text))
        for _ in range(3):
            request = InferRequest(None, {}, [RequestedOutput("y", True)])
            encoder.encode(request, {"y": np.ones(3 * number + _, np.int8)})
        text = '{"inputs":[{"name":"%s","datatype":"FP32","shape":[1,2],"data":[1,2]},%s{"name":"%s",'
        text = text % ("a", " " * number, "b") + '"datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
        decoder.decode(f"{' ' * number}{text}".encode(), None)
    assert len(decoder._plans) <= 256
    assert 0 < len(decoder._templates) <= 256
    assert len(encoder._heads) <= 1024


# -- the batch dim --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([["b", 2]], [["b", 3]], "b"),
        ([["b", "s"], ["b", "s"]], [["b", "s", 3], ["b"]], "b"),
        ([["b", 2], ["s", 2]], [["b", 3]], None),
        ([[2, "b"]], [[3, "b"]], None),
        ([["b", 2]], [[2, "b"]], None),
        ([["b", "b"]], [["b", 3]], None),
        ([["b", 2]], [["b", "b"]], None),
        ([["b", 2]], [["b", None]], None),  # a size that depends on something else
        ([["b", 2]], [["b", "t"]], None),
        ([["b", 2]], [[]], None),
        ([[1, 2]], [[1, 2]], None),
        ([[]], [[]], None),
    ],
)
def test_the_batch_dim_comes_first_everywhere_and_nowhere_else(inputs, outputs, expected):
    names = {dim for shape in (*inputs, *outputs) for dim in shape if isinstance(dim, str)}
    config = {
        "name": "net",
        "inputs": [{"name": f"x{i}", "dtype": "int8", "shape": shape} for i, shape in enumerate(inputs)],
        "outputs": [{"name": f"y{i}", "dtype": "int8", "shape": shape} for i, shape in enumerate(outputs)],
        "dims": {name: {"min": 1, "max": None} for name in names},
    }
    assert read_signature(config).batch_dim == expected
