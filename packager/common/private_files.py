"""Create and delete files in folders that belong to this user alone, without following a link.

Every folder from the root down must be a folder and not a link, belong to the user, and be writable by nobody else.
What other users may do above the root is theirs to do: it can make files unreachable, not replace them unnoticed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_OPEN_FOLDER = os.O_RDONLY | _NO_FOLLOW | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_HAS_DESCRIPTORS = {os.open, os.unlink, os.rmdir, os.stat} <= os.supports_dir_fd and os.scandir in os.supports_fd


class NotPrivate(PermissionError):
    """A folder is a link, belongs to a different user, or may be written by one; `strerror` says which."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EPERM, f"{path} {why}")


def make_private_root(path: Path) -> None:
    """Create a folder with mode 0700 unless it exists; it may be a link that the user made. Raises OSError."""
    if not os.path.lexists(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and _is_foreign(link):
        raise NotPrivate(path, "is a symbolic link of a different user")
    _check_private(path, path.stat())


def make_private_folder(path: Path) -> None:
    """Create a folder with mode 0700 unless it exists. Raises OSError, `NotPrivate` among them."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    _check_private(path, path.lstat())


def is_private_folder(path: Path) -> bool:
    """Tell whether this is a folder, no link, that nobody but this user owns and may write to."""
    try:
        _check_private(path, path.lstat())
    except OSError:
        return False
    return True


def is_private_file(path: Path) -> bool:
    """Tell whether this is a file, no link, that nobody but this user owns, reads or writes. Raises OSError."""
    status = path.lstat()
    closed = not (hasattr(os, "geteuid") and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    return stat.S_ISREG(status.st_mode) and not _is_foreign(status) and closed


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open a file as `open` does, but create it with mode 0600 and refuse a link. Raises OSError."""
    flags = {"r": os.O_RDWR, "w": os.O_RDWR | os.O_CREAT | os.O_TRUNC, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND}
    binary = getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags[mode[0]] | _NO_FOLLOW | binary, 0o600), mode)


def delete_below(root: Path, path: Path) -> None:
    """Delete a file, a link or a folder below `root`, through no link; whatever cannot be deleted stays, silently."""
    parts = path.relative_to(root).parts
    with contextlib.suppress(OSError, RecursionError):
        if not _HAS_DESCRIPTORS:
            folders = [root.joinpath(*parts[:count]) for count in range(1, len(parts))]
            if not any(folder.is_symlink() for folder in folders):
                _delete_by_path(path)
            return
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(_open_folder(root))
            for name in parts[:-1]:
                folder = opened.enter_context(_open_folder(name, folder))
            _delete_in(folder, parts[-1])


def _delete_in(folder: int, name: str) -> None:
    """Delete an entry of an open folder, and everything below it. Raises OSError."""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        with _open_folder(name, folder) as inner:
            with os.scandir(inner) as entries:
                names = [entry.name for entry in entries]
            for below in names:
                with contextlib.suppress(OSError):
                    _delete_in(inner, below)
        os.rmdir(name, dir_fd=folder)


@contextlib.contextmanager
def _open_folder(path: Path | str, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _OPEN_FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _delete_by_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _check_private(path: Path, status: os.stat_result) -> None:
    """Raise `NotPrivate` unless this is the status of a folder that only this user owns and may write to."""
    if stat.S_ISLNK(status.st_mode):
        raise NotPrivate(path, "is a symbolic link")
    if not stat.S_ISDIR(status.st_mode):
        raise NotPrivate(path, "is not a folder")
    if _is_foreign(status):
        raise NotPrivate(path, "belongs to a different user")
    if hasattr(os, "geteuid") and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotPrivate(path, "may be written by other users: take that away with chmod go-w")


def _is_foreign(status: os.stat_result) -> bool:
    return hasattr(os, "geteuid") and status.st_uid != os.geteuid()
