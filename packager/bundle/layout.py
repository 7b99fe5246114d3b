"""The names in a bundle. Everything else that names a file of a bundle takes the name from here."""

from __future__ import annotations

SCHEMA_VERSION = 1

CONFIG = "config.json"
ONNX = "model.onnx"
ONNX_DATA = "model.onnx.data"
TORCHSCRIPT = "model.ts"
README = "README.md"
ASSETS = "assets"
GOLDEN = "evidence/golden.safetensors"
PARITY = "evidence/parity.json"
BUILD = "evidence/build.json"
SUMS = "SHA256SUMS"
FINGERPRINT = "FINGERPRINT"
SIGNATURE = "model.sig"

UNSEALED_FILES = frozenset({SUMS, FINGERPRINT, SIGNATURE})
"""What the fingerprint does not cover: the sums it is made from, itself, and a signature of it."""


def folder_name(name: str, version: str) -> str:
    """The folder of a bundle: NAME-VERSION."""
    return f"{name}-{version}"


def is_machine_dependent(path: str) -> bool:
    """Whether a file tells of errors as they were measured, and is the same only on the same kind of machine."""
    return path.startswith("evidence/") or path == README
