"""Run a bundle's TorchScript model: the fallback, and the one module of the runtime that imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packager.common import output_tree

Array = NDArray[np.generic]


class TorchScriptBackend:
    """A TorchScript program on the CPU, called with numpy arrays.

    `optimize` applies `torch.jit.optimize_for_inference`, which packs the weights for the CPU at
    hand; whether it keeps parity for this model was found out when the bundle was built.
    """

    name = "torchscript"

    def __init__(
        self, path: Path, *, inputs: Sequence[tuple[str, str]], output_names: Sequence[str], optimize: bool
    ) -> None:
        self._inputs = list(inputs)
        self.output_names = list(output_names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: Any = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]  # torch's stubs
            self._module = torch.jit.optimize_for_inference(module) if optimize else module

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name in, arrays by output name out."""
        tensors = [self._tensor(inputs[name], dtype) for name, dtype in self._inputs]
        with torch.inference_mode():
            flat = output_tree.flatten_outputs(self._module(*tensors))
        return {name: one.numpy().copy() for name, one in output_tree.select_outputs(flat, self.output_names).items()}

    @staticmethod
    def _tensor(array: Array, dtype: str) -> torch.Tensor:
        tensor = torch.from_numpy(array.copy())  # the model may write into it, and the array may be read-only
        return tensor.to(torch.bfloat16) if dtype == "bfloat16" else tensor
