"""Read named arrays from an .npz or .safetensors file. No code in the file is executed.

An .npz may be compressed, to a thousandth of its content if that is zeros: what it unpacks to is limited.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from packager.common.archive_directory import is_directory_too_long
from packager.errors import DataDoesNotFit

Array = NDArray[np.generic]
_NPZ_MAGIC = (b"PK", b"\x93NUMPY")
_MAX_ARRAYS, _MAX_HEADER_BYTES = 10_000, 100_000_000
_FREE_BYTES, _MAX_RATIO = 32_000_000, 2
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
            with path.open("rb") as stream:
                check_tensor_count(stream)
            return dict(safetensors.numpy.load_file(path))
        with path.open("rb") as stream:
            if not stream.read(6).startswith(_NPZ_MAGIC):
                raise DataDoesNotFit(where, f"{path.name} does not start like an .npz file", _FORMAT_HINT)
            _check_unpacked_size(stream, where, path)
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


def check_tensor_count(stream: IO[bytes]) -> None:
    """Read the header of a safetensors file. Raises ValueError if it lists more tensors than a model has inputs."""
    length = int.from_bytes(stream.read(8), "little")
    if stream.read(min(length, _MAX_HEADER_BYTES)).count(b"{") > _MAX_ARRAYS:
        raise ValueError(f"it has more than {_MAX_ARRAYS} arrays")


def _check_unpacked_size(stream: IO[bytes], where: str, path: Path) -> None:
    """Refuse an .npz that would take far more memory than its size. Raises `DataDoesNotFit`, or what zipfile raises."""
    size = path.stat().st_size
    stream.seek(0)
    if stream.read(2) != b"PK":
        return  # a single array
    if is_directory_too_long(stream):
        raise ValueError(f"it has more than {_MAX_ARRAYS} arrays")
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
    if len(entries) > _MAX_ARRAYS:
        raise ValueError(f"it has more than {_MAX_ARRAYS} arrays")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(_FREE_BYTES, _MAX_RATIO * size):
        why = f"{path.name} has {size} bytes, and would take {unpacked} once it is unpacked"
        raise DataDoesNotFit(where, why, "write it uncompressed: np.savez(file, name=array)")
