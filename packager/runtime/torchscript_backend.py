"""Run a bundle's TorchScript model, the fallback. Imports torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from packager.common import output_tree

Array = NDArray[np.generic]


class TorchScriptBackend:
    """A TorchScript program on the CPU, from a file or from its bytes, called with numpy arrays.

    `inputs` are names and dtypes in the order of the program's arguments. `optimize` applies
    `torch.jit.optimize_for_inference`, which packs the weights for this CPU; the build has checked whether the
    outputs of this model stay within tolerance with it.
    """

    name: Literal["torchscript"] = "torchscript"

    def __init__(
        self, program: Path | bytes, *, inputs: Sequence[tuple[str, str]], output_names: Sequence[str], optimize: bool
    ) -> None:
        self._inputs = list(inputs)
        self.output_names = list(output_names)
        source = io.BytesIO(program) if isinstance(program, bytes) else program
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: Any = torch.jit.load(source, map_location="cpu")  # type: ignore[no-untyped-call]  # torch's stubs
            self._module = torch.jit.optimize_for_inference(module) if optimize else module

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the program on arrays by input name; pass float32 for a bfloat16 input. Returns arrays by output name."""
        return call_program(self._module, inputs, self._inputs, self.output_names)


def call_program(
    module: torch.nn.Module, arrays: Mapping[str, Array], inputs: Sequence[tuple[str, str]], output_names: Sequence[str]
) -> dict[str, Array]:
    """Call a program on arrays by input name, and return arrays by output name.

    `inputs` are names and dtypes in the order of the program's arguments; `output_names` are those of its results.
    """
    tensors = [_to_tensor(arrays[name], dtype) for name, dtype in inputs]
    with torch.inference_mode():
        flat = output_tree.flatten_outputs(module(*tensors))
    outputs = output_tree.select_outputs(flat, output_names)
    return {name: tensor.numpy().copy() for name, tensor in outputs.items()}


def _to_tensor(array: Array, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())  # the program may write to it, and the array may be read-only
    return tensor.to(torch.bfloat16) if dtype == "bfloat16" else tensor
