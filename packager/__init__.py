"""packager: one manifest and one PyTorch checkpoint in, one proven, self-contained bundle out.

`load` is for services and needs numpy and onnxruntime; `build`, `verify` and `diff` are the commands
of the same name. Importing this module imports none of their worlds: each is fetched when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.common.lazy_import import import_attribute

if TYPE_CHECKING:
    from packager.builder.api import BuildResult, build
    from packager.differences import DiffReport, diff
    from packager.errors import PackagerError
    from packager.runtime.loader import Bundle, load
    from packager.runtime.verify import VerifyReport, verify

__all__ = [
    "Bundle", "BuildResult", "DiffReport", "PackagerError", "VerifyReport", "build", "diff", "load", "verify"
]  # fmt: skip

_EXPORTS = {
    "Bundle": "packager.runtime.loader",
    "BuildResult": "packager.builder.api",
    "DiffReport": "packager.differences",
    "PackagerError": "packager.errors",
    "VerifyReport": "packager.runtime.verify",
    "build": "packager.builder.api",
    "diff": "packager.differences",
    "load": "packager.runtime.loader",
    "verify": "packager.runtime.verify",
}


def __getattr__(name: str) -> Any:
    return import_attribute(name, _EXPORTS, globals())
