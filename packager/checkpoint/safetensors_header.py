"""Read the header of a safetensors file: eight bytes of length, then JSON with each tensor's dtype, shape and offsets.

The format: https://huggingface.co/docs/safetensors. A file is described from its header alone, so the offsets are
checked here as safetensors checks them when it loads: no gap, no overlap, no more bytes than the file has. A name that
occurs twice is refused too, although safetensors accepts it, and so are more tensors than a file of its size has.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from packager.common.strict_json import limit_values, parse_strict_json

METADATA_KEY = "__metadata__"
_MAX_HEADER_BYTES = 10_000_000  # enough for 100,000 tensors; safetensors reads ten times as much
_MAX_DIMS, _MAX_SIZE = 64, 1 << 62
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


def read_header(path: Path) -> dict[str, Any]:
    """Return the tensors by name as {"dtype", "shape", "data_offsets"}, and `__metadata__`.

    Raises OSError, or ValueError if the file is not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise ValueError("the header claims more bytes than the file has")
        if length > _MAX_HEADER_BYTES:
            raise ValueError("the header is too long")
        try:
            header = parse_strict_json(stream.read(length), limit_values(size))
        except RecursionError:
            raise ValueError("the header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("the header is not a mapping")  # noqa: TRY004 (the fault of the file, not of an argument)
    tensors = {name: tensor for name, tensor in header.items() if name != METADATA_KEY}
    for name, tensor in tensors.items():
        if not _is_description(tensor):
            raise ValueError(f"the header does not say where {name!r} is")
    _check_offsets(tensors, size - 8 - length)
    return header


def _is_description(tensor: Any) -> bool:
    """Tell whether a value of the header has a dtype, a shape and two offsets, with sizes that a file can have."""
    if not (isinstance(tensor, dict) and {"dtype", "shape", "data_offsets"} <= set(tensor)):
        return False
    shape, offsets = tensor["shape"], tensor["data_offsets"]
    if not (isinstance(tensor["dtype"], str) and isinstance(shape, list) and isinstance(offsets, list)):
        return False
    sizes = [*shape, *offsets]
    return len(shape) <= _MAX_DIMS and len(offsets) == 2 and all(type(n) is int and 0 <= n < _MAX_SIZE for n in sizes)


def _check_offsets(tensors: dict[str, Any], size: int) -> None:
    """Refuse tensors that do not fill the `size` bytes of the file's rest, one after the other. Raises ValueError."""
    end = 0
    for start, stop, name in sorted((*tensor["data_offsets"], name) for name, tensor in tensors.items()):
        if start != end or stop < start:
            raise ValueError(f"the header leaves a gap before {name!r}, or an overlap")
        item_bytes = _ITEM_BYTES.get(tensors[name]["dtype"])
        if item_bytes is not None and item_bytes * math.prod(tensors[name]["shape"]) != stop - start:
            raise ValueError(f"the header gives {name!r} a size that differs from its shape")
        end = stop
    if end != size:
        raise ValueError(f"the header lists {end} bytes of tensors, and the file holds {size}")


def get_metadata(header: dict[str, Any]) -> dict[str, str]:
    """Return the strings that were saved beside the tensors."""
    metadata = header.get(METADATA_KEY)
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
