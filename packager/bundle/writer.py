"""Write bundles: every file enters a bundle through `BundleWriter`, which hashes it.

A bundle is written to a staging folder beside its target, verified there, and renamed. The target is
therefore never half written, not even if the process is killed. The staging folder is locked while its
process lives, so that the next build can recognise and delete what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from packager.bundle import layout
from packager.bundle.fingerprint import compute_fingerprint, format_sums, regular_file_digest
from packager.common.hashing import CHUNK_BYTES, sha256_file
from packager.errors import OutputRefused

if sys.platform != "win32":
    import fcntl

_UNLOCKED, _SUFFIX = ".unlocked", ".staging"
_LOCK_NAME = "lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST}  # rename(2), where the target is a folder that holds files
_CHOOSE_ANOTHER_FOLDER = "choose another folder with -o"
_MOVE_OR_FORCE = "move it away, or use --force"
_FREE_SPACE = "free some space, or choose another folder with -o"
_CHOOSE_WRITABLE_FOLDER = "choose a folder you may write to with -o"
_HINTS_BY_ERRNO = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "the limit on file sizes is too small for this model",
    errno.EACCES: _CHOOSE_WRITABLE_FOLDER,
    errno.EPERM: _CHOOSE_WRITABLE_FOLDER,
    errno.EROFS: _CHOOSE_WRITABLE_FOLDER,
    errno.ENAMETOOLONG: "shorten the manifest's name or version",
    errno.ENOTDIR: _CHOOSE_ANOTHER_FOLDER,
    errno.EEXIST: _CHOOSE_ANOTHER_FOLDER,
}


class BundleWriter:
    """Writes the files of one bundle to `folder`; `digests` are SHA-256 in hex by path in the bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}
        self._versions: dict[str, tuple[int, ...]] = {}

    def add_bytes(self, path: str, content: bytes) -> str:
        """Write a file from memory. Returns its SHA-256 in hex."""
        self._target(path).write_bytes(content)
        return self._record(path, hashlib.sha256(content).hexdigest())

    def add_file(self, path: str, source: Path) -> str:
        """Copy a file into the bundle, hashing the bytes that are written. Returns the SHA-256 in hex."""
        digest = hashlib.sha256()
        with source.open("rb") as reader, self._target(path).open("wb") as stream:
            while chunk := reader.read(CHUNK_BYTES):
                stream.write(chunk)
                digest.update(chunk)
        return self._record(path, digest.hexdigest())

    def move_file(self, path: str, source: Path) -> str:
        """Move a file of the same file system into the bundle and hash it there. Returns the SHA-256 in hex."""
        return self._record(path, sha256_file(source.replace(self._target(path))))

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file in the bundle's folder; it is not hashed again if nobody has touched it.

        It is "" for anything but a regular file, which equals no digest.
        """
        path = file.relative_to(self.folder).as_posix()
        if path in self._versions and self._versions[path] == _get_version(file):
            return self.digests[path]
        return regular_file_digest(file)

    def remove_file(self, path: str) -> None:
        """Delete a file from the bundle, such as a model that failed the comparison."""
        (self.folder / path).unlink()
        del self.digests[path], self._versions[path]

    def seal(self) -> str:
        """Write SHA256SUMS and FINGERPRINT. Returns the fingerprint."""
        text = format_sums(self.digests)
        fingerprint = compute_fingerprint(text)
        (self.folder / layout.SUMS).write_text(text, encoding="utf-8", newline="\n")
        (self.folder / layout.FINGERPRINT).write_text(f"{fingerprint}\n", encoding="utf-8", newline="\n")
        return fingerprint

    def _record(self, path: str, sha256: str) -> str:
        self.digests[path], self._versions[path] = sha256, _get_version(self.folder / path)
        return sha256

    def _target(self, path: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _get_version(file: Path) -> tuple[int, ...]:
    """Return what shows that a file is another one, or has been written to; a link is not followed."""
    status = file.lstat()
    return status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@contextlib.contextmanager
def stage_bundle(out: Path, name: str, *, force: bool) -> Iterator[Path]:
    """Yield a private folder beside `out/name`; its subfolder `bundle` replaces `out/name` when the block succeeds.

    Raises `OutputRefused` if `out` cannot be written, or if `out/name` exists and is not a bundle, unless `force`.
    An OSError in the block that the user can fix, such as a full disk, becomes `OutputRefused` too.
    """
    with translate_os_errors(out):
        check_bundle_target(out / name, force=force)
        with stage_folder(out, name) as folder:
            yield folder


@contextlib.contextmanager
def stage_folder(out: Path, name: str) -> Iterator[Path]:
    """Yield a private folder beside `out/name`; its subfolder `bundle` replaces `out/name`, whatever that is.

    Raises `OutputRefused` if `out` cannot be created, and OSError.
    """
    with _create_folder(out), _create_locked_folder(out, name) as folder:
        bundle = folder / "bundle"
        bundle.mkdir()
        yield folder
        _replace_target(bundle, out / name, folder)


@contextlib.contextmanager
def _create_folder(out: Path) -> Iterator[None]:
    """Create `out` and its parents; those created here are deleted after the block if they are still empty."""
    created = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # as in /proc
            raise OutputRefused(str(out), "a folder cannot be created there", _CHOOSE_ANOTHER_FOLDER) from None
        except (FileExistsError, NotADirectoryError):
            file = next(path for path in (out, *out.parents) if os.path.lexists(path))
            raise OutputRefused(str(out), f"{file} is not a folder", _CHOOSE_ANOTHER_FOLDER) from None
        _clear_leftovers(out)
        yield
    finally:
        for folder in created:
            if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
                break
            with contextlib.suppress(OSError):  # never created, or no longer empty
                folder.rmdir()


def check_bundle_target(target: Path, *, force: bool) -> None:
    """Raise `OutputRefused` if `target` exists and is not a bundle, unless `force`."""
    if not os.path.lexists(target) or force:
        return
    if target.is_symlink() or not (target / layout.SUMS).is_file() or not (target / layout.CONFIG).is_file():
        raise OutputRefused(str(target), "it exists and is not a bundle", _MOVE_OR_FORCE)


def check_archive_target(target: Path, *, force: bool) -> None:
    """Raise `OutputRefused` if `target` exists and is not the archive of a bundle, unless `force`."""
    if not os.path.lexists(target) or force:
        return
    try:
        with zipfile.ZipFile(target) as archive:
            is_bundle = any(name.endswith(layout.SUMS) for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        is_bundle = False
    if not is_bundle:
        raise OutputRefused(str(target), "it exists and is not the archive of a bundle", _MOVE_OR_FORCE)


def _replace_target(bundle: Path, target: Path, staging: Path) -> None:
    """Move the bundle to `target`, and an existing target into `staging`; in one step if folders can be exchanged.

    Another build may put its bundle at `target` between any two steps here. Then this one starts over, so that the
    last to finish wins; every new attempt means that another build has finished, so the loop ends.
    """
    for attempt in itertools.count():
        if os.path.lexists(target) and _exchange_paths(bundle, target):
            return
        old = staging / f"old-{attempt}"
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            bundle.rename(target)
        except OSError as error:
            if error.errno in _OCCUPIED:
                continue
            if os.path.lexists(old):
                old.rename(target)
            raise
        return


def _exchange_paths(first: Path, second: Path) -> bool:
    """Exchange two paths atomically, with Linux's renameat2(2). Returns whether that was possible."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    status: int = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return status == 0


@contextlib.contextmanager
def _create_locked_folder(out: Path, name: str) -> Iterator[Path]:
    """Yield a new folder, locked before it gets the name by which other builds find it and delete it."""
    new = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_UNLOCKED, dir=out))
    with (new / _LOCK_NAME).open("w") as lock:
        _try_lock(lock)
        folder = new.rename(new.with_suffix(_SUFFIX))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear_leftovers(out: Path) -> None:
    """Delete the staging folders of processes that no longer live."""
    for folder in out.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError), (folder / _LOCK_NAME).open("r") as lock:
            if _try_lock(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _try_lock(lock: IO[str]) -> bool:
    if sys.platform == "win32":  # without locks, leftovers are never deleted
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def translate_os_errors(out: Path) -> Iterator[None]:
    """Turn an OSError that the user can fix, such as a full disk, into `OutputRefused` for the folder `out`."""
    try:
        yield
    except OSError as error:
        hint = _HINTS_BY_ERRNO.get(error.errno or 0)
        if hint is None:
            raise
        raise OutputRefused(str(out), str(error.strerror), hint) from error
