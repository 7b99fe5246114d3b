"""Versions of installed distributions by the names of their dist-info folders, which takes a millisecond.

`importlib.metadata` reads the same folders, and imports an e-mail parser first; it is asked only for what
is not found this way.
"""

from __future__ import annotations

import functools
import os
import re
import sys


@functools.cache
def version(name: str) -> str:
    """The version of an installed distribution; empty where it is not installed."""
    found = _all().get(_normal(name))
    if found is not None:
        return found
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@functools.cache
def _all() -> dict[str, str]:
    """By normalized name; where a name is on the path twice, the first counts, as for an import."""
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for one in names:
            if one.endswith(".dist-info"):
                name, _, number = one.removesuffix(".dist-info").partition("-")
                found.setdefault(_normal(name), number)
    return found


def _normal(name: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()
