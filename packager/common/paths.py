"""Locate the package and the data files that ship with it. No other module looks at its own `__file__`."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).absolute().parent.parent
"""The absolute folder of the package, with links unresolved: a prefix of the file names of its modules."""


def data_folder(name: str) -> Path:
    """Return the folder `templates` or `schemas`, which is inside the package in a wheel, beside it in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def is_own_file(name: str) -> bool:
    """Return whether a file of this name in `PACKAGE` is code of packager, or data that belongs to its code."""
    return name.endswith(".py") or name in ("py.typed", "runners.json")
