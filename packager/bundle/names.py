"""The names that a file of a bundle may have: the same file on every system, and nothing outside the bundle.

A path has parts separated by `/`, in Unicode's composed form (NFC), at most 32 folders deep. It is refused if some
system would store it under a different name, or take it for something other than a file inside the bundle.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_FILES = 10_000
"""How many files and folders a bundle may have."""
MAX_DEPTH = 32
_MAX_PART_BYTES = 255  # of one name, on the usual file systems

_RESERVED_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])( *\..*)?", re.IGNORECASE)
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")  # and the order of the text


def describe_path_problem(path: str) -> str | None:
    """Say why a bundle may not have a file of this path; None if it may."""
    shown = ascii(path[:200]) if _UNPRINTABLE.search(path) or not _is_utf8(path) else repr(path[:200])
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return f"{shown} is not a path inside a bundle"
    if not _is_utf8(path):
        return f"{shown} is not UTF-8"
    if "\\" in path or _UNPRINTABLE.search(path):
        return f"a path in a bundle may not contain line breaks, control characters or backslashes: {shown}"
    if not unicodedata.is_normalized("NFC", path):
        return f"{shown} is not in Unicode's normal form NFC"
    if len(parts) > MAX_DEPTH + 1:
        return f"{shown} is more than {MAX_DEPTH} folders deep"
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return f"{shown} has a name of more than {_MAX_PART_BYTES} bytes"
    if any(":" in part or part[-1] in ". " or _RESERVED_ON_WINDOWS.fullmatch(part) for part in parts):
        return f"{shown} means something else on Windows"
    return None


def describe_set_problem(paths: Iterable[str]) -> str | None:
    """Say why a bundle may not have files of all these paths at once; None if it may.

    Two names that differ in case only are one file on some systems, and a name cannot be both a file and a folder.
    """
    numbers: dict[tuple[int, str], int] = {}  # of a folder or file, by its parent and what ignoring case makes of it
    spellings = [""]  # by number, from that of the bundle itself
    files: set[int] = set()
    for path in paths:
        number, parts = 0, path.split("/")
        for depth, part in enumerate(parts):
            folded = unicodedata.normalize("NFC", part.casefold())
            number = numbers.setdefault((number, part if part == folded else folded), len(spellings))
            if number == len(spellings):
                spellings.append(part)
            if len(spellings) > MAX_FILES + 1:
                return f"there are more than {MAX_FILES} files and folders"
            if spellings[number] != part:
                earlier = "/".join([*parts[:depth], spellings[number]])
                return f"{path[:200]!r} differs from {earlier[:200]!r} in case only"
            if number in files:
                return f"{path[:200]!r} takes the place of another file"
        files.add(number)
    return None


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
