"""Run a bundle's ONNX model with onnxruntime."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from packager.common.hashing import count_usable_cores
from packager.common.ort import onnxruntime

Array = NDArray[np.generic]
Provider = str | tuple[str, Mapping[str, Any]]
"""The name of an execution provider of onnxruntime, or its name and options."""

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


@dataclass(frozen=True)
class ExternalWeights:
    """Where a model given as bytes finds its external weights: in a folder, or in memory by name."""

    folder: str | None = None
    values: Mapping[str, onnxruntime.OrtValue] | None = None


class OnnxBackend:
    """An onnxruntime session for a model: the path of its file, or its bytes with the weights that they refer to.

    - `providers`: execution providers in order of preference; those that this machine lacks are skipped.
    - `threads`: number of intra-op threads. None means as many as the affinity and the container's quota of this
      process allow; if that is the whole machine, it leaves the choice to onnxruntime.
    - `allow_spinning`: let idle threads spin, which is onnxruntime's default.
    - `optimize`: optimize the graph for this CPU, such as its memory layouts; otherwise run the graph as it is.
    - `options`: attributes of onnxruntime's SessionOptions by name, and configuration entries, whose names have a dot.

    `inputs` and `outputs` list name, numpy dtype and shape of each tensor as the model declares them.
    """

    name: Literal["onnx"] = "onnx"

    def __init__(
        self,
        model: Path | bytes,
        *,
        providers: Sequence[Provider],
        threads: int | None,
        weights: ExternalWeights | None = None,
        allow_spinning: bool = True,
        optimize: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 4  # errors are raised; they need not be printed too
        session_options.intra_op_num_threads = _choose_threads(threads)
        if not optimize:
            session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            session_options.add_session_config_entry("session.disable_prepacking", "1")
        if not allow_spinning:
            session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for name, value in (options or {}).items():
            if "." in name:
                session_options.add_session_config_entry(name, value)
            else:
                setattr(session_options, name, value)
        if weights is not None and weights.folder is not None:
            session_options.add_session_config_entry(_WEIGHTS_FOLDER, weights.folder)
        if weights is not None and weights.values:
            session_options.add_external_initializers(list(weights.values), list(weights.values.values()))
        if isinstance(model, bytes):  # the bytes of another format would be read without these checks
            session_options.add_session_config_entry("session.load_model_format", "ONNX")
        source = model if isinstance(model, bytes) else os.fspath(model)
        usable = find_available_providers(providers) or ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(source, session_options, providers=usable)
        self._session._model_bytes = None  # onnxruntime would keep a copy of the model, to change providers later
        self._weights = weights  # their memory must outlive the session
        self.threads = session_options.intra_op_num_threads
        self.inputs = [_describe_tensor(tensor) for tensor in self._session.get_inputs()]
        self.outputs = [_describe_tensor(tensor) for tensor in self._session.get_outputs()]
        self.output_names = [name for name, _, _ in self.outputs]
        self._bfloat16_inputs = [name for name, dtype, _ in self.inputs if dtype == "bfloat16"]
        self.providers: list[str] = self._session.get_providers()

    def run(self, inputs: Mapping[str, Array], run_options: onnxruntime.RunOptions | None = None) -> dict[str, Array]:
        """Run the model on arrays by input name; pass float32 for a bfloat16 input. Returns arrays by output name."""
        feed: Mapping[str, object] = inputs
        if self._bfloat16_inputs:
            feed = {**inputs, **{name: _make_bfloat16(inputs[name]) for name in self._bfloat16_inputs}}
        return dict(zip(self.output_names, self._session.run(None, feed, run_options), strict=True))

    def run_into(self, inputs: Mapping[str, Array], out: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model as `run` does, and let onnxruntime write outputs into the arrays of `out` that have their name.

        An array of `out` must be C-contiguous, and have the dtype and the shape of its output.
        """
        binding = self._session.io_binding()
        for name, array in inputs.items():
            if name in self._bfloat16_inputs:
                binding.bind_ortvalue_input(name, _make_bfloat16(array))
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.output_names:
            if name in out:
                array = out[name]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values = zip(self.output_names, binding.get_outputs(), strict=True)
        return {name: out[name] if name in out else value.numpy() for name, value in values}

    def leak(self) -> None:
        """Keep the session until the process ends.

        That is for a forked process, which lacks the session's threads: freeing the session would wait for them.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))

    def close(self) -> None:
        """Free the session and its weights; `run` must not be called any more."""
        del self._session, self._weights


_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def find_available_providers(providers: Sequence[Provider]) -> list[Provider]:
    """Return the execution providers that this machine has, in the order given."""
    available = onnxruntime.get_available_providers()
    return [provider for provider in providers if get_provider_name(provider) in available]


def get_provider_name(provider: Provider) -> str:
    """Return the name of an execution provider that may have options."""
    return provider if isinstance(provider, str) else provider[0]


def describe_missing_providers(providers: Sequence[str]) -> list[str]:
    """Describe the execution providers that this machine lacks, on which nothing can be compared. One text each."""
    missing = sorted(set(providers) - set(onnxruntime.get_available_providers()))
    return [f"{provider}, which is not available on this machine" for provider in missing]


def to_bfloat16(array: Array) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even. Returns its bits as uint16: numpy lacks the dtype."""
    bits = array.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) >> 16
    quiet_nan = bits >> 16 | 0x40  # keeps the sign and payload of a NaN
    bfloat16: NDArray[np.uint16] = np.where(np.isnan(array), quiet_nan, rounded).astype(np.uint16)
    return bfloat16


def _make_bfloat16(array: Array) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(to_bfloat16(array), _BFLOAT16)


def _choose_threads(threads: int | None) -> int:
    """Return the number of intra-op threads for a session; 0 lets onnxruntime choose.

    It counts the cores of the machine, whatever quota a container has (onnxruntime#29510).
    """
    if threads is not None:
        return threads
    usable = count_usable_cores()
    return usable if usable < (os.cpu_count() or 1) else 0


def _describe_tensor(tensor: onnxruntime.NodeArg) -> tuple[str, str, tuple[int | str | None, ...]]:
    """Return name, numpy dtype and shape of an input or output; its type is `tensor(float)`, for example."""
    dtype = tensor.type.removeprefix("tensor(").removesuffix(")")
    return tensor.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), tuple(tensor.shape)
