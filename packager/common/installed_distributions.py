"""Look up versions of installed distributions from the names of their dist-info folders, in about a millisecond.

`importlib.metadata` reads the same folders but imports an e-mail parser first. It is the fallback for
distributions without such a folder.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

DISTRIBUTION = "torch-packager"  # the name in pyproject.toml; the import package is `packager`


def tool_version(name: str) -> str:
    """Return the version of a tool by its name in cache keys and config.json; "" if it is not installed.

    `packager` is this package.
    """
    return installed_version(DISTRIBUTION if name == "packager" else name)


@functools.cache
def installed_version(name: str) -> str:
    """Return the version of an installed distribution; "" if it is not installed."""
    distribution = _scan_distributions().get(_normalize_name(name))
    if distribution is not None:
        return distribution[0]
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def distribution_identity(name: str, sha256: Callable[[Path], str]) -> str:
    """Return a distribution's version and the start of its RECORD's digest: two builds may share a version.

    `sha256` returns the digest of a file in hex. Without a RECORD, the version alone is returned.
    """
    version = installed_version(name)
    distribution = _scan_distributions().get(_normalize_name(name))
    if distribution is None or not (record := distribution[1] / "RECORD").exists():
        return version
    return f"{version} {sha256(record)[:12]}"


def read_record(name: str) -> str:
    """Return the text of a distribution's RECORD, which lists its files with their digests; "" without a RECORD."""
    distribution = _scan_distributions().get(_normalize_name(name))
    if distribution is None or not (record := distribution[1] / "RECORD").exists():
        return ""
    return record.read_text(encoding="utf-8")


def find_distribution(name: str) -> tuple[str, Path] | None:
    """Return the version and the dist-info folder of an installed distribution; None without such a folder."""
    return _scan_distributions().get(_normalize_name(name))


@functools.cache
def _scan_distributions() -> dict[str, tuple[str, Path]]:
    """Return version and dist-info folder by normalized name; the first on sys.path counts, as for an import."""
    distributions: dict[str, tuple[str, Path]] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 (a Path for each of a thousand entries takes longer)
        except OSError:
            continue
        for entry in names:
            if entry.endswith(".dist-info"):
                name, _, version = entry.removesuffix(".dist-info").partition("-")
                distributions.setdefault(_normalize_name(name), (version, Path(folder, entry)))
    return distributions


def _normalize_name(name: str) -> str:
    """Normalize a distribution's name as PEP 503 defines."""
    return re.sub(r"[-_.]+", "-", name).lower()
