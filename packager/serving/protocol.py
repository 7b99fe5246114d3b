"""The Open Inference Protocol: the bytes of an infer request to arrays by name, and arrays to the bytes of an answer.

A body is JSON, or JSON followed by tensors as little-endian bytes if the header `Inference-Header-Content-Length` says
how long the JSON is (Triton's binary tensor data extension). JSON is parsed by simdjson, which writes the numbers of a
tensor straight into a buffer. Binary tensors are views of the body.

https://github.com/kserve/open-inference-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from packager.serving.messages import Rejected
from packager.serving.shared_memory import SharedMemory
from packager.serving.signature import Signature, TensorSpec

Array = NDArray[Any]

INFERENCE_HEADER = b"inference-header-content-length"
_MAX_DIM = 1 << 62


class RequestedOutput(NamedTuple):
    """An output that a request asks for: in JSON, as bytes after it, or written to `memory`."""

    name: str
    binary: bool
    memory: memoryview | None = None
    region: str = ""


class InferRequest(NamedTuple):
    """A request: arrays by input name, in the order of the signature, and the outputs to return."""

    id: str | None
    inputs: dict[str, Array]
    outputs: Sequence[RequestedOutput]


class InferBody(NamedTuple):
    """The body of an answer: its parts, and the length of the JSON if tensors follow it."""

    parts: tuple[bytes | memoryview, ...]
    json_length: int | None


# -- requests -------------------------------------------------------------------------------


def decode_request(
    body: bytes | bytearray, header: bytes | None, signature: Signature, shared_memory: SharedMemory
) -> InferRequest:
    """Decode the body of a request; `header` is the value of `Inference-Header-Content-Length`.

    Names, dtypes, shapes and the limits of dims are checked. Raises `Rejected`.
    """
    view = memoryview(body)
    if header is None:
        return _parse(body, view[:0], signature, shared_memory)
    length = int(header) if header.isdigit() and len(header) < 12 else -1
    if not 0 <= length <= len(body):
        text = header[:40].decode("latin-1")
        raise Rejected(400, f"inference header size should be in range (0, {len(body)}), got: {text}")
    if length == 0:
        return _decode_raw(view, signature)
    return _parse(view[:length], view[length:], signature, shared_memory)


def _parse(
    text: bytes | bytearray | memoryview, tail: memoryview, signature: Signature, shared_memory: SharedMemory
) -> InferRequest:
    try:
        return _decode(text, tail, signature, shared_memory)
    except UnicodeDecodeError:
        raise Rejected(400, "the request JSON is not valid UTF-8") from None
    except (ValueError, RuntimeError) as error:  # of simdjson: everything else is checked
        raise Rejected(400, f"failed to parse the request JSON: {str(error).partition(':')[0]}") from None


def _decode(
    text: bytes | bytearray | memoryview, tail: memoryview, signature: Signature, shared_memory: SharedMemory
) -> InferRequest:
    document = simdjson.Parser().parse(text)  # a parser costs nothing; one that is kept keeps its largest buffers too
    if document.__class__ is not simdjson.Object:
        raise Rejected(400, "the request JSON is not an object")
    keys = list(document)
    request_id = document["id"] if "id" in keys else None
    if request_id is not None and request_id.__class__ is not str:
        raise Rejected(400, "'id' is not a string")
    parameters = _read_parameters(document) if "parameters" in keys else {}
    inputs, end = _decode_inputs(_read_objects(document, "inputs"), tail, signature, shared_memory)
    if end != len(tail):
        raise Rejected(400, f"unexpected additional input data for model '{signature.model}'")
    binary = _read_flag(parameters, "binary_data_output", default=False)
    if "outputs" in keys and (requested := _read_objects(document, "outputs")):
        outputs = _decode_outputs(requested, signature, binary, shared_memory)
    else:
        outputs = [RequestedOutput(name, binary) for name in signature.outputs]
    return InferRequest(request_id, inputs, outputs)


def _decode_inputs(
    tensors: Iterable[simdjson.Object], tail: memoryview, signature: Signature, shared_memory: SharedMemory
) -> tuple[dict[str, Array], int]:
    """Decode the inputs; returns arrays by name, and how many bytes of `tail` they take."""
    arrays: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        keys = list(tensor)
        name = _read_text(tensor, keys, "name", "an input")
        spec = signature.inputs.get(name)
        if spec is None:
            raise Rejected(400, f"unexpected inference input '{name}' for model '{signature.model}'")
        if name in arrays:
            raise Rejected(400, f"input '{name}' is given twice for model '{signature.model}'")
        datatype = _read_text(tensor, keys, "datatype", f"input '{name}'")
        if datatype != spec.datatype:
            message = f"inference input '{name}' data-type is '{datatype}'"
            raise Rejected(400, f"{message}, but model '{signature.model}' expects '{spec.datatype}'")
        shape = _read_shape(tensor, keys, name)
        signature.check_shape(spec, shape, sizes)
        parameters = _read_parameters(tensor) if "parameters" in keys else {}
        if "shared_memory_region" in parameters:
            data = memoryview(bytes(shared_memory.locate(parameters)))
            arrays[name] = _view_tensor(data, spec, shape, signature.model)
            continue
        byte_size = parameters.get("binary_data_size")
        if byte_size is None:
            arrays[name] = _decode_json_tensor(tensor, keys, spec, shape)
            continue
        if "data" in keys:
            raise Rejected(400, f"input '{name}' has both 'data' and 'binary_data_size'")
        if byte_size.__class__ is not int or not 0 <= byte_size <= len(tail) - end:
            message = f"unexpected size for input '{name}': {_show(byte_size)} bytes"
            raise Rejected(400, f"{message}, and {len(tail) - end} are left for model '{signature.model}'")
        arrays[name] = _view_tensor(tail[end : end + byte_size], spec, shape, signature.model)
        end += byte_size
    if len(arrays) != len(signature.inputs):
        raise _missing_inputs(arrays, signature)
    if list(arrays) != list(signature.inputs):
        arrays = {name: arrays[name] for name in signature.inputs}
    return arrays, end


def _decode_json_tensor(tensor: simdjson.Object, keys: list[str], spec: TensorSpec, shape: list[int]) -> Array:
    if spec.datatype in ("FP16", "BF16"):
        message = f"receiving {spec.datatype} data via JSON is not supported. Please use the binary data format"
        raise Rejected(400, f"{message} for input '{spec.name}'")
    data = tensor["data"] if "data" in keys else None
    if data.__class__ is not simdjson.Array:
        raise Rejected(400, f"input '{spec.name}' lacks an array 'data', or parameters with 'binary_data_size'")
    try:
        array = _flatten(data, spec)
    except (TypeError, ValueError, FloatingPointError):
        raise Rejected(400, f"'data' of input '{spec.name}' has a value that is not {spec.datatype}") from None
    if array.size != math.prod(shape):
        message = f"shape of input '{spec.name}' does not match true shape of 'data' field"
        raise Rejected(400, f"{message}: it has {array.size} elements, expected {math.prod(shape)}")
    return array.reshape(shape)


def _flatten(data: simdjson.Array, spec: TensorSpec) -> Array:
    """Flatten nested arrays of numbers. Raises TypeError, ValueError or FloatingPointError if one does not fit."""
    kind, dtype = spec.dtype.kind, spec.dtype
    if kind == "b":
        return np.array(_flatten_bools(data), dtype=np.bool_)
    if kind == "f":
        wide = np.frombuffer(data.as_buffer(of_type="d"), np.float64)
        if dtype.itemsize == 8:
            return wide
        with np.errstate(over="raise", under="ignore"):
            return wide.astype(dtype)
    wide_integers: Array
    if kind == "i":
        wide_integers = np.frombuffer(data.as_buffer(of_type="i"), np.int64)
    else:
        wide_integers = np.frombuffer(data.as_buffer(of_type="u"), np.uint64)
    if dtype.itemsize == 8:
        return wide_integers
    limits = np.iinfo(dtype)
    if wide_integers.size and (wide_integers.min() < limits.min or wide_integers.max() > limits.max):
        raise ValueError("out of range")
    return wide_integers.astype(dtype)


def _flatten_bools(data: simdjson.Array) -> list[bool]:
    values: list[bool] = []
    for value in data:
        if value.__class__ is bool:
            values.append(value)
        elif value.__class__ is simdjson.Array:
            values.extend(_flatten_bools(value))
        else:
            raise TypeError("not a bool")
    return values


def _view_tensor(data: memoryview, spec: TensorSpec, shape: Sequence[int], model: str) -> Array:
    """View the bytes of a tensor as an array; they are copied only if they are not aligned, or bfloat16."""
    expected = math.prod(shape) * spec.wire.itemsize
    if len(data) != expected:
        message = f"input byte size mismatch for input '{spec.name}' for model '{model}'"
        raise Rejected(400, f"{message}. Expected {expected}, got {len(data)}")
    if expected == 0:
        return np.empty(shape, spec.dtype)
    if spec.datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise Rejected(400, f"input '{spec.name}' has a byte that is neither 0 nor 1, and is BOOL")
    array = np.frombuffer(data, spec.wire).reshape(shape)
    if spec.datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if array.flags.aligned else array.copy()


def _decode_raw(data: memoryview, signature: Signature) -> InferRequest:
    """Decode a body that is the bytes of the only input; at most one of its dims may be unknown."""
    if len(signature.inputs) != 1:
        message = f"Raw request must only have 1 input (found 1) to be deduced but got {len(signature.inputs)} inputs"
        raise Rejected(400, f"{message} in '{signature.model}' model configuration")
    (spec,) = signature.inputs.values()
    shape = spec.describe_shape()
    dynamic = [index for index, size in enumerate(shape) if size == -1]
    if len(dynamic) > 1 and spec.shape[0] == signature.batch_dim:
        shape[dynamic.pop(0)] = 1
    if len(dynamic) > 1:
        message = f"The shape of the raw input '{spec.name}' can not be deduced"
        raise Rejected(400, f"{message} because there are more than one variable-sized dimension")
    if dynamic:
        rest = math.prod(size for size in shape if size != -1) * spec.wire.itemsize
        shape[dynamic[0]] = len(data) // rest if rest else 0
    signature.check_shape(spec, shape, {})
    array = _view_tensor(data, spec, shape, signature.model)
    return InferRequest(None, {spec.name: array}, [RequestedOutput(name, True) for name in signature.outputs])


def _decode_outputs(
    tensors: Iterable[simdjson.Object], signature: Signature, binary_default: bool, shared_memory: SharedMemory
) -> list[RequestedOutput]:
    outputs: list[RequestedOutput] = []
    for tensor in tensors:
        keys = list(tensor)
        name = _read_text(tensor, keys, "name", "an output")
        if name not in signature.outputs:
            raise Rejected(400, f"unexpected inference output '{name}' for model '{signature.model}'")
        if any(output.name == name for output in outputs):
            raise Rejected(400, f"output '{name}' is requested twice for model '{signature.model}'")
        parameters = _read_parameters(tensor) if "parameters" in keys else {}
        if parameters.get("classification"):
            raise Rejected(400, f"output '{name}' asks for a classification, which is not supported")
        binary = _read_flag(parameters, "binary_data", default=binary_default)
        if "shared_memory_region" in parameters:
            memory = shared_memory.locate(parameters)
            outputs.append(RequestedOutput(name, False, memory, parameters["shared_memory_region"]))
        else:
            outputs.append(RequestedOutput(name, binary))
    return outputs


def _read_objects(parent: simdjson.Object, key: str) -> list[simdjson.Object]:
    try:
        value = parent[key]
    except KeyError:
        raise Rejected(400, f"the request JSON lacks '{key}'") from None
    if value.__class__ is not simdjson.Array:
        raise Rejected(400, f"'{key}' is not an array")
    objects: list[Any] = list(value)
    if any(item.__class__ is not simdjson.Object for item in objects):
        raise Rejected(400, f"'{key}' has an item that is not an object")
    return objects


def _read_parameters(parent: simdjson.Object) -> dict[str, Any]:
    parameters = parent["parameters"]
    if parameters is None:
        return {}
    if parameters.__class__ is not simdjson.Object:
        raise Rejected(400, "'parameters' is not an object")
    values: dict[str, Any] = parameters.as_dict()
    return values


def _read_flag(parameters: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if value.__class__ is not bool:
        raise Rejected(400, f"parameter '{key}' is not a boolean")
    return bool(value)


def _read_text(parent: simdjson.Object, keys: list[str], key: str, owner: str) -> str:
    value = parent[key] if key in keys else None
    if value.__class__ is not str:
        raise Rejected(400, f"{owner} lacks the string '{key}'")
    return str(value)


def _read_shape(tensor: simdjson.Object, keys: list[str], name: str) -> list[int]:
    value = tensor["shape"] if "shape" in keys else None
    if value.__class__ is not simdjson.Array:
        raise Rejected(400, f"input '{name}' lacks the array 'shape'")
    if len(value) > 64:
        raise Rejected(400, f"'shape' of input '{name}' has {len(value)} dims")
    shape: list[Any] = value.as_list()
    for dim in shape:
        if dim.__class__ is not int or not 0 <= dim <= _MAX_DIM:
            raise Rejected(400, f"'shape' of input '{name}' has an invalid dim: {_show(dim)}")
    return shape


def _missing_inputs(arrays: Mapping[str, Array], signature: Signature) -> Rejected:
    given = ",".join(f"'{name}'" for name in arrays)
    missing = ",".join(f"'{name}'" for name in signature.inputs if name not in arrays)
    counts = f"expected {len(signature.inputs)} inputs but got {len(arrays)} inputs for model '{signature.model}'"
    details = f"Got input(s) [{given}], but missing required input(s) [{missing}]"
    return Rejected(400, f"{counts}. {details}. Please provide all required input(s).")


def _show(value: object) -> str:
    return repr(value)[:40]


# -- answers --------------------------------------------------------------------------------


def encode_response(
    version: str, request: InferRequest, outputs: Mapping[str, Array], signature: Signature
) -> InferBody:
    """Encode the outputs that a request asked for.

    Raises `Rejected`, 400, for NaN and infinities in an output that was not asked for as binary data, because JSON has
    neither, and for shared memory that is too small.
    """
    texts: list[bytes] = []
    tensors: list[memoryview] = []
    for name, binary, memory, region in request.outputs:
        spec = signature.outputs[name]
        array = np.ascontiguousarray(outputs[name], spec.wire)
        head = orjson.dumps({"name": name, "datatype": spec.datatype, "shape": outputs[name].shape})[:-1]
        if memory is not None:
            _write_to_memory(array, memory, spec)
            parameters = {"shared_memory_region": region, "shared_memory_byte_size": array.nbytes}
            texts.append(b'%s,"parameters":%s}' % (head, orjson.dumps(parameters)))
        elif binary:
            texts.append(b'%s,"parameters":{"binary_data_size":%d}}' % (head, array.nbytes))
            if array.nbytes:
                tensors.append(array.data.cast("B"))
        else:
            texts.append(b'%s,"data":%s}' % (head, _encode_json_tensor(array, spec)))
    names: dict[str, str] = {"model_name": signature.model, "model_version": version}
    if request.id is not None:
        names["id"] = request.id
    text = b'%s,"outputs":[%s]}' % (orjson.dumps(names)[:-1], b",".join(texts))
    if any(output.binary for output in request.outputs):
        return InferBody((text, *tensors), len(text))
    return InferBody((text,), None)


def _write_to_memory(array: Array, memory: memoryview, spec: TensorSpec) -> None:
    if len(memory) < array.nbytes:
        message = f"shared memory size specified with the request for output '{spec.name}' ({len(memory)} bytes)"
        raise Rejected(400, f"{message} should be at least {array.nbytes} bytes to hold the results")
    memory[: array.nbytes] = array.tobytes()


def _encode_json_tensor(array: Array, spec: TensorSpec) -> bytes:
    if spec.datatype in ("FP16", "BF16"):
        message = f"sending {spec.datatype} data via JSON is not supported. Please use the binary data format"
        raise Rejected(400, f"{message} for output '{spec.name}'")
    data = orjson.dumps(array.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in data:
        message = (
            f"output '{spec.name}' has NaN or infinite values, which JSON lacks. Please use the binary data format"
        )
        raise Rejected(400, message)
    return data
