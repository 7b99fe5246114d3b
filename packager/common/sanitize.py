"""The text of a foreign error → what a bundle may record of it: nothing of the machine, nothing of the moment.

What a library says when it fails names files by their absolute paths and objects by their place in memory. A bundle
that repeated it would tell where it was built, and would be another one at every build.
"""

from __future__ import annotations

import re
from pathlib import Path

_MAX_LENGTH = 300
_ABSOLUTE_FOLDER = re.compile(r"(?<![\w.])/(?:[^\s/:'\"]+/)+")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def sanitize_message(text: str, *folders: Path) -> str:
    """The text, of a length that does for a record, with file names for absolute paths and without addresses.

    Paths are known by their form, or, as a name may hold a blank, by the `folders` that they start with.
    """
    for folder in folders:
        text = text.replace(f"{folder}/", "")
    return _ADDRESS.sub("0x…", _ABSOLUTE_FOLDER.sub("", text))[:_MAX_LENGTH]
