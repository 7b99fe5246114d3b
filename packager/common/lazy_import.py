"""Export a package's public names lazily (PEP 562): each is imported from its module on first access."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def import_attribute(name: str, exports: Mapping[str, str], namespace: dict[str, Any]) -> Any:
    """Return the attribute that a package exports, and store it in the package's `namespace`.

    `exports` maps each public name to the module that defines it. Raises AttributeError for any other name.
    """
    if name not in exports:
        raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
    namespace[name] = getattr(importlib.import_module(exports[name]), name)
    return namespace[name]
