"""Import onnxruntime without its telemetry. Every other module imports it from here.

The official wheels since 1.29 collect usage data on Linux and macOS too: an id of the machine and a database in the
user's cache folder. Set ORT_DISABLE_TELEMETRY=0 to have it nevertheless.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is loaded

import onnxruntime

__all__ = ["onnxruntime"]
