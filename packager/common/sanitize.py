"""Remove paths and addresses from the error messages of libraries, so that a bundle may record them.

Such messages contain absolute paths of files and memory addresses of objects. A bundle that repeated them would
reveal where it was built, and would have different bytes after every build.
"""

from __future__ import annotations

import re
from pathlib import Path

_MAX_LENGTH = 300
_ABSOLUTE_FOLDER = re.compile(r"(?<![\w.])/(?:[^\s/:'\"]+/)+")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def get_first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def sanitize_message(text: str, *folders: Path) -> str:
    """Shorten absolute paths to file names, replace addresses by `0x…`, and truncate the text to 300 characters.

    Paths are recognised by their form. Pass `folders` to recognise paths below them too, whose names may contain
    spaces.
    """
    for folder in folders:
        text = text.replace(f"{folder}/", "")
    return _ADDRESS.sub("0x…", _ABSOLUTE_FOLDER.sub("", text))[:_MAX_LENGTH]
