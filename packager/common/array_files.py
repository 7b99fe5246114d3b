"""Read named arrays from an .npz or .safetensors file. No code in the file is executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packager.errors import DataDoesNotFit

Array = NDArray[np.generic]
_NPZ_MAGIC = (b"PK", b"\x93NUMPY")
_FORMAT_HINT = "write one with np.savez(file, name=array); a .safetensors file works too"


def read_arrays(path: Path, where: str) -> dict[str, Array]:
    """Read the arrays of a file by name.

    `where` is the place that an error names, such as a field of the manifest. Raises `DataDoesNotFit`.
    """
    import safetensors.numpy

    if not path.is_file():
        raise DataDoesNotFit(where, f"there is no file {path}", _FORMAT_HINT)
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.numpy.load_file(path))
        with path.open("rb") as stream:
            if not stream.read(6).startswith(_NPZ_MAGIC):
                raise DataDoesNotFit(where, f"{path.name} does not start like an .npz file", _FORMAT_HINT)
            stream.seek(0)
            content = np.load(stream, allow_pickle=False)
            arrays = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else None
    except DataDoesNotFit:
        raise
    except Exception as error:  # noqa: BLE001 (numpy, zipfile and safetensors raise a dozen unrelated classes)
        raise DataDoesNotFit(where, f"{path.name} cannot be read: {error}") from None
    if arrays is None:
        raise DataDoesNotFit(where, f"{path.name} is a single array without a name, not an .npz", _FORMAT_HINT)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy returns an entry that is not an .npy as bytes
            raise DataDoesNotFit(where, f"{path.name} contains {name!r}, which is not an array")
    return arrays
