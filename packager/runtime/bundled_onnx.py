"""Open the ONNX model of a bundle from descriptors that are open already: what onnxruntime sees is what was verified.

onnxruntime maps external weights fast, and shares the pages among processes, but only from a path. So the path that
the model gets is that of the open descriptor, /proc/self/fd/N, which leads to the verified file whatever happens to its
name. The weights of an archive are mapped within the archive. Where there is no such path (macOS, a container without
/proc, a file that was deleted), the weights are copied from a mapping of ours.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packager.bundle.files import BundleFiles
from packager.bundle.onnx_wire import ExternalTensor, WeightsUnsafe, find_external_tensors, move_tensors
from packager.runtime.session_settings import SessionSettings

if TYPE_CHECKING:
    from packager.common.ort import onnxruntime
    from packager.runtime.onnx_backend import OnnxBackend

_DESCRIPTORS = "proc/self/fd"
_BFLOAT16 = 16
_DTYPES = {
    1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8",
    _BFLOAT16: "u2",
}  # fmt: skip
"""numpy's dtypes by TensorProto.DataType; bfloat16 as its bits."""


def open_bundled_onnx(
    files: BundleFiles, artifact: Mapping[str, Any], providers: Sequence[str], settings: SessionSettings
) -> OnnxBackend:
    """Open the ONNX model that config.json describes as `artifact`; `providers` are those that it declares.

    External weights are hashed while onnxruntime is imported and the session is made: they are numbers, and nothing
    parses them. Raises `WeightsUnsafe` if the model refers to weights outside of its data file, `IntegrityFailed` if a
    file does not have the digest that `files` expects, RuntimeError if this machine has none of the providers, and
    whatever onnxruntime raises.
    """
    data = artifact.get("data")
    if data is None:
        model = files.read(artifact["path"])
        find_external_tensors(model, None, 0)
        return _prepare(providers, settings)(model)
    from concurrent.futures import ThreadPoolExecutor

    path = data["path"]
    size = files.locate(path).size
    with ThreadPoolExecutor(1) as executor:
        check = executor.submit(files.check, path, data.get("pieces", ()))
        try:
            model = files.read(artifact["path"])
            tensors = find_external_tensors(model, path, size)
            make = _prepare(providers, settings)
            return _open_mapped(files, path, model, make) or _open_copied(files, path, model, tensors, make)
        finally:
            check.result()  # weights that are not those of the bundle explain whatever went wrong


def _prepare(providers: Sequence[str], settings: SessionSettings) -> Callable[..., OnnxBackend]:
    from packager.runtime.onnx_backend import OnnxBackend

    usable = settings.choose_providers(providers)
    return partial(OnnxBackend, providers=usable, threads=settings.threads, options=settings.options)


def _open_mapped(files: BundleFiles, path: str, model: bytes, make: Callable[..., OnnxBackend]) -> OnnxBackend | None:
    """Let onnxruntime map the weights from the open descriptor; return None if it cannot open that path."""
    location = files.locate(path)
    link = f"{_DESCRIPTORS}/{location.descriptor}"
    if not Path("/", link).exists():  # follows the link, as onnxruntime will
        return None
    try:
        from packager.runtime.onnx_backend import ExternalWeights

        return make(move_tensors(model, link, location.offset), weights=ExternalWeights(folder="/"))
    except Exception as error:
        if "external data" in str(error).lower():  # the file was deleted or moved in the meantime
            return None
        raise


def _open_copied(
    files: BundleFiles, path: str, model: bytes, tensors: Sequence[ExternalTensor], make: Callable[..., OnnxBackend]
) -> OnnxBackend:
    """Give onnxruntime a mapping of the weights, which it copies."""
    from packager.runtime.onnx_backend import ExternalWeights

    content = files.map(path)
    values = {tensor.name: _map_weight(tensor, content) for tensor in tensors}
    backend = make(model, weights=ExternalWeights(values=values))
    if isinstance(content.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        content.obj.madvise(mmap.MADV_DONTNEED)  # onnxruntime has copied the pages; they can be read again
    return backend


def _map_weight(tensor: ExternalTensor, content: memoryview) -> onnxruntime.OrtValue:
    from packager.common.ort import onnxruntime

    try:
        array = np.ndarray(tensor.shape, "<" + _DTYPES[tensor.data_type], buffer=content, offset=tensor.offset)
    except (ValueError, TypeError) as error:  # numpy allows fewer dims than ONNX, and no size beyond the address space
        raise WeightsUnsafe(f"the weight {tensor.name[:100]!r} has an impossible shape: {error}") from None
    if tensor.data_type == _BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
