"""packager: one manifest and one PyTorch checkpoint in, one proven, self-contained bundle out.

`load` is for services and needs numpy and onnxruntime; `build`, `verify` and `diff` are the commands
of the same name. Importing this module imports none of their worlds: each is fetched when it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packager.building import BuildResult, build
    from packager.bundle.verify import VerifyReport, verify
    from packager.differences import DiffReport, diff
    from packager.errors import PackagerError
    from packager.runtime.loader import Bundle, load

__all__ = [
    "Bundle", "BuildResult", "DiffReport", "PackagerError", "VerifyReport", "build", "diff", "load", "verify"
]  # fmt: skip

_HOMES = {
    "Bundle": "packager.runtime.loader",
    "BuildResult": "packager.building",
    "DiffReport": "packager.differences",
    "PackagerError": "packager.errors",
    "VerifyReport": "packager.bundle.verify",
    "build": "packager.building",
    "diff": "packager.differences",
    "load": "packager.runtime.loader",
    "verify": "packager.bundle.verify",
}


def fetched(name: str, homes: Mapping[str, str], namespace: dict[str, Any]) -> Any:
    """A name that a package exports, imported from its home when it is first asked for (PEP 562)."""
    if name not in homes:
        raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
    namespace[name] = getattr(importlib.import_module(homes[name]), name)
    return namespace[name]


def __getattr__(name: str) -> Any:
    return fetched(name, _HOMES, globals())
