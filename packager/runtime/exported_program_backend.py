"""Run a bundle's exported program, the fallback where there is no TorchScript. Imports torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from packager.runtime.exported_program_archive import check_archive
from packager.runtime.torchscript_backend import Array, call_program


class ExportedProgramBackend:
    """A program of torch.export on the CPU, from a file or from its bytes, called with numpy arrays.

    `inputs` are names and dtypes in the order of the program's arguments. Raises `ArchiveUnsafe` for an archive that
    torch would run more of than the program.
    """

    name: Literal["torch-export"] = "torch-export"

    def __init__(
        self, program: Path | bytes, *, inputs: Sequence[tuple[str, str]], output_names: Sequence[str]
    ) -> None:
        self._inputs = list(inputs)
        self.output_names = list(output_names)
        stream = io.BytesIO(program if isinstance(program, bytes) else program.read_bytes())
        check_archive(stream)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Guards would be Python code. The sizes of the inputs are checked without them.
            self._module = torch.export.load(stream).module(check_guards=False)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the program on arrays by input name; pass float32 for a bfloat16 input. Returns arrays by output name."""
        return call_program(self._module, inputs, self._inputs, self.output_names)
