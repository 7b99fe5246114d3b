"""A model repository of NVIDIA's Triton Inference Server, for its onnxruntime backend.

    NAME/config.pbtxt
    NAME/1/model.onnx, and model.onnx_data beside it

Triton's versions are integers, and the highest is served. An export always has the version 1; the version of the bundle
is a parameter in config.pbtxt, with its fingerprint.

If `max_batch_size` is above zero, Triton adds a batch dim in front of every `dims`, joins requests along it, and
accepts no more rows than that. That is right only where `packager.runtime.row_independence` says so; otherwise
`max_batch_size` is zero, and `dims` are the whole shapes. The backend refuses `dims` of an output that are not those
that the model declares, so they are read from the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packager.bundle import layout
from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
from packager.bundle.onnx_wire import WeightsUnsafe
from packager.bundle.seal import MAX_RECORD_BYTES
from packager.common.sanitize import get_first_line
from packager.deployment.source import BundleSource, Deployment
from packager.errors import DeploymentUnsupported, IntegrityFailed, NotABundle, PackagerError
from packager.runtime.bundled_onnx import open_bundled_onnx
from packager.runtime.onnx_backend import OnnxBackend, find_available_providers
from packager.runtime.row_independence import check_rows_are_independent, find_leading_dim
from packager.runtime.session_settings import SessionSettings

DEFAULT_MAX_BATCH_SIZE = 32
"""The largest batch where the manifest gives the dim no max."""

_MAX_INT32 = 2**31 - 1
_CPU = ["CPUExecutionProvider"]
_DATA_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64", "bfloat16": "TYPE_BF16",
}  # fmt: skip

_Tensor = tuple[str, str, tuple[int | str | None, ...]]


def write_triton(source: BundleSource) -> Deployment:
    """Return the files of a model repository. Raises `DeploymentUnsupported` and `IntegrityFailed`."""
    if source.config["artifacts"]["onnx"] is None:
        raise DeploymentUnsupported(source.title, "triton", "it has no ONNX model")
    model = _open_model(source, source.config["artifacts"]["onnx"])
    _check_tensors(source, model)
    max_batch_size, zero_because = _choose_max_batch_size(source, model)
    files = source.list_onnx(f"{source.name}/1")
    files[f"{source.name}/config.pbtxt"] = _format_config(source, model, max_batch_size, zero_because).encode()
    return Deployment(files, (f"max_batch_size is 0: {zero_because}",) if zero_because else ())


def _open_model(source: BundleSource, artifact: Mapping[str, Any]) -> OnnxBackend:
    providers = source.config["providers"]
    settings = SessionSettings(providers=tuple(find_available_providers(providers) or _CPU))
    try:
        return open_bundled_onnx(source.checked, artifact, providers, settings)
    except WeightsUnsafe as error:
        raise NotABundle(str(source.checked.path), f"{artifact['path']}: {error}") from None
    except PackagerError:
        raise
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes for a model it refuses)
        raise DeploymentUnsupported(source.title, "triton", f"onnxruntime: {get_first_line(error)}") from None


def _check_tensors(source: BundleSource, model: OnnxBackend) -> None:
    for name, dtype, shape in (*model.inputs, *model.outputs):
        if dtype not in _DATA_TYPES:
            raise DeploymentUnsupported(source.title, "triton", f"{name} has the dtype {dtype}")
        if 0 in shape:
            raise DeploymentUnsupported(source.title, "triton", f"{name} is always empty, and Triton has no dims of 0")


def _choose_max_batch_size(source: BundleSource, model: OnnxBackend) -> tuple[int, str | None]:
    """Return max_batch_size, and why it is zero."""
    dim = find_leading_dim(source.config)
    if dim is None:
        return 0, "no named dim that may be 1 is in front of every input and output"
    parity, golden = source.checked.read(layout.PARITY, MAX_RECORD_BYTES), source.checked.read(layout.GOLDEN)
    try:
        why = check_rows_are_independent(model.run, parse_reference_cases(parity, golden), dim)
    except EvidenceMalformed as error:
        raise IntegrityFailed(str(source.checked.path), f"evidence: {error}") from None
    largest = source.config["dims"][dim]["max"]
    return (0, why) if why else (min(largest or DEFAULT_MAX_BATCH_SIZE, _MAX_INT32), None)


def _format_config(source: BundleSource, model: OnnxBackend, max_batch_size: int, why: str | None) -> str:
    """Return config.pbtxt, a ModelConfig in protobuf's text format."""
    lines = [f"# {source.title}, {source.fingerprint}. Written by `package export --to triton`."]
    lines += [f"name: {_quote(source.name)}", 'platform: "onnxruntime_onnx"', 'backend: "onnxruntime"']
    lines += [f"# {line}" for line in f"Zero, as {why}".splitlines()] if why else []
    lines += [f"max_batch_size: {max_batch_size}"]
    lines += ["dynamic_batching { }"] if max_batch_size > 1 else []
    for kind, tensors in (("input", model.inputs), ("output", model.outputs)):
        lines += [line for tensor in tensors for line in _format_tensor(kind, tensor, is_batched=max_batch_size > 0)]
    if source.config["providers"] == _CPU:  # parity was proven there, and on no other device
        lines += ["instance_group [{ kind: KIND_CPU count: 1 }]"]
    facts = {"bundle": source.title, "version": source.version, "fingerprint": source.fingerprint}
    for key, value in facts.items():
        lines += [f"parameters {{ key: {_quote(key)} value {{ string_value: {_quote(value)} }} }}"]
    return "\n".join(lines) + "\n"


def _format_tensor(kind: str, tensor: _Tensor, *, is_batched: bool) -> list[str]:
    name, dtype, shape = tensor
    dims = [dim if isinstance(dim, int) else -1 for dim in shape[1 if is_batched else 0 :]]
    lines = [f"{kind} {{", f"  name: {_quote(name)}", f"  data_type: {_DATA_TYPES[dtype]}"]
    lines += [f"  dims: {_format_dims(dims or [1])}"]
    if is_batched and not dims:  # Triton has no tensor without dims; it takes this one out again
        lines += ["  reshape { shape: [] }"]
    return [*lines, "}"]


def _format_dims(dims: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, dims)) + "]"


def _quote(text: Any) -> str:
    return json.dumps(text, ensure_ascii=False)
