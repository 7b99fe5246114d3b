"""Arrays to the body of an answer: JSON, and bytes after it for the outputs that a request wants so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import orjson

from packager.serving.decoding import InferRequest
from packager.serving.messages import Rejected
from packager.serving.signature import Signature, TensorSpec
from packager.serving.tensors import Array, format_json_tensor

_MAX_REMEMBERED = 1024
_LARGE_TENSOR = 64 << 10


class InferBody(NamedTuple):
    """The body of an answer: its parts, and the length of the JSON if tensors follow it."""

    parts: tuple[bytes | memoryview, ...]
    json_length: int | None


class ResponseEncoder:
    """Encodes the answers of one version of a model."""

    def __init__(self, signature: Signature, version: str) -> None:
        self._signature = signature
        self._names = orjson.dumps({"model_name": signature.model, "model_version": version})[:-1]
        self._heads: dict[tuple[str, tuple[int, ...]], bytes] = {}
        """The JSON of an output up to its data, by name and shape."""

    def encode(self, request: InferRequest, outputs: Mapping[str, Array]) -> InferBody:
        """Encode the outputs that a request asked for.

        Raises `Rejected`, 400, for NaN and infinities in an output that was not asked for as bytes, because JSON has
        neither, and for shared memory that is too small.
        """
        texts: list[bytes] = []
        tensors: list[bytes | memoryview] = []
        has_tensors = False
        for name, binary, memory, region in request.outputs:
            spec, array = self._signature.outputs[name], outputs[name]
            head = self._heads.get((name, array.shape)) or self._make_head(spec, array.shape)
            if not array.flags.c_contiguous or array.dtype != spec.wire:
                array = np.ascontiguousarray(array, spec.wire).reshape(array.shape)
            if binary:
                has_tensors = True
                texts.append(b'%s,"parameters":{"binary_data_size":%d}}' % (head, array.nbytes))
                tensors.append(array.tobytes() if array.nbytes < _LARGE_TENSOR else array.data.cast("B"))
            elif memory is None:
                texts.append(b'%s,"data":%s}' % (head, format_json_tensor(array, spec)))
            else:
                _write_to_memory(array, memory, spec)
                parameters = {"shared_memory_region": region, "shared_memory_byte_size": array.nbytes}
                texts.append(b'%s,"parameters":%s}' % (head, orjson.dumps(parameters)))
        names = self._names
        if request.id is not None:
            names = b'%s,"id":%s' % (names, orjson.dumps(request.id))
        text = b'%s,"outputs":[%s]}' % (names, b",".join(texts))
        return InferBody((text, *tensors), len(text)) if has_tensors else InferBody((text,), None)

    def _make_head(self, spec: TensorSpec, shape: tuple[int, ...]) -> bytes:
        if len(self._heads) >= _MAX_REMEMBERED:
            self._heads.clear()
        head = orjson.dumps({"name": spec.name, "datatype": spec.datatype, "shape": shape})[:-1]
        self._heads[spec.name, shape] = head
        return head


def _write_to_memory(array: Array, memory: memoryview, spec: TensorSpec) -> None:
    if len(memory) < array.nbytes:
        message = f"shared memory size specified with the request for output '{spec.name}' ({len(memory)} bytes)"
        raise Rejected(400, f"{message} should be at least {array.nbytes} bytes to hold the results")
    memory[: array.nbytes] = array.tobytes()
