"""The index of tensors whose pieces several ranks wrote: where the pieces of each lie, as JSON.

    model.safetensors               what every rank has the same, written once
    model.rank-00000.safetensors    the pieces that rank 0 held, each under the name of its tensor
    model.rank-00001.safetensors
    model.pieces.json               {"schema": 1, "whole": "model.safetensors", "tensors": {
                                      "layer.weight": {"dtype": "F32", "shape": [7, 5], "pieces": [
                                        {"file": "model.rank-00000.safetensors", "offset": [0, 0], "shape": [4, 5]}, …

Nothing of an index is believed: the pieces must lie within their tensor, and make it up, one beside the other. Nothing
here needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packager.checkpoint.run_folder import PIECES_SUFFIX
from packager.common.strict_json import parse_strict_json

_MAX_INDEX_BYTES = 100_000_000  # as safetensors has it for a header
_PART_OF = "part_of"
_MAX_DIMS, _MAX_ELEMENTS = 64, 1 << 62


@dataclass(frozen=True)
class Piece:
    """A box of a tensor: the file that holds it, where in the tensor it begins, and its shape."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorPieces:
    """One tensor: its dtype as safetensors writes it, its whole shape, and the pieces that make it up."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PieceIndex:
    """The tensors that are in pieces, by name, and the file that holds the others."""

    whole: str
    tensors: Mapping[str, TensorPieces]

    def files(self) -> list[str]:
        """The files that hold the pieces, sorted."""
        return sorted({piece.file for one in self.tensors.values() for piece in one.pieces})

    def to_json(self) -> str:
        """What `read` reads."""
        tensors = {name: asdict(one) for name, one in self.tensors.items()}
        return json.dumps({"schema": 1, "whole": self.whole, "tensors": tensors}, separators=(",", ":"))


def part_of_metadata(index: str) -> dict[str, str]:
    """What a safetensors file says beside its tensors, that it is not taken for the whole checkpoint."""
    return {_PART_OF: index}


def get_owning_index(strings: Mapping[str, str]) -> str | None:
    """The index that a file is a part of, as `part_of` has it say."""
    return strings.get(_PART_OF)


def read_piece_index(path: Path) -> PieceIndex:
    """An index file. Raises OSError or ValueError."""
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError("it is too long to be an index")
    try:
        found = parse_strict_json(path.read_bytes())
        if found["schema"] != 1:
            raise ValueError(f"it is of schema {found['schema']!r}, and this packager reads schema 1")
        tensors = {name: _parse_tensor(name, one) for name, one in found["tensors"].items()}
        return PieceIndex(_check_file_name(found["whole"]), tensors)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no index of pieces: {type(error).__name__}: {error}") from None


def _parse_tensor(name: str, found: Any) -> TensorPieces:
    shape = _parse_sizes(found["shape"])
    pieces = tuple(
        Piece(_check_file_name(one["file"]), _parse_sizes(one["offset"]), _parse_sizes(one["shape"])) for one in found["pieces"]
    )  # fmt: skip
    for one in pieces:
        if not len(one.offset) == len(one.shape) == len(shape):
            raise ValueError(f"a piece of {name} has another number of dimensions")
        if any(start + length > whole for start, length, whole in zip(one.offset, one.shape, shape, strict=True)):
            raise ValueError(f"a piece of {name} does not lie within it")
    if sum(math.prod(one.shape) for one in pieces) != math.prod(shape) or _any_overlap(pieces):
        raise ValueError(f"the pieces of {name} do not make up {list(shape)}")
    return TensorPieces(str(found["dtype"]), shape, pieces)


def _parse_sizes(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) > _MAX_DIMS or math.prod(map(_parse_size, found)) > _MAX_ELEMENTS:
        raise ValueError(f"{str(found)[:100]} is no shape")
    return tuple(found)


def _parse_size(found: Any) -> int:
    if type(found) is not int or found < 0:
        raise ValueError(f"{str(found)[:100]} is no size")
    return found


def _any_overlap(pieces: Sequence[Piece]) -> bool:
    """Whether two boxes share a value: in the order of where they begin, only near ones have to be compared."""
    if not pieces or not pieces[0].shape:
        return len(pieces) > 1
    filled = [one for one in pieces if math.prod(one.shape)]
    # Along the dimension that is cut most, few boxes lie side by side.
    axis = max(range(len(pieces[0].shape)), key=lambda one: len({piece.offset[one] for piece in filled}))
    ordered = sorted(filled, key=lambda one: one.offset[axis])
    open_ones: list[Piece] = []
    for one in ordered:
        open_ones = [other for other in open_ones if other.offset[axis] + other.shape[axis] > one.offset[axis]]
        if any(_boxes_overlap(one, other) for other in open_ones):
            return True
        open_ones.append(one)
    return False


def _boxes_overlap(one: Piece, other: Piece) -> bool:
    return all(
        begin < other_begin + other_length and other_begin < begin + length
        for begin, length, other_begin, other_length in zip(
            one.offset, one.shape, other.offset, other.shape, strict=True
        )
    )


def _check_file_name(name: Any) -> str:
    """The name of a file in the same folder, and no path."""
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\:\0"):
        raise ValueError(f"it names a path outside its folder: {name!r}")
    if name.endswith(PIECES_SUFFIX):
        raise ValueError(f"it names an index: {name!r}")
    return name
