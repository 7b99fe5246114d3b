"""Open the ONNX model of a bundle from memory: onnxruntime opens no file, and sees only what was verified."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packager.bundle.files import BundleFiles
from packager.bundle.onnx_wire import ExternalTensor, WeightsUnsafe, find_external_tensors
from packager.common.ort import onnxruntime
from packager.runtime.onnx_backend import OnnxBackend

_BFLOAT16 = 16
_DTYPES = {
    1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8",
    _BFLOAT16: "u2",
}  # fmt: skip
"""numpy's dtypes by TensorProto.DataType; bfloat16 as its bits."""


def open_bundled_onnx(
    files: BundleFiles, artifact: Mapping[str, Any], *, providers: Sequence[str], threads: int | None
) -> OnnxBackend:
    """Open the ONNX model that config.json describes as `artifact`; its external weights are a mapping of their file.

    Raises `WeightsUnsafe` if the model refers to weights outside of its data file, and whatever onnxruntime raises.
    """
    model = files.read(artifact["path"])
    data = artifact.get("data")
    content = files.map(data["path"]) if data is not None else memoryview(b"")
    tensors = find_external_tensors(model, data["path"] if data is not None else None, len(content))
    weights = {tensor.name: _map_weight(tensor, content) for tensor in tensors}
    backend = OnnxBackend(model, weights=weights, providers=providers, threads=threads)
    if isinstance(content.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        content.obj.madvise(mmap.MADV_DONTNEED)  # onnxruntime has copied the pages; they can be read again
    return backend


def _map_weight(tensor: ExternalTensor, content: memoryview) -> onnxruntime.OrtValue:
    try:
        array = np.ndarray(tensor.shape, "<" + _DTYPES[tensor.data_type], buffer=content, offset=tensor.offset)
    except (ValueError, TypeError) as error:  # numpy allows fewer dims than ONNX, and no size beyond the address space
        raise WeightsUnsafe(f"the weight {tensor.name[:100]!r} has an impossible shape: {error}") from None
    if tensor.data_type == _BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
