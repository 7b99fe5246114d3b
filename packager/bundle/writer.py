"""The one way into a bundle: every file enters through `Writer`, which hashes it as it writes.

A bundle is written into a staging folder beside its target, proven there, and renamed: whoever
looks sees no bundle or a whole one, also if the process is killed. The staging folder is locked as
long as its process lives, so that the next build can tell, and clear away, what a killed one left.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from packager.bundle import layout
from packager.bundle.fingerprint import compute_fingerprint, format_sums
from packager.common.hashing import CHUNK_BYTES, sha256_file
from packager.errors import OutputRefused

try:
    import fcntl
except ImportError:  # not on Windows: there nothing is cleared away
    fcntl = None  # type: ignore[assignment]  # the only way to say that a module is absent

_UNLOCKED, _SUFFIX = ".unlocked", ".staging"
_LOCK_NAME = "lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
_CHOOSE_ANOTHER_FOLDER = "choose another folder with -o"
_HINTS_BY_ERRNO = {
    errno.ENOSPC: "free some space, or choose another folder with -o",
    errno.EDQUOT: "free some space, or choose another folder with -o",
    errno.EFBIG: "the limit on file sizes is too small for this model",
    errno.EACCES: "choose a folder you may write to with -o",
    errno.EPERM: "choose a folder you may write to with -o",
    errno.EROFS: "choose a folder you may write to with -o",
    errno.ENAMETOOLONG: "shorten the manifest's name or version",
    errno.ENOTDIR: _CHOOSE_ANOTHER_FOLDER,
    errno.EEXIST: _CHOOSE_ANOTHER_FOLDER,
    errno.ENOTEMPTY: "another build has just put its bundle there: build again",
}


class BundleWriter:
    """Writes the files of one bundle into a folder and remembers their digests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def add_bytes(self, path: str, content: bytes) -> str:
        """Write one file from memory; returns its digest."""
        target = self._target(path)
        target.write_bytes(content)
        self.digests[path] = hashlib.sha256(content).hexdigest()
        return self.digests[path]

    def add_file(self, path: str, source: Path) -> str:
        """Copy one file in, hashing what is written; returns its digest."""
        found = hashlib.sha256()
        with source.open("rb") as reader, self._target(path).open("wb") as stream:
            while chunk := reader.read(CHUNK_BYTES):
                stream.write(chunk)
                found.update(chunk)
        self.digests[path] = found.hexdigest()
        return self.digests[path]

    def move_file(self, path: str, source: Path) -> str:
        """Move a finished file of the same filesystem in and hash what lies there; returns its digest."""
        target = self._target(path)
        os.replace(source, target)
        self.digests[path] = sha256_file(target)
        return self.digests[path]

    def remove_file(self, path: str) -> None:
        """Take a file out again, as when it was not proven."""
        (self.folder / path).unlink()
        del self.digests[path]

    def seal(self) -> str:
        """Write SHA256SUMS and FINGERPRINT; returns the fingerprint."""
        text = format_sums(self.digests)
        found = compute_fingerprint(text)
        (self.folder / layout.SUMS).write_text(text, encoding="utf-8", newline="\n")
        (self.folder / layout.FINGERPRINT).write_text(found + "\n", encoding="utf-8", newline="\n")
        return found

    def _target(self, path: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


@contextlib.contextmanager
def stage_bundle(out: Path, name: str, *, force: bool) -> Iterator[Path]:
    """A private folder beside `out/name`; when the block ends well, its `bundle` takes that place.

    Raises `OutputRefused` where `out` cannot be written, or `out/name` is there, is no bundle, and
    `force` is not given; an OSError inside the block that is the user's to mend becomes one too.
    """
    target = out / name
    with translate_os_errors(out):
        check_bundle_target(target, force=force)
        with _create_folder(out), _create_locked_folder(out, name) as folder:
            bundle = folder / "bundle"
            bundle.mkdir()
            yield folder
            _replace_target(bundle, target, folder / "old")


@contextlib.contextmanager
def _create_folder(out: Path) -> Iterator[None]:
    """The folder for bundles, with those around it; what was made for this, and holds no bundle, goes again."""
    made = [one for one in (out, *out.parents) if not os.path.lexists(one)]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # as in /proc
            raise OutputRefused(str(out), "no folder can be made there", _CHOOSE_ANOTHER_FOLDER) from None
        except (FileExistsError, NotADirectoryError):
            file = next(one for one in (out, *out.parents) if os.path.lexists(one))
            raise OutputRefused(str(out), f"{file} is no folder", _CHOOSE_ANOTHER_FOLDER) from None
        _clear_leftovers(out)
        yield
    finally:
        for one in made:
            if os.path.lexists(one) and (not one.is_dir() or any(one.iterdir())):
                break
            with contextlib.suppress(OSError):  # not made after all, or no longer empty
                one.rmdir()


def check_bundle_target(target: Path, *, force: bool) -> None:
    """Refuse to replace what is not a bundle. Raises `OutputRefused`."""
    if not os.path.lexists(target) or force:
        return
    if target.is_symlink() or not (target / layout.SUMS).is_file() or not (target / layout.CONFIG).is_file():
        raise OutputRefused(
            str(target), "something that is not a bundle is there already", "move it away, or use --force"
        )


def check_archive_target(target: Path, *, force: bool) -> None:
    """Refuse to replace a file that is no bundle's archive. Raises `OutputRefused`."""
    if not os.path.lexists(target) or force:
        return
    try:
        with zipfile.ZipFile(target) as archive:
            known = any(name.endswith(layout.SUMS) for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        known = False
    if not known:
        why = "something that is no bundle's archive is there already"
        raise OutputRefused(str(target), why, "move it away, or use --force")


def _replace_target(bundle: Path, target: Path, old: Path) -> None:
    """Put the bundle in the target's place: in one step where the system can exchange two folders."""
    if os.path.lexists(target) and _exchange_paths(bundle, target):
        return
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, old)
    try:
        os.rename(bundle, target)
    except OSError:
        if os.path.lexists(old):
            os.rename(old, target)
        raise


def _exchange_paths(one: Path, other: Path) -> bool:
    """Exchange two paths atomically (renameat2(2), Linux); returns whether that was done."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


@contextlib.contextmanager
def _create_locked_folder(out: Path, name: str) -> Iterator[Path]:
    """A new folder that is locked before it has the name by which others find and clear it."""
    new = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_UNLOCKED, dir=out))
    with (new / _LOCK_NAME).open("w") as lock:
        _try_lock(lock)
        folder = new.rename(new.with_suffix(_SUFFIX))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear_leftovers(out: Path) -> None:
    for folder in out.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError), (folder / _LOCK_NAME).open("r") as lock:
            if _try_lock(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _try_lock(lock: IO[str]) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def translate_os_errors(out: Path) -> Iterator[None]:
    """An OSError that is the user's to mend, as a full disk is, becomes `OutputRefused`."""
    try:
        yield
    except OSError as error:
        hint = _HINTS_BY_ERRNO.get(error.errno or 0)
        if hint is None:
            raise
        raise OutputRefused(str(out), str(error.strerror), hint) from error
