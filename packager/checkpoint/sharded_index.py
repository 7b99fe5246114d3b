"""Read and write the index of sharded tensors: the file, offset and shape of each piece, as JSON.

    model.safetensors               tensors that are the same on every rank, written once
    model.rank-00000.safetensors    the pieces of rank 0, each under the name of its tensor
    model.rank-00001.safetensors
    model.pieces.json               {"schema": 1, "whole": "model.safetensors", "tensors": {
                                      "layer.weight": {"dtype": "F32", "shape": [7, 5], "pieces": [
                                        {"file": "model.rank-00000.safetensors", "offset": [0, 0], "shape": [4, 5]}, …

No index is trusted: its pieces must lie within their tensor and fill it without overlap. Nothing here needs torch.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packager.checkpoint.run_folder import PIECES_SUFFIX
from packager.common.strict_json import read_strict_json

_PART_OF = "part_of"
_MAX_DIMS, _MAX_ELEMENTS = 64, 1 << 62
_MAX_CUT_DIMS = 4
_MAX_VALUES = 600_000
"""Eight for each piece: this is enough for a thousand tensors on 64 ranks."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor: the file that holds it, the index of its first element in the tensor, and its shape."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorPieces:
    """One tensor: its dtype in safetensors' spelling (`F32`), its whole shape, and the pieces that fill it."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PieceIndex:
    """The sharded tensors by name, and the file that holds the others (`whole`)."""

    whole: str
    tensors: Mapping[str, TensorPieces]

    def files(self) -> list[str]:
        """Return the names of the files that hold the pieces, sorted."""
        return sorted({piece.file for tensor in self.tensors.values() for piece in tensor.pieces})

    def to_json(self) -> str:
        """Return the text that `read_piece_index` reads."""
        tensors = {name: asdict(tensor) for name, tensor in self.tensors.items()}
        return json.dumps({"schema": 1, "whole": self.whole, "tensors": tensors}, separators=(",", ":"))


def part_of_metadata(index: str) -> dict[str, str]:
    """Return the metadata that marks a safetensors file as a part, lest it be read as the whole checkpoint."""
    return {_PART_OF: index}


def get_owning_index(strings: Mapping[str, str]) -> str | None:
    """Return the name of the index that a file is a part of, from the metadata of `part_of_metadata`."""
    return strings.get(_PART_OF)


def read_piece_index(path: Path) -> PieceIndex:
    """Read an index file. Raises OSError, or ValueError if its content is not a valid index."""
    try:
        index = read_strict_json(path, _MAX_VALUES)
        if index["schema"] != 1:
            raise ValueError(f"it has schema {index['schema']!r}, and this packager reads schema 1")
        tensors = {name: _parse_tensor(name, tensor) for name, tensor in index["tensors"].items()}
        return PieceIndex(_check_file_name(index["whole"]), tensors)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not an index of pieces: {type(error).__name__}: {error}") from None


def _parse_tensor(name: str, value: Any) -> TensorPieces:
    shape = _parse_sizes(value["shape"])
    pieces = tuple(
        Piece(_check_file_name(piece["file"]), _parse_sizes(piece["offset"]), _parse_sizes(piece["shape"]))
        for piece in value["pieces"]
    )
    for piece in pieces:
        if not len(piece.offset) == len(piece.shape) == len(shape):
            raise ValueError(f"a piece of {name} has a different number of dimensions")
        if any(start + length > size for start, length, size in zip(piece.offset, piece.shape, shape, strict=True)):
            raise ValueError(f"a piece of {name} does not lie within it")
    if not _is_tiling(name, shape, pieces):
        raise ValueError(f"the pieces of {name} do not add up to {list(shape)}")
    return TensorPieces(str(value["dtype"]), shape, pieces)


def _parse_sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_DIMS or math.prod(map(_parse_size, value)) > _MAX_ELEMENTS:
        raise ValueError(f"{str(value)[:100]} is not a shape")
    return tuple(value)


def _parse_size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:100]} is not a size")
    return value


def _is_tiling(name: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> bool:
    """Tell whether boxes within a tensor fill it without overlap, in time linear in their number.

    Each box has 2^d corners. Weigh a corner with +1 if an even number of its coordinates are upper ends, else with -1:
    these are the places where the count of boxes over an element changes. So boxes fill the tensor exactly once if and
    only if their weights add up to those of the tensor as a box. Raises ValueError for a tensor cut along many dims.
    """
    filled = [piece for piece in pieces if math.prod(piece.shape)]
    cut = [dim for dim, size in enumerate(shape) if any(piece.shape[dim] != size for piece in filled)]
    if len(cut) > _MAX_CUT_DIMS:
        raise ValueError(f"{name} is cut along more than {_MAX_CUT_DIMS} dimensions")
    signs = [math.prod(ends) for ends in itertools.product((1, -1), repeat=len(cut))]
    weights: Counter[tuple[int, ...]] = Counter()
    for piece in filled:
        sides = ((piece.offset[dim], piece.offset[dim] + piece.shape[dim]) for dim in cut)
        for corner, sign in zip(itertools.product(*sides), signs, strict=True):
            weights[corner] += sign
    if math.prod(shape):
        for corner, sign in zip(itertools.product(*((0, shape[dim]) for dim in cut)), signs, strict=True):
            weights[corner] -= sign
    return not any(weights.values())


def _check_file_name(name: Any) -> str:
    """Return the name of a file in the index's own folder; refuse a path. Raises ValueError."""
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\:\0"):
        raise ValueError(f"it names a path outside its folder: {name!r}")
    if name.endswith(PIECES_SUFFIX):
        raise ValueError(f"it names an index: {name!r}")
    return name
