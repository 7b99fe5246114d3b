"""The identity of a bundle: one line that changes when any byte or any name of it does.

SHA256SUMS lists every file of the bundle as `sha256sum` does, `hex digest`, two spaces, path, in
the order of the paths' bytes. The fingerprint is `h1:` and the base64 of the SHA-256 of that text,
which is Hash1 of Go's dirhash (golang.org/x/mod/sumdb/dirhash). In a shell, inside the bundle:

    sha256sum -c SHA256SUMS
    printf 'h1:%s\\n' "$(sha256sum < SHA256SUMS | cut -d' ' -f1 | xxd -r -p | base64)"

SHA256SUMS itself, FINGERPRINT and model.sig are outside of it; any other file that is not listed
is an intruder, which `sha256sum -c` does not see and `integrity` does.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import layout
from packager.common.hashing import sha256_file
from packager.errors import FingerprintMalformed, NotABundle

_FINGERPRINT = re.compile(r"h1:[0-9A-Za-z+/]{43}=")
_SUMS_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


class SumsMalformed(Exception):
    """SHA256SUMS is not a list of digests and paths in order."""


@dataclass(frozen=True)
class Integrity:
    """How the files differ from what SHA256SUMS lists, each in sorted order; empty where they do not."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.extra or self.changed)


def format_sums(digests: Mapping[str, str]) -> str:
    """The text of SHA256SUMS for hex digests by path. Raises ValueError for a path with a line break."""
    for path in digests:
        if "\n" in path or "\r" in path or "\\" in path:
            raise ValueError(f"a path in a bundle has no line break and no backslash: {path!r}")
    ordered = sorted(digests, key=lambda path: path.encode())
    return "".join(f"{digests[path]}  {path}\n" for path in ordered)


def check_fingerprint_syntax(expected: str | None) -> None:
    """Refuse to look for what is no fingerprint. Raises `FingerprintMalformed`."""
    if expected is not None and not _FINGERPRINT.fullmatch(expected):
        raise FingerprintMalformed(expected)


def compute_fingerprint(sums: str) -> str:
    """`h1:` + base64(SHA-256(text of SHA256SUMS))."""
    return "h1:" + base64.b64encode(hashlib.sha256(sums.encode()).digest()).decode()


def parse_sums(text: str) -> dict[str, str]:
    """Hex digests by path. Raises `SumsMalformed` unless the text is just what `sums_text` writes."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # splitlines() breaks lines that sha256sum does not
        match = _SUMS_LINE.fullmatch(line)
        if match is None:
            raise SumsMalformed(f"line {number} is no digest and path")
        digest, path = match.groups()
        if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
            raise SumsMalformed(f"line {number} names a path outside the bundle: {path}")
        found[path] = digest
    try:
        same = format_sums(found) == text
    except ValueError as error:
        raise SumsMalformed(str(error)) from None
    if not same:
        raise SumsMalformed("the lines are not sorted, or a path stands twice")
    return found


def list_files(folder: Path) -> list[str]:
    """Every path below the folder, sorted, but for what is outside the fingerprint; links are not followed."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=False):
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in (*files, *linked)]
    return sorted(set(found) - layout.UNSEALED_FILES, key=os.fsencode)  # a stranger's name need not be UTF-8


def check_integrity(folder: Path, sums: Mapping[str, str]) -> Integrity:
    """Compare the files of a folder with their listed digests. A link is never what was listed.

    Raises `NotABundle` where a file may not be read.
    """
    present = list_files(folder)
    listed = [path for path in sums if path in set(present)]
    with ThreadPoolExecutor(max_workers=2) as threads:  # hashlib lets go of the interpreter
        try:
            digests = dict(
                zip(listed, threads.map(lambda path: regular_file_digest(folder / path), listed), strict=True)
            )
        except OSError as error:
            named = Path(str(error.filename)).name
            raise NotABundle(str(folder), f"{named} cannot be read: {error.strerror}") from None
    return Integrity(
        missing=tuple(sorted(set(sums) - set(present))),
        extra=tuple(sorted(set(present) - set(sums))),
        changed=tuple(path for path in listed if digests[path] != sums[path]),
    )


def regular_file_digest(path: Path) -> str:
    """SHA-256 of a regular file in hex; empty for anything else, which equals no digest."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return ""
    return sha256_file(path)
