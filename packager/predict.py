"""One prediction from the shell: arrays from a file, through the loader, to a file or a summary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.errors import DataDoesNotFit, OutputRefused
from packager.runtime.loader import load


def predict(bundle: Path, source: Path, target: Path | None) -> list[str]:
    """Run a bundle on the arrays of an .npz; returns one line for each output, with its values where they are few.

    Raises `DataDoesNotFit`, `OutputRefused`, and what `load` raises.
    """
    loaded = load(bundle)
    try:
        with np.load(source, allow_pickle=False) as found:
            if isinstance(found, np.ndarray):
                raise DataDoesNotFit(str(source), "it is a single array; np.savez(file, name=array) names them")
            inputs = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataDoesNotFit(str(source), f"it cannot be read: {error}") from None
    outputs = loaded.run(inputs)
    if target is not None:
        try:
            with target.open("wb") as stream:
                np.savez(stream, **outputs)  # type: ignore[arg-type]  # numpy's stub takes the arrays for allow_pickle
        except OSError as error:
            raise OutputRefused(str(target), str(error.strerror), "choose another file with --output") from None
    lines = []
    for name, array in outputs.items():
        line = f"{name}: {array.dtype}{list(array.shape)}"
        lines.append(f"{line} = {np.array2string(array, threshold=50)}" if array.size <= 50 else line)
    return lines
