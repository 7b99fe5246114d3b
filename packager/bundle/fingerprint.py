r"""The identity of a bundle: one line that changes with any byte and any file name of the bundle.

SHA256SUMS lists every file of the bundle in the format of `sha256sum`: hex digest, two spaces, path, sorted
by the bytes of the paths. The fingerprint is `h1:` and the base64 of the SHA-256 of that text, which is
Hash1 of Go's dirhash (golang.org/x/mod/sumdb/dirhash). In a shell, inside the bundle:

    sha256sum -c SHA256SUMS
    printf 'h1:%s\n' "$(sha256sum < SHA256SUMS | cut -d' ' -f1 | xxd -r -p | base64)"

SHA256SUMS itself, FINGERPRINT and model.sig are not covered. Any other file that is not listed does not belong
to the bundle; `check_integrity` reports it, `sha256sum -c` does not.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import layout
from packager.bundle.names import MAX_FILES, describe_path_problem, describe_set_problem
from packager.common.hashing import sha256_file
from packager.errors import FingerprintMalformed, NotABundle

_FINGERPRINT = re.compile(r"h1:[0-9A-Za-z+/]{43}=")
_SUMS_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


class SumsMalformed(Exception):
    """SHA256SUMS is not a sorted list of digests and paths."""


@dataclass(frozen=True)
class Integrity:
    """The differences between the files and SHA256SUMS: paths that are missing, not listed, or changed, sorted."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Return whether there are no differences."""
        return not (self.missing or self.extra or self.changed)


def format_sums(digests: Mapping[str, str]) -> str:
    """Return the text of SHA256SUMS for hex digests by path.

    Raises ValueError for a path that no bundle may have, such as one with a line break, which `sha256sum` would escape.
    """
    problem = next(filter(None, map(describe_path_problem, digests)), None) or describe_set_problem(digests)
    if problem is not None:
        raise ValueError(problem)
    return format_lines(digests)


def format_lines(digests: Mapping[str, str]) -> str:
    """Return the text over which Go's Hash1 is taken, for hex digests by path, whatever the paths are."""
    return "".join(f"{digests[path]}  {path}\n" for path in sorted(digests, key=str.encode))


def check_fingerprint_syntax(expected: str | None) -> None:
    """Raise `FingerprintMalformed` unless `expected` is a fingerprint or None."""
    if expected is not None and not _FINGERPRINT.fullmatch(expected):
        raise FingerprintMalformed(expected)


def compute_fingerprint(sums: str) -> str:
    """Return the fingerprint of a bundle from the text of its SHA256SUMS: `h1:` + base64(SHA-256(text))."""
    return "h1:" + base64.b64encode(hashlib.sha256(sums.encode()).digest()).decode()


def parse_sums(text: str) -> dict[str, str]:
    """Parse the text of SHA256SUMS into hex digests by path.

    Raises `SumsMalformed` unless the text is exactly what `format_sums` writes.
    """
    if text.count("\n") > MAX_FILES:
        raise SumsMalformed(f"there are more than {MAX_FILES} files")
    digests: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # splitlines() splits at more than \n
        match = _SUMS_LINE.fullmatch(line)
        if match is None:
            raise SumsMalformed(f"line {number} is not a digest and a path")
        digest, path = match.groups()
        if problem := describe_path_problem(path):
            raise SumsMalformed(f"line {number}: {problem}")
        digests[path] = digest
    if problem := describe_set_problem(digests):
        raise SumsMalformed(problem)
    if text != format_lines(digests):
        raise SumsMalformed("the lines are not sorted, or a path appears twice")
    return digests


def read_sums(folder: Path) -> tuple[str, dict[str, str]]:
    """Read SHA256SUMS of the bundle in `folder`. Returns the fingerprint, and hex digests by path.

    Raises OSError if the file cannot be read, `SumsMalformed` if it is malformed.
    """
    try:
        text = (folder / layout.SUMS).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SumsMalformed(str(error)) from None
    return compute_fingerprint(text), parse_sums(text)


def list_files(folder: Path) -> list[str]:
    """List the files that the fingerprint should cover: paths relative to `folder`, sorted by their bytes.

    Links are listed and not followed; folders are not listed.
    """
    paths: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        paths.update((Path(root) / name).relative_to(folder).as_posix() for name in (*files, *links))
    return sorted(paths - layout.UNSEALED_FILES, key=os.fsencode)  # a file name need not be UTF-8


def check_integrity(folder: Path, sums: Mapping[str, str], sha256: Callable[[Path], str] | None = None) -> Integrity:
    """Compare the files of `folder` with `sums`, hex digests by path. A link counts as changed.

    `sha256` computes the digest of a file, as `regular_file_digest` does, which is the default.

    Raises `NotABundle` if a file cannot be read.
    """
    present = set(list_files(folder))
    listed = [path for path in sums if path in present]
    with ThreadPoolExecutor(max_workers=2) as threads:  # hashlib releases the interpreter lock
        try:
            digests = list(threads.map(lambda path: (sha256 or regular_file_digest)(folder / path), listed))
        except OSError as error:
            name = Path(str(error.filename)).name
            raise NotABundle(str(folder), f"{name} cannot be read: {error.strerror}") from None
    return Integrity(
        missing=tuple(sorted(set(sums) - present)),
        extra=tuple(sorted(present - set(sums))),
        changed=tuple(path for path, digest in zip(listed, digests, strict=True) if digest != sums[path]),
    )


def regular_file_digest(path: Path) -> str:
    """Return the SHA-256 of a regular file in hex, or "" for anything else (a link, a pipe), which equals no digest."""
    return sha256_file(path) if stat.S_ISREG(path.lstat().st_mode) else ""
