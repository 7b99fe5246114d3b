"""Parse JSON from untrusted files strictly: a duplicate key is an error, where Python would take the last value."""

from __future__ import annotations

import json
from typing import Any


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
