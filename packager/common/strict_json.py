"""Parse JSON from untrusted files strictly.

Python takes the last value of a duplicate key, accepts NaN, and runs out of stack where values are nested deeply. Here
each of them is an error, and so is text that cannot be written back as UTF-8.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_NESTING = 100

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
    """Parse UTF-8 JSON without duplicate keys, NaN, infinities or unpaired surrogates, at most 100 levels deep.

    Raises ValueError or RecursionError.
    """
    value = json.loads(content.decode("utf-8"), object_pairs_hook=_build_object, parse_constant=_refuse_constant)
    level = [value]
    for _ in range(MAX_NESTING + 1):
        if not level:
            return value
        level = [item for parent in level for item in _list_items(parent)]
    raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"{name!r} appears twice")
        mapping[name] = value
    return mapping


def _list_items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError
    return value if isinstance(value, list) else []


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
