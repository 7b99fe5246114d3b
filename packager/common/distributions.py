"""Versions of installed distributions by the names of their dist-info folders, which takes a millisecond.

`importlib.metadata` reads the same folders, and imports an e-mail parser first; it is asked only for what
is not found this way.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

DISTRIBUTION = "torch-packager"  # what pip installs and pyproject.toml names; the import package is `packager`


def tool_version(name: str) -> str:
    """The version of a tool as cache keys and config.json name it: `packager` for ourselves. Empty if not installed."""
    return installed_version(DISTRIBUTION if name == "packager" else name)


@functools.cache
def installed_version(name: str) -> str:
    """The version of an installed distribution; empty where it is not installed."""
    found = _scan_distributions().get(_normalize_name(name))
    if found is not None:
        return found[0]
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def distribution_identity(name: str, sha256: Callable[[Path], str]) -> str:
    """The version of a distribution, and the digest of the RECORD of its files: a version may be installed twice."""
    found = _scan_distributions().get(_normalize_name(name))
    record = Path(found[1], "RECORD") if found is not None else None
    return (
        f"{installed_version(name)} {sha256(record)[:12]}"
        if record is not None and record.exists()
        else installed_version(name)
    )


@functools.cache
def _scan_distributions() -> dict[str, tuple[str, str]]:
    """Version and folder by normalized name; where a name is on the path twice, the first counts, as for an import."""
    found: dict[str, tuple[str, str]] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for one in names:
            if one.endswith(".dist-info"):
                name, _, number = one.removesuffix(".dist-info").partition("-")
                found.setdefault(_normalize_name(name), (number, os.path.join(folder, one)))
    return found


def _normalize_name(name: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()
