"""The header of a safetensors file: eight bytes of length, then JSON with every tensor's dtype, shape and place.

safetensors itself checks that the places are whole and do not overlap. A name that stands twice it takes
once, so that is looked for here; and a header is all that is needed to say what a file holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.strict_json import read_json

METADATA = "__metadata__"
_LONGEST = 100_000_000  # as in safetensors


def read_header(path: Path) -> dict[str, Any]:
    """Tensors by name as {"dtype", "shape", "data_offsets"}, and `__metadata__`. Raises OSError or ValueError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise ValueError("the header claims more than the file holds")
        if length > _LONGEST:
            raise ValueError("the header is too long")
        try:
            header = read_json(stream.read(length))
        except RecursionError:
            raise ValueError("the header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("the header is no mapping")  # noqa: TRY004 (of the file, and not of an argument)
    for name, one in header.items():
        if name != METADATA and not (isinstance(one, dict) and {"dtype", "shape", "data_offsets"} <= set(one)):
            raise ValueError(f"the header does not say where {name!r} is")
    return header


def metadata(header: dict[str, Any]) -> dict[str, str]:
    """The strings that were saved beside the tensors."""
    found = header.get(METADATA)
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
