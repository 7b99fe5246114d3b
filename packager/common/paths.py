"""Where the package lies, and the files that ship with it: the one module that looks at its own path."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).absolute().parent.parent
"""The absolute folder of the package. Links are not followed, so that it is a prefix of its modules' file names."""


def data_folder(name: str) -> Path:
    """Return the folder `templates` or `schemas`: inside the package in a wheel, beside it in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
