"""Write a state dict as one file of plain bytes, which ONNX can refer to as external data.

An exporter that writes weights into its protobuf copies them several times, and so does every reader of it: the
weights are most of the work of an export. Here the graph is exported without them. They are written once, each at the
start of a page, and onnxruntime maps them from there. Names that share memory, as tied weights do, share their bytes
in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from packager.export.graph.messages import ExternalWeight

_PAGE_BYTES = 4096
_ONNX_DTYPES = {
    torch.float32: "FLOAT", torch.float64: "DOUBLE", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16",
    torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64",
    torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64",
    torch.bool: "BOOL", torch.complex64: "COMPLEX64", torch.complex128: "COMPLEX128",
}  # fmt: skip


def count_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; tied weights count once for each of their names."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def write_weights(state: Mapping[str, torch.Tensor], path: Path) -> tuple[ExternalWeight, ...]:
    """Write CPU tensors of any shape to `path`, little-endian as ONNX requires; return where each one lies.

    Raises KeyError for a dtype that the table above lacks, such as float8.
    """
    locations: dict[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype], tuple[int, int]] = {}
    weights = []
    with path.open("wb") as stream:
        for name, tensor in state.items():
            key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if key not in locations:
                content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
                stream.seek(-(-stream.tell() // _PAGE_BYTES) * _PAGE_BYTES)
                locations[key] = (stream.tell(), content.nbytes)
                stream.write(content.data)
            offset, length = locations[key]
            weights.append(ExternalWeight(name, _ONNX_DTYPES[tensor.dtype], tuple(tensor.shape), offset, length))
    return tuple(weights)
