"""JSON as a file of someone else's is read: a key that stands twice is refused, where Python takes the last."""

from __future__ import annotations

import json
from typing import Any


def parse_strict_json(content: bytes) -> Any:
    """JSON in which no key stands twice. Raises ValueError or RecursionError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice!r} stands there twice")
        return found

    return json.loads(content.decode("utf-8"), object_pairs_hook=once)
