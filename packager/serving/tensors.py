"""The data of a tensor: JSON and little-endian bytes to an array, and back.

simdjson writes the numbers of nested JSON arrays straight into a buffer. Bytes become a view of the body.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from packager.serving.messages import Rejected
from packager.serving.signature import TensorSpec

Array = NDArray[Any]


def parse_json_tensor(data: object, spec: TensorSpec, shape: Sequence[int]) -> Array:
    """Return the array of an input whose `data` is in JSON: a flat or nested array of numbers. Raises `Rejected`."""
    if spec.datatype in ("FP16", "BF16"):
        message = f"receiving {spec.datatype} data via JSON is not supported. Please use the binary data format"
        raise Rejected(400, f"{message} for input '{spec.name}'")
    if not isinstance(data, simdjson.Array):
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


def view_tensor(data: memoryview, spec: TensorSpec, shape: Sequence[int], model: str) -> Array:
    """View the bytes of a tensor as an array; they are copied only if they are not aligned, or bfloat16.

    Raises `Rejected` if they are too few or too many.
    """
    expected = math.prod(shape) * spec.wire.itemsize
    if len(data) != expected:
        message = f"input byte size mismatch for input '{spec.name}' for model '{model}'"
        raise Rejected(400, f"{message}. Expected {expected}, got {len(data)}")
    return view_bytes(data, spec, shape)


def view_bytes(data: memoryview, spec: TensorSpec, shape: Sequence[int]) -> Array:
    """View the bytes of a tensor, of the right number, as an array. Raises `Rejected` for a bool that is none."""
    if not data:
        return np.empty(shape, spec.dtype)
    if spec.datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise Rejected(400, f"input '{spec.name}' has a byte that is neither 0 nor 1, and is BOOL")
    array = np.frombuffer(data, spec.wire).reshape(shape)
    if spec.datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if array.flags.aligned else array.copy()


def format_json_tensor(array: Array, spec: TensorSpec) -> bytes:
    """Return an array as flat JSON. Raises `Rejected` for dtypes and values that JSON lacks."""
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
