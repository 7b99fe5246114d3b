"""The names of the files in a bundle; every other module takes them from here."""

from __future__ import annotations

SCHEMA_VERSION = 1

CONFIG = "config.json"
ONNX = "model.onnx"
ONNX_DATA = "model.onnx_data"
TORCHSCRIPT = "model.ts"
EXPORTED_PROGRAM = "model.pt2"
README = "README.md"
ASSETS = "assets"
GOLDEN = "evidence/golden.safetensors"
PARITY = "evidence/parity.json"
BUILD = "evidence/build.json"
PARITY_ATTESTATION = "evidence/parity.intoto.json"
PROVENANCE = "evidence/provenance.intoto.json"
BILL_OF_MATERIALS = "evidence/bom.cdx.json"
SUMS = "SHA256SUMS"
FINGERPRINT = "FINGERPRINT"
SIGNATURE = "model.sig"

DOCUMENTS = frozenset({PARITY_ATTESTATION, PROVENANCE, BILL_OF_MATERIALS})
"""The standard documents, which follow from the records."""

UNSEALED_FILES = frozenset({SUMS, FINGERPRINT, SIGNATURE})
"""The files that the fingerprint does not cover: the sums it is computed from, itself, and its signature."""


NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
"""The names that a bundle may have."""
# The expression that https://semver.org publishes for version 2.0.0, without named groups, and with [0-9] instead of
# \d, which matches the digits of every script in pydantic.
VERSION_PATTERN = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(-(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$"
)
"""The versions that a bundle may have."""


def folder_name(name: str, version: str) -> str:
    """Return the folder name of a bundle, NAME-VERSION."""
    return f"{name}-{version}"


def is_machine_dependent(path: str) -> bool:
    """Return whether a file reports measured errors, and is reproducible only on the same kind of machine."""
    return path.startswith("evidence/") or path == README
