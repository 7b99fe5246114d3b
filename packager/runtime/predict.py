"""One prediction from the shell: arrays from a file, through the loader, to a file or a summary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.common.array_files import read_arrays
from packager.errors import OutputRefused
from packager.runtime.loader import load


def predict(bundle: Path, source: Path, target: Path | None) -> list[str]:
    """Run a bundle on the arrays of an .npz; returns one line for each output, with its values where they are few.

    Raises `DataDoesNotFit`, `OutputRefused`, and what `load` raises.
    """
    loaded = load(bundle)
    outputs = loaded.run(read_arrays(source, str(source)))
    if target is not None:
        try:
            with target.open("wb") as stream:
                np.savez(stream, **outputs)  # type: ignore[arg-type]  # numpy's stub takes the arrays for allow_pickle
        except OSError as error:
            hint = "choose another file with --output"
            raise OutputRefused(str(target), str(error.strerror), hint, what="the outputs") from None
    lines = []
    for name, array in outputs.items():
        line = f"{name}: {array.dtype}{list(array.shape)}"
        lines.append(f"{line} = {np.array2string(array, threshold=50)}" if array.size <= 50 else line)
    return lines
