"""Identify files, packages and builds as the standard formats do."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from packager.bundle import layout
from packager.bundle.fingerprint import format_sums

DISTRIBUTION = "torch-packager"


def list_assets(files: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return path and SHA-256 of the assets among `files`, which are digests by path."""
    return [(path, sha256) for path, sha256 in files.items() if path.startswith(f"{layout.ASSETS}/")]


def describe_file(name: str, sha256: str) -> dict[str, Any]:
    """Return the in-toto ResourceDescriptor of a file."""
    return {"name": name, "digest": {"sha256": sha256}}


def make_package_url(tool: str, version: str) -> str:
    """Return the package URL of a Python package by its name in config.json, where `packager` is this package.

    Specification: https://github.com/package-url/purl-spec
    """
    name = DISTRIBUTION if tool == "packager" else tool.replace("_", "-").lower()
    return f"pkg:pypi/{name}" + (f"@{quote(version, safe='')}" if version else "")


def derive_urn(digests: Mapping[str, str]) -> str:
    """Return a UUID as a URN that is the same for the same files: version 5, of the lines that SHA256SUMS has."""
    return uuid.uuid5(uuid.NAMESPACE_OID, format_sums(digests)).urn
