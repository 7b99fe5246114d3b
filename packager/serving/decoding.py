"""The body of an infer request to arrays by name: the Open Inference Protocol v2.

A body is JSON, or JSON followed by tensors as bytes if the header `Inference-Header-Content-Length` says how long the
JSON is (Triton's binary tensor data extension). Clients repeat everything but the numbers, so what the rest of the JSON
says is remembered by its bytes: as a plan for the bytes that follow it, or as a template with gaps for arrays.

https://github.com/kserve/open-inference-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import simdjson

from packager.serving.messages import Rejected
from packager.serving.shared_memory import SharedMemory
from packager.serving.signature import Signature, TensorSpec
from packager.serving.tensors import Array, parse_json_tensor, view_bytes, view_tensor

INFERENCE_HEADER = b"inference-header-content-length"
_MAX_DIM = 1 << 62
_MAX_REMEMBERED = 256
_MAX_REMEMBERED_BYTES = 4096
_DATA = b'"data":'
_NUMBERS = re.compile(rb'"data":(\s*\[[-+0-9.eE,\[\]\s]*\])')


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


class _Part(NamedTuple):
    """Where an input is among the bytes after the JSON."""

    spec: TensorSpec
    shape: Sequence[int]
    start: int
    end: int


class _Plan(NamedTuple):
    """What JSON says about the bytes that follow it, in the order of the signature."""

    parts: Sequence[_Part]
    outputs: Sequence[RequestedOutput]
    size: int


class _Gap(NamedTuple):
    """Where an input is in a template: the text that follows its numbers."""

    spec: TensorSpec
    shape: Sequence[int]
    following: bytes


class _Template(NamedTuple):
    """JSON around the numbers of all inputs, in the order of the document."""

    gaps: Sequence[_Gap]
    outputs: Sequence[RequestedOutput]


class RequestDecoder:
    """Decodes the requests to one model: names, dtypes, shapes and the limits of dims are checked."""

    def __init__(self, signature: Signature, shared_memory: SharedMemory) -> None:
        self._signature = signature
        self._shared_memory = shared_memory
        self._plans: dict[bytes, _Plan] = {}
        self._templates: dict[bytes, _Template] = {}
        """By the text before the first gap."""

    def decode(self, body: bytes | bytearray, header: bytes | None) -> InferRequest:
        """Decode a body; `header` is the value of `Inference-Header-Content-Length`. Raises `Rejected`."""
        view = memoryview(body)
        if header is None:
            return self._fill_template(body) or self._parse(body, view[:0])
        length = int(header) if header.isdigit() and len(header) < 12 else -1
        if not 0 <= length <= len(body):
            text = header[:40].decode("latin-1")
            raise Rejected(400, f"inference header size should be in range (0, {len(body)}), got: {text}")
        if length == 0:
            return self._decode_raw(view)
        text_bytes = bytes(view[:length])
        plan = self._plans.get(text_bytes)
        if plan is None or plan.size != len(body) - length:
            return self._parse(text_bytes, view[length:])
        tail = view[length:]
        inputs = {spec.name: view_bytes(tail[start:end], spec, shape) for spec, shape, start, end in plan.parts}
        return InferRequest(None, inputs, plan.outputs)

    def _parse(self, text: bytes | bytearray, tail: memoryview) -> InferRequest:
        try:
            return self._decode(text, tail)
        except UnicodeDecodeError:
            raise Rejected(400, "the request JSON is not valid UTF-8") from None
        except (ValueError, RuntimeError) as error:  # of simdjson: everything else is checked
            raise Rejected(400, f"failed to parse the request JSON: {str(error).partition(':')[0]}") from None

    def _decode(self, text: bytes | bytearray, tail: memoryview) -> InferRequest:
        document = simdjson.Parser().parse(text)  # a parser costs nothing, and one that is kept keeps its buffers
        if document.__class__ is not simdjson.Object:
            raise Rejected(400, "the request JSON is not an object")
        keys = list(document)
        request_id = document["id"] if "id" in keys else None
        if request_id is not None and request_id.__class__ is not str:
            raise Rejected(400, "'id' is not a string")
        parameters = _read_parameters(document) if "parameters" in keys else {}
        parts: list[_Part] = []
        order: list[tuple[TensorSpec, Sequence[int]]] = []
        inputs, end = self._decode_inputs(_read_objects(document, "inputs"), tail, parts, order)
        if end != len(tail):
            raise Rejected(400, f"unexpected additional input data for model '{self._signature.model}'")
        binary = _read_flag(parameters, "binary_data_output", default=False)
        if "outputs" in keys and (requested := _read_objects(document, "outputs")):
            outputs = self._decode_outputs(requested, binary)
        else:
            outputs = [RequestedOutput(name, binary) for name in self._signature.outputs]
        if request_id is None and all(output.memory is None for output in outputs):  # memory can be unregistered
            if len(parts) == len(inputs) and len(text) <= _MAX_REMEMBERED_BYTES:
                self._remember_plan(bytes(text), parts, outputs, end)
            elif len(order) == len(inputs):
                self._remember_template(text, order, outputs)
        return InferRequest(request_id, inputs, outputs)

    # -- what is remembered -----------------------------------------------------------------

    def _remember_plan(
        self, text: bytes, parts: Sequence[_Part], outputs: Sequence[RequestedOutput], size: int
    ) -> None:
        if len(self._plans) >= _MAX_REMEMBERED:
            self._plans.clear()
        names = list(self._signature.inputs)
        self._plans[text] = _Plan(sorted(parts, key=lambda part: names.index(part.spec.name)), outputs, size)

    def _remember_template(
        self,
        text: bytes | bytearray,
        order: Sequence[tuple[TensorSpec, Sequence[int]]],
        outputs: Sequence[RequestedOutput],
    ) -> None:
        """Remember the text around the numbers, if it is certain where they are.

        Without backslashes, the bytes `"data"` are a string of that value. There is one in each input, the key of its
        numbers; if there are no more, they are those keys.
        """
        spans = [match.span(1) for match in _NUMBERS.finditer(text)]
        if len(spans) != len(order) or text.count(b'"data"') != len(order) or b"\\" in text:
            return
        ends = [start for start, _ in spans[1:]] + [len(text)]
        following = [bytes(text[end:start]) for (_, end), start in zip(spans, ends, strict=True)]
        before = bytes(text[: spans[0][0]])
        if len(before) + sum(map(len, following)) > _MAX_REMEMBERED_BYTES:
            return
        if len(self._templates) >= _MAX_REMEMBERED:
            self._templates.clear()
        gaps = [_Gap(spec, shape, rest) for (spec, shape), rest in zip(order, following, strict=True)]
        self._templates[before] = _Template(gaps, outputs)

    def _fill_template(self, text: bytes | bytearray) -> InferRequest | None:
        """Decode a request with a template; None if there is none for it. Raises `Rejected`."""
        position = text.find(_DATA, 0, _MAX_REMEMBERED_BYTES) + len(_DATA)
        template = self._templates.get(bytes(text[:position]))
        if template is None:
            return None
        inputs = {}
        try:
            for spec, shape, following in template.gaps:
                end = text.find(following, position)
                if end < 0:
                    return None
                inputs[spec.name] = parse_json_tensor(simdjson.Parser().parse(text[position:end]), spec, shape)
                position = end + len(following)
        except (ValueError, RuntimeError):  # no JSON: the whole is parsed to see what is wrong
            return None
        if position != len(text):
            return None
        if len(inputs) > 1:
            inputs = {name: inputs[name] for name in self._signature.inputs}
        return InferRequest(None, inputs, template.outputs)

    # -- inputs -----------------------------------------------------------------------------

    def _decode_inputs(
        self,
        tensors: Iterable[simdjson.Object],
        tail: memoryview,
        parts: list[_Part],
        order: list[tuple[TensorSpec, Sequence[int]]],
    ) -> tuple[dict[str, Array], int]:
        """Decode the inputs; returns arrays by name, and how many bytes of `tail` they take.

        `parts` collects those that are among these bytes, and `order` those that are in JSON.
        """
        signature = self._signature
        arrays: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        end = 0
        for tensor in tensors:
            keys = list(tensor)
            spec = self._find_input(tensor, keys)
            if spec.name in arrays:
                raise Rejected(400, f"input '{spec.name}' is given twice for model '{signature.model}'")
            shape = _read_shape(tensor, keys, spec.name)
            signature.check_shape(spec, shape, sizes)
            parameters = _read_parameters(tensor) if "parameters" in keys else {}
            byte_size = parameters.get("binary_data_size")
            if "shared_memory_region" in parameters:
                data = memoryview(bytes(self._shared_memory.locate(parameters)))
                arrays[spec.name] = view_tensor(data, spec, shape, signature.model)
            elif byte_size is None:
                arrays[spec.name] = parse_json_tensor(tensor["data"] if "data" in keys else None, spec, shape)
                order.append((spec, shape))
            else:
                if "data" in keys:
                    raise Rejected(400, f"input '{spec.name}' has both 'data' and 'binary_data_size'")
                if byte_size.__class__ is not int or not 0 <= byte_size <= len(tail) - end:
                    message = f"unexpected size for input '{spec.name}': {_show(byte_size)} bytes"
                    raise Rejected(400, f"{message}, and {len(tail) - end} are left for model '{signature.model}'")
                arrays[spec.name] = view_tensor(tail[end : end + byte_size], spec, shape, signature.model)
                parts.append(_Part(spec, shape, end, end + byte_size))
                end += byte_size
        if len(arrays) != len(signature.inputs):
            raise _missing_inputs(arrays, signature)
        if len(arrays) > 1:
            arrays = {name: arrays[name] for name in signature.inputs}
        return arrays, end

    def _find_input(self, tensor: simdjson.Object, keys: list[str]) -> TensorSpec:
        """Return the input that a tensor is for. Raises `Rejected` for an unknown name or the wrong datatype."""
        name = _read_text(tensor, keys, "name", "an input")
        spec = self._signature.inputs.get(name)
        if spec is None:
            raise Rejected(400, f"unexpected inference input '{name}' for model '{self._signature.model}'")
        datatype = _read_text(tensor, keys, "datatype", f"input '{name}'")
        if datatype != spec.datatype:
            message = f"inference input '{name}' data-type is '{datatype}'"
            raise Rejected(400, f"{message}, but model '{self._signature.model}' expects '{spec.datatype}'")
        return spec

    def _decode_raw(self, data: memoryview) -> InferRequest:
        """Decode a body that is the bytes of the only input; at most one of its dims may be unknown."""
        signature = self._signature
        if len(signature.inputs) != 1:
            message = (
                f"Raw request must only have 1 input (found 1) to be deduced but got {len(signature.inputs)} inputs"
            )
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
        array = view_tensor(data, spec, shape, signature.model)
        return InferRequest(None, {spec.name: array}, [RequestedOutput(name, True) for name in signature.outputs])

    # -- outputs ----------------------------------------------------------------------------

    def _decode_outputs(self, tensors: Iterable[simdjson.Object], binary_default: bool) -> list[RequestedOutput]:
        signature = self._signature
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
                memory = self._shared_memory.locate(parameters)
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
