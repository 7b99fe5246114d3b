"""packager: one manifest and one PyTorch checkpoint in, one proven, self-contained bundle out.

`load` is for services and needs numpy and onnxruntime; `build` and `verify` are the commands of
the same name. Importing this module imports none of their worlds: each is fetched when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packager.building import BuildResult, build
    from packager.bundle.verify import VerifyReport, verify
    from packager.errors import PackagerError
    from packager.runtime.loader import Bundle, load

__all__ = ["Bundle", "BuildResult", "PackagerError", "VerifyReport", "build", "load", "verify"]

_HOMES = {
    "Bundle": "packager.runtime.loader",
    "BuildResult": "packager.building",
    "PackagerError": "packager.errors",
    "VerifyReport": "packager.bundle.verify",
    "build": "packager.building",
    "load": "packager.runtime.loader",
    "verify": "packager.bundle.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found
