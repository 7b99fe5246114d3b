"""Package one manifest and one PyTorch checkpoint into one proven, self-contained ONNX bundle.

`load` is for services, and needs only numpy and onnxruntime; `build`, `verify`, `sign` and `diff` do what the commands
of the same names do. Importing this package imports no other module of it before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from packager.common.lazy_import import import_attribute

if TYPE_CHECKING:
    __version__: str
    from packager import errors
    from packager.builder.api import build
    from packager.builder.build_result import BuildResult
    from packager.differences import DiffReport, diff
    from packager.errors import PackagerError
    from packager.runtime.loader import Bundle, load
    from packager.runtime.verify import VerifyReport, verify
    from packager.signature.sign import SignResult, sign

__all__ = [
    "Bundle", "BuildResult", "DiffReport", "PackagerError", "SignResult", "VerifyReport",
    "__version__", "build", "diff", "errors", "load", "sign", "verify",
]  # fmt: skip

_EXPORTS = {
    "Bundle": "packager.runtime.loader",
    "BuildResult": "packager.builder.build_result",
    "DiffReport": "packager.differences",
    "PackagerError": "packager.errors",
    "SignResult": "packager.signature.sign",
    "VerifyReport": "packager.runtime.verify",
    "build": "packager.builder.api",
    "diff": "packager.differences",
    "load": "packager.runtime.loader",
    "sign": "packager.signature.sign",
    "verify": "packager.runtime.verify",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("packager.errors")
    if name == "__version__":
        from importlib.metadata import version

        return version("torch-packager")
    return import_attribute(name, _EXPORTS, globals())


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
