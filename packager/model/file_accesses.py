"""Record which files this process opens, through Python's audit events (PEP 578).

An audit hook cannot be removed. It is installed once, and does nothing while nothing is being recorded. Files that
are opened by code that is not Python, listed, or only tested for existence, are not seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(eq=False)
class FileAccesses:
    """Normalized absolute paths of the files that were read, each with its status then, and of those written.

    `relative` are those among the files read that were opened by a relative path.
    """

    read: dict[str, tuple[int, int, int] | None]
    written: set[str]
    relative: set[str]


_ACTIVE: list[FileAccesses] = []
_HOOK_INSTALLED: list[bool] = []


@contextmanager
def record_file_accesses(written: Collection[Path]) -> Iterator[FileAccesses]:
    """Record what is opened while the block runs. `written` are files to treat as if the block had written them."""
    accesses = FileAccesses({}, {str(path) for path in written}, set())
    if not _HOOK_INSTALLED:
        sys.addaudithook(_audit_hook)
        _HOOK_INSTALLED.append(True)
    _ACTIVE.append(accesses)
    try:
        yield accesses
    finally:
        _ACTIVE.remove(accesses)


def normalize_path(path: str | Path) -> str:
    """Return the path as an absolute one without `.` and `..`; links are followed only where it has a `..`."""
    absolute = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118 (runs at every open())
    # `..` behind a link is the parent of the link's target.
    return os.path.realpath(absolute) if ".." in Path(absolute).parts else os.path.normpath(absolute)


def stat_file(path: str) -> tuple[int, int, int] | None:
    """Return what changes when a file is changed or replaced: size, time and inode; None if it cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 (runs at every open())
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _audit_hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _ACTIVE:
        return
    if event == "open":
        name, _, flags = arguments
        if isinstance(flags, int) and isinstance(name, (str, bytes, os.PathLike)):
            _record_open(os.fsdecode(name), flags)
    elif event == "os.rename":
        names = [name for name in arguments[:2] if isinstance(name, (str, bytes, os.PathLike))]
        paths = [normalize_path(os.fsdecode(name)) for name in names]
        for accesses in _ACTIVE:
            if paths[0] in accesses.written:
                accesses.written.add(paths[-1])


def _record_open(name: str, flags: int) -> None:
    path = normalize_path(name)
    status = stat_file(path)  # before it is opened
    if flags & os.O_EXCL and status is not None:
        return  # opening it fails
    writes = flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_TRUNC
    creates = flags & os.O_CREAT and status is None  # tempfile opens its files for reading as well
    for accesses in _ACTIVE:
        if writes or creates:
            accesses.written.add(path)
        elif path not in accesses.written:
            accesses.read.setdefault(path, status)
            if not os.path.isabs(name):  # noqa: PTH117 (runs at every open())
                accesses.relative.add(path)
