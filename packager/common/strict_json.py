"""Parse JSON from untrusted files strictly: a duplicate key is an error, where Python would take the last value."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 32_000_000
"""Of a file of JSON that is read as a whole: an index of the largest models has half of that."""


def read_strict_json(path: Path) -> Any:
    """Read a file of JSON without duplicate keys. Raises OSError, ValueError or RecursionError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    if status.st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
    return parse_strict_json(path.read_bytes())


def parse_strict_json(content: bytes) -> Any:
    """Parse UTF-8 JSON without duplicate keys. Raises ValueError or RecursionError."""

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for name, value in pairs:
            if name in mapping:
                raise ValueError(f"{name!r} appears twice")
            mapping[name] = value
        return mapping

    return json.loads(content.decode("utf-8"), object_pairs_hook=build_object)
