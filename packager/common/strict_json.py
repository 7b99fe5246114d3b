"""Parse JSON from untrusted files strictly.

Python takes the last value of a duplicate key, accepts NaN, and runs out of stack where values are nested deeply. Here
each of them is an error, and so is text that cannot be written back as UTF-8.

A megabyte of `[],[],…` takes a hundred times as much memory once it is parsed, so values are counted before.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_NESTING = 100

MAX_JSON_BYTES = 32_000_000
"""Of a file of JSON that is read as a whole: an index of the largest models has half of that."""

_FREE_VALUES, _BYTES_PER_VALUE = 100_000, 64
_MAX_WIDE_BYTES = 4 << 20
# A character beyond U+00FF, itself or escaped, for which Python widens the whole text.
_WIDE = re.compile(rb"[\xc4-\xf4]|(?:^|[^\\])(?:\\\\)*\\u(?!00)")


def read_strict_json(path: Path, max_values: int | None = None) -> Any:
    """Read a file of JSON as `parse_strict_json` does. Raises OSError, ValueError or RecursionError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    if status.st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
    return parse_strict_json(path.read_bytes(), max_values)


def parse_strict_json(content: bytes, max_values: int | None = None) -> Any:
    """Parse UTF-8 JSON without duplicate keys, NaN, infinities or unpaired surrogates, at most 100 levels deep.

    There may be `max_values`, by default as many as `limit_values` returns for its size. Raises ValueError or
    RecursionError.
    """
    check_cost(content, max_values)
    text = content.decode("utf-8")
    del content  # so that a large one is freed
    value = json.loads(text, object_pairs_hook=_build_object, parse_constant=_refuse_constant)
    level = [value]
    for _ in range(MAX_NESTING + 1):
        if not level:
            return value
        level = [item for parent in level for item in _list_items(parent)]
    raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")


def limit_values(size: int) -> int:
    """Return how many values of JSON may be read from a file of `size` bytes."""
    return _FREE_VALUES + size // _BYTES_PER_VALUE


def check_cost(content: bytes, max_values: int | None = None) -> None:
    """Raise ValueError if JSON would take many times its size in memory once it is parsed, whatever is in it.

    Every value but the first follows one of three characters. These are counted in texts too, where they are few.
    """
    limit = limit_values(len(content)) if max_values is None else max_values
    if sum(map(content.count, (b",", b"[", b"{"))) > limit:
        raise ValueError(f"it has more than {limit} values")
    if len(content) > _MAX_WIDE_BYTES and _WIDE.search(content):
        raise ValueError(f"it has more than {_MAX_WIDE_BYTES} bytes, with characters beyond U+00FF")


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
