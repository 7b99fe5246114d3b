"""Run a bundle's ONNX model with onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packager.common.ort import onnxruntime

Array = NDArray[np.generic]
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class OnnxBackend:
    """An onnxruntime session for a model: the path of its file, or its bytes with the weights that they refer to.

    - `weights`: the values of external weights by name, which the session uses in place of files.
    - `providers`: execution providers in order of preference; those that this machine lacks are skipped.
    - `threads`: number of intra-op threads; None leaves the choice to onnxruntime.
    - `allow_spinning`: let idle threads spin, which is onnxruntime's default.
    - `optimize`: optimize the graph for this CPU, such as its memory layouts; otherwise run the graph as it is.

    `inputs` and `outputs` list name, numpy dtype and shape of each tensor as the model declares them.
    """

    name = "onnx"

    def __init__(
        self,
        model: Path | bytes,
        *,
        weights: Mapping[str, onnxruntime.OrtValue] | None = None,
        providers: Sequence[str],
        threads: int | None,
        allow_spinning: bool = True,
        optimize: bool = True,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; they need not be printed too
        if threads is not None:
            options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
        if not allow_spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if weights:
            options.add_external_initializers(list(weights), list(weights.values()))
        if isinstance(model, bytes):  # the bytes of another format would be read without these checks
            options.add_session_config_entry("session.load_model_format", "ONNX")
        available = onnxruntime.get_available_providers()
        usable = [provider for provider in providers if provider in available] or ["CPUExecutionProvider"]
        source = model if isinstance(model, bytes) else os.fspath(model)
        self._session = onnxruntime.InferenceSession(source, options, providers=usable)
        self._session._model_bytes = None  # onnxruntime would keep a copy of the model, to change providers later
        self._weights = weights  # their memory must outlive the session
        self.inputs = [_describe_tensor(tensor) for tensor in self._session.get_inputs()]
        self.outputs = [_describe_tensor(tensor) for tensor in self._session.get_outputs()]
        self.output_names = [name for name, _, _ in self.outputs]
        self._bfloat16_inputs = [name for name, dtype, _ in self.inputs if dtype == "bfloat16"]
        self.providers: list[str] = self._session.get_providers()

    def run(self, inputs: Mapping[str, Array], run_options: onnxruntime.RunOptions | None = None) -> dict[str, Array]:
        """Run the model on arrays by input name; pass float32 for a bfloat16 input. Returns arrays by output name."""
        feed: dict[str, object] = dict(inputs)
        for name in self._bfloat16_inputs:
            feed[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(to_bfloat16(inputs[name]), _BFLOAT16)
        return dict(zip(self.output_names, self._session.run(None, feed, run_options), strict=True))

    def close(self) -> None:
        """Free the session and its weights; `run` must not be called any more."""
        del self._session, self._weights


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


def _describe_tensor(tensor: onnxruntime.NodeArg) -> tuple[str, str, tuple[int | str | None, ...]]:
    """Return name, numpy dtype and shape of an input or output; its type is `tensor(float)`, for example."""
    dtype = tensor.type.removeprefix("tensor(").removesuffix(")")
    return tensor.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), tuple(tensor.shape)
