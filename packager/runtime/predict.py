"""`package run`: predict once, from arrays in a file to a file or a printed summary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.common.array_files import read_arrays
from packager.errors import OutputRefused
from packager.runtime.loader import Bundle


def predict(bundle: Bundle, source: Path, target: Path | None) -> list[str]:
    """Run a bundle on the arrays in `source` (.npz or .safetensors), and write the outputs to `target` as .npz.

    Returns one line per output: dtype and shape, with the values if there are at most 50. Raises `DataDoesNotFit` and
    `OutputRefused`.
    """
    outputs = bundle.run(read_arrays(source, str(source)))
    if target is not None:
        try:
            with target.open("wb") as stream:
                np.savez(stream, **outputs)  # type: ignore[arg-type]  # numpy's stub reads the arrays as allow_pickle
        except OSError as error:
            hint = "choose another file with --output"
            raise OutputRefused(str(target), str(error.strerror), hint, what="the outputs") from None
    lines = []
    for name, array in outputs.items():
        line = f"{name}: {array.dtype}{list(array.shape)}"
        lines.append(f"{line} = {np.array2string(array, threshold=50)}" if array.size <= 50 else line)
    return lines
