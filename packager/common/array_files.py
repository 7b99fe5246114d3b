"""A file of named arrays, .npz or .safetensors → the arrays. numpy only; nothing in the file is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packager.errors import DataDoesNotFit

Array = NDArray[np.generic]
_NPZ_MAGIC = (b"PK", b"\x93NUMPY")
_FORMAT_HINT = "np.savez(file, name=array) writes one; a .safetensors file will do too"


def read_arrays(path: Path, where: str) -> dict[str, Array]:
    """The arrays of a file by name. Raises `DataDoesNotFit`."""
    import safetensors.numpy

    if not path.is_file():
        raise DataDoesNotFit(where, f"there is no file {path}", _FORMAT_HINT)
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.numpy.load_file(path))
        with path.open("rb") as stream:
            if not stream.read(6).startswith(_NPZ_MAGIC):
                raise DataDoesNotFit(where, f"{path.name} does not begin as an .npz does", _FORMAT_HINT)
            stream.seek(0)
            found = np.load(stream, allow_pickle=False)
            arrays = dict(found) if isinstance(found, np.lib.npyio.NpzFile) else None
    except DataDoesNotFit:
        raise
    except Exception as error:  # noqa: BLE001 (numpy, zipfile and safetensors raise a dozen unrelated classes)
        raise DataDoesNotFit(where, f"{path.name} cannot be read: {error}") from None
    if arrays is None:
        why = f"{path.name} is a single array, not an .npz; np.savez(file, name=array) names them"
        raise DataDoesNotFit(where, why)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives what is no .npy as bytes
            raise DataDoesNotFit(where, f"{path.name} holds {name!r}, which is no array")
    return arrays
