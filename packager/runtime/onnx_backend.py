"""Run a bundle's ONNX model with onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[np.generic]
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class OnnxBackend:
    """One onnxruntime session over a model file.

    The graph was optimized when it was built; the session optimizes once more, which adds the
    memory layouts of the CPU at hand; without `optimize` it runs the graph as it is. `threads` is the
    size of the intra-op pool, None for onnxruntime's own choice; `spin` lets its threads spin while
    they wait, as they do by default. Providers that this machine has not are left out.
    """

    name = "onnx"

    def __init__(
        self,
        path: Path,
        *,
        providers: Sequence[str],
        threads: int | None,
        allow_spinning: bool = True,
        optimize: bool = True,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
        if threads is not None:
            options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
        if not allow_spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        wanted = [one for one in providers if one in available] or ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=wanted)
        self.outputs = [
            (one.name, _numpy_dtype_name(one.type), tuple(one.shape)) for one in self._session.get_outputs()
        ]
        self.inputs = [(one.name, _numpy_dtype_name(one.type), tuple(one.shape)) for one in self._session.get_inputs()]
        self.output_names = [name for name, _, _ in self.outputs]
        self._bfloat16 = [one.name for one in self._session.get_inputs() if one.type == "tensor(bfloat16)"]
        self.providers: list[str] = self._session.get_providers()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name in, arrays by output name out; a bfloat16 input is given as float32."""
        feed: dict[str, object] = dict(inputs)
        for name in self._bfloat16:
            feed[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(to_bfloat16(inputs[name]), _BFLOAT16)
        return dict(zip(self.output_names, self._session.run(None, feed), strict=True))


def describe_missing_providers(providers: Sequence[str]) -> list[str]:
    """What is said of execution providers that this machine has not: nothing is compared there."""
    missing = sorted(set(providers) - set(onnxruntime.get_available_providers()))
    return [f"{one}, which this machine has not" for one in missing]


def to_bfloat16(array: Array) -> NDArray[np.uint16]:
    """float32 rounded to the nearest bfloat16, ties to even, as its bits: numpy has no such dtype."""
    bits = array.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) >> 16
    quiet = bits >> 16 | 0x40  # a NaN keeps its sign and payload, and stays one
    found: NDArray[np.uint16] = np.where(np.isnan(array), quiet, rounded).astype(np.uint16)
    return found


def _numpy_dtype_name(kind: str) -> str:
    """`tensor(float)` as numpy calls it."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
