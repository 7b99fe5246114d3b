"""The header of a safetensors file: eight bytes of length, then JSON with every tensor's dtype, shape and place.

A header is all that is needed to say what a file holds, so whether its places are whole and do not overlap is looked
at here, as safetensors does when it loads. A name that stands twice safetensors takes once; here it is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from packager.common.strict_json import parse_strict_json

METADATA_KEY = "__metadata__"
_MAX_HEADER_BYTES = 100_000_000  # as in safetensors
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


def read_header(path: Path) -> dict[str, Any]:
    """Tensors by name as {"dtype", "shape", "data_offsets"}, and `__metadata__`. Raises OSError or ValueError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise ValueError("the header claims more than the file holds")
        if length > _MAX_HEADER_BYTES:
            raise ValueError("the header is too long")
        try:
            header = parse_strict_json(stream.read(length))
        except RecursionError:
            raise ValueError("the header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("the header is no mapping")  # noqa: TRY004 (of the file, and not of an argument)
    for name, one in header.items():
        if name != METADATA_KEY and not (isinstance(one, dict) and {"dtype", "shape", "data_offsets"} <= set(one)):
            raise ValueError(f"the header does not say where {name!r} is")
    _check_offsets({name: one for name, one in header.items() if name != METADATA_KEY}, size - 8 - length)
    return header


def _check_offsets(tensors: dict[str, Any], size: int) -> None:
    """Refuse tensors that do not fill the rest of the file, one after the other. Raises ValueError."""
    try:
        places = sorted((*one["data_offsets"], name) for name, one in tensors.items())
        end = 0
        for begin, after, name in places:
            if begin != end or after < begin:
                raise ValueError(f"the header leaves a gap before {name!r}, or has it overlap")
            width = _ITEM_BYTES.get(tensors[name]["dtype"])
            if width is not None and width * math.prod(tensors[name]["shape"]) != after - begin:
                raise ValueError(f"the header gives {name!r} another size than its shape")
            end = after
    except TypeError:
        raise ValueError("the header does not say where its tensors are") from None
    if end != size:
        raise ValueError(f"the header tells of {end} bytes of tensors, and the file holds {size}")


def get_metadata(header: dict[str, Any]) -> dict[str, str]:
    """The strings that were saved beside the tensors."""
    found = header.get(METADATA_KEY)
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
