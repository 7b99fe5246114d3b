"""Run a bundle's ONNX model with onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[np.generic]


class OnnxBackend:
    """One onnxruntime session over a model file.

    The graph was optimized when it was built; the session optimizes once more, which adds the
    memory layouts of the CPU at hand. `threads` is the size of the intra-op pool, None for
    onnxruntime's own choice; `spin` lets its threads spin while they wait, as they do by default.
    Providers that this machine has not are left out.
    """

    name = "onnx"

    def __init__(self, path: Path, *, providers: Sequence[str], threads: int | None, spin: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        wanted = [one for one in providers if one in available] or ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=wanted)
        self.output_names = [one.name for one in self._session.get_outputs()]
        self.input_names = [one.name for one in self._session.get_inputs()]
        self.providers: list[str] = self._session.get_providers()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name in, arrays by output name out."""
        return dict(zip(self.output_names, self._session.run(None, dict(inputs)), strict=True))
