"""The cache folder: records, files and downloads that outlive a build.

    actions/AB/ID        the outcome of a build stage, named by its inputs: see `packager.builder.incremental.store`
    objects/AB/SHA256    the files of those outcomes, each named by its own digest
    projects/AB/ID       small records by name: the inputs of a manifest's last build, the answers of a server
    digests/AB/ID        the digest of a file by path, size, mtime, ctime and inode
    downloads/AB/SHA256/ a downloaded checkpoint, one file or several: see `packager.checkpoint.remote.fetch`
    key                  32 random bytes that the records of this cache are authenticated with

AB are the first two characters of the name that follows.

Every file is written under a temporary name and renamed, so that concurrent builds never see half a file. An object is
hashed before it is used. A record starts with the HMAC-SHA256 of its name and content, so that it counts only under its
own name, and nobody can write one who cannot read the key. Whatever fails the check is deleted and built again.

All folders are the user's own, with mode 0700; a link, or a folder that others own or may write to, is not used.
Nothing is deleted through a link: see `packager.common.private_files`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packager.common.hashing import sha256_file
from packager.common.private_files import (
    NotPrivate,
    delete_below,
    is_private_file,
    is_private_folder,
    make_private_folder,
    make_private_root,
    open_private,
)

_MAX_BYTES = 10 << 30
_MAX_DOWNLOAD_BYTES = 50 << 30  # larger, because a download costs more to repeat
_MAX_AGE_SECONDS = 30 * 24 * 3600
_TRIM_INTERVAL_SECONDS = 24 * 3600
_ACCESS_RESOLUTION_SECONDS = 3600  # the time of the last use is accurate to the hour
_MTIME_SETTLE_NS = 2_000_000_000  # a file younger than this may change again without its times showing it
_BUILD_KINDS = ("actions", "objects", "projects", "digests")
_KINDS = (*_BUILD_KINDS, "downloads")
_FORMAT_FOLDER = "builds-1"  # named for the format; nothing beside it is touched, whatever PACKAGER_CACHE names
_INCOMING = "new"
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}")
_FOLDER_NAME = re.compile(r"[0-9a-f]{2}")
_KEY_FILE, _KEY_BYTES = "key", 32


class CacheUnavailable(Exception):
    """The cache cannot be used; the message says why."""


class Cache:
    """A cache folder below `folder`.

    Raises `CacheUnavailable` if the folder cannot be created or written, is a link, belongs to a different user, or may
    be written by one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute() / _FORMAT_FOLDER
        self._verified: set[str] = set()
        try:
            make_private_root(self.folder.parent)
            make_private_folder(self.folder)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise CacheUnavailable(f"{self.folder} is not writable")
            self._key = _load_key(self.folder / _KEY_FILE)
        except NotPrivate as error:
            raise CacheUnavailable(str(error.strerror)) from None
        except OSError as error:
            raise CacheUnavailable(f"{error.strerror}: {self.folder.parent}") from None

    def make_folder(self, path: Path) -> None:
        """Create a folder of the cache, and those above it, unless they exist. Raises OSError if one is not private."""
        folder = self.folder
        if not folder.exists():  # somebody has deleted the cache since it was opened, and its key with it
            make_private_root(folder.parent)
            make_private_folder(folder)
            self._key = _load_key(folder / _KEY_FILE)
        for name in path.relative_to(self.folder).parts:
            folder = folder / name
            make_private_folder(folder)

    def delete(self, path: Path) -> None:
        """Delete a file or folder of the cache, through no link; whatever cannot be deleted stays, without an error."""
        delete_below(self.folder, path)

    # -- actions and objects ------------------------------------------------------------------

    def action_path(self, action_id: str) -> Path:
        """Return the path of the record of a build stage's outcome."""
        return self._path("actions", action_id)

    def object_path(self, sha256: str) -> Path:
        """Return the path of the file with this digest."""
        return self._path("objects", sha256)

    def add_object(self, source: Path, sha256: str, digest: Callable[[Path], str] | None = None) -> None:
        """Copy a file into the cache. Raises OSError if it cannot be written, or does not have this digest.

        The copy is hashed, unless `digest` knows the digest of the file: a later build hashes it before it is used.
        """
        if self.has_object(sha256):
            return
        target = self.object_path(sha256)
        with self._temporary_file(target) as copy:
            shutil.copyfile(source, copy)
            if (sha256_file(copy) if digest is None else digest(source)) != sha256:
                raise OSError(errno.EIO, "a file changed while it was being cached", str(source))
            self.make_folder(target.parent)
            copy.replace(target)
        self._verified.add(sha256)

    def has_object(self, sha256: str) -> bool:
        """Tell whether the file with this digest is present and intact; a damaged one is deleted.

        Contents are hashed once per `Cache`.
        """
        path = self.object_path(sha256)
        if sha256 in self._verified:
            return path.exists()
        try:
            if stat.S_ISREG(path.lstat().st_mode) and sha256_file(path) == sha256:
                self._verified.add(sha256)
                return True
        except OSError:
            return False  # absent or unreadable
        self.delete(path)
        return False

    # -- records and digests ------------------------------------------------------------------

    def load_record(self, name: str) -> dict[str, Any] | None:
        """Return the record saved under a name; None if it is absent or damaged."""
        return self.read_record(self._named_path("projects", name))

    def save_record(self, name: str, content: Mapping[str, Any]) -> None:
        """Save a record, as JSON, under a name. Raises OSError if it cannot be written."""
        self.write_record(self._named_path("projects", name), content)

    def read_record(self, path: Path) -> dict[str, Any] | None:
        """Return the JSON object of a record; None if it is absent or not authentic, and then it is deleted."""
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return None
            code, _, text = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        if not hmac.compare_digest(code, self._authenticate(path, text)):
            self.delete(path)
            return None
        record: dict[str, Any] = json.loads(text)
        return record

    def write_record(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a record: a line with the code that authenticates the rest, then JSON. Raises OSError."""
        text = json.dumps(content).encode()
        with self._temporary_file(path) as temporary:
            temporary.write_bytes(self._authenticate(path, text) + b"\n" + text)
            self.make_folder(path.parent)
            temporary.replace(path)

    def file_digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, remembered for as long as path, size, times and inode stay the same.

        Raises OSError.
        """
        status = path.stat()
        key = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        record_path = self._named_path("digests", path.absolute())
        record = self.read_record(record_path)
        if record is not None and record.get("key") == key:
            return str(record["sha256"])
        sha256 = sha256_file(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _MTIME_SETTLE_NS:
            with contextlib.suppress(OSError):  # the only loss is hashing the file again
                self.write_record(record_path, {"key": key, "sha256": sha256})
        return sha256

    # -- downloads ----------------------------------------------------------------------------

    def download_folder(self, sha256: str) -> Path:
        """Return the folder of the downloaded checkpoint with this digest."""
        return self._path("downloads", sha256)

    def incoming_folder(self, name: str) -> Path:
        """Return the folder of a download in progress, named by its URL or by the digest it must have."""
        return self.folder / "downloads" / _INCOMING / _digest_name(name)

    # -- upkeep -------------------------------------------------------------------------------

    def usage(self) -> dict[str, tuple[int, int]]:
        """Return the number of files and their total bytes, for each kind of entry."""
        usage = {}
        for kind in _KINDS:
            sizes = [size for entry in self._iterate_entries(kind) for size in _list_sizes(entry)]
            usage[kind] = (len(sizes), sum(sizes))
        return usage

    def clear(self) -> int:
        """Delete everything and return the bytes freed. A build that is running rebuilds whatever it misses."""
        freed = sum(size for _, size in self.usage().values())
        for kind in _KINDS:
            for path in self._iterate_entries(kind):
                self.delete(path)
        return freed

    def trim(self, *, max_bytes: int = _MAX_BYTES, max_age_seconds: float = _MAX_AGE_SECONDS) -> None:
        """Delete old entries, then the least recently used ones until the rest fits; at most once a day.

        `max_bytes` limits everything but downloads, which have a limit of their own.
        """
        stamp = self.folder / "trimmed"
        now = time.time()
        with contextlib.suppress(OSError):
            if now - stamp.lstat().st_mtime < _TRIM_INTERVAL_SECONDS:
                return
        with contextlib.suppress(OSError), open_private(stamp, "wb"):  # a full disk must be trimmed all the same
            os.utime(stamp)
        self.trim_now(now, max_bytes=max_bytes, max_age_seconds=max_age_seconds)
        self.trim_now(now, max_bytes=_MAX_DOWNLOAD_BYTES, max_age_seconds=max_age_seconds, kinds=("downloads",))

    def trim_now(
        self, now: float, *, max_bytes: int, max_age_seconds: float, kinds: Sequence[str] = _BUILD_KINDS
    ) -> None:
        """Delete entries as `trim` does, however recent the last trim. `now` is in seconds since the epoch."""
        entries = []
        for kind in kinds:
            for path in self._iterate_entries(kind):
                with contextlib.suppress(FileNotFoundError):  # a concurrent build may trim too
                    entries.append((path.lstat().st_mtime, str(path), sum(_list_sizes(path))))
        total = sum(size for _, _, size in entries)
        for modified, name, size in sorted(entries):
            if now - modified > max_age_seconds or total > max_bytes:
                self.delete(Path(name))
                total -= size

    def _iterate_entries(self, kind: str) -> Iterator[Path]:
        """Yield every entry of a kind, and whatever a killed build left half written; look through no link."""
        folder = self.folder / kind
        if not is_private_folder(folder):
            return
        for parent in folder.iterdir():
            if (parent.name == _INCOMING or _FOLDER_NAME.fullmatch(parent.name)) and is_private_folder(parent):
                for path in parent.iterdir():
                    is_entry = path.is_symlink() or path.is_dir() == (kind == "downloads")
                    if parent.name == _INCOMING or (_ENTRY_NAME.fullmatch(path.name) and is_entry):
                        yield path

    @contextlib.contextmanager
    def _temporary_file(self, target: Path) -> Iterator[Path]:
        """Yield an empty file on the target's file system, deleted at the end unless it was renamed."""
        folder = target.parent.parent / _INCOMING
        self.make_folder(folder)
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _authenticate(self, path: Path, text: bytes) -> bytes:
        """Return the code of a record, in hex: only who knows the key can compute it, and only for this path."""
        name = path.relative_to(self.folder).as_posix().encode()
        return hmac.new(self._key, name + b"\n" + text, "sha256").hexdigest().encode()

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / name[:2] / name

    def _named_path(self, kind: str, name: str | Path) -> Path:
        return self._path(kind, _digest_name(name))


def open_cache(environment: Mapping[str, str] = os.environ) -> Cache:
    """Open the user's cache; see `default_cache_folder`. Raises `CacheUnavailable`."""
    try:
        return Cache(default_cache_folder(environment))
    except RuntimeError as error:  # there is no home folder
        raise CacheUnavailable(str(error)) from None


def default_cache_folder(environment: Mapping[str, str]) -> Path:
    """Return PACKAGER_CACHE, or else `packager` in the platform's folder for caches.

    Raises RuntimeError if the user has no home folder.
    """
    if environment.get("PACKAGER_CACHE"):
        return Path(environment["PACKAGER_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/packager"
    if sys.platform == "win32" and environment.get("LOCALAPPDATA"):
        return Path(environment["LOCALAPPDATA"]) / "packager" / "cache"
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packager"


def describe_write_error(error: OSError) -> str:
    """Return the reason why something could not be written, in words."""
    return "no space is left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)


def touch_entry(path: Path) -> None:
    """Mark an entry as used now, which `trim` goes by."""
    with contextlib.suppress(OSError):  # the entry may be trimmed earlier, and that is all
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode) and time.time() - status.st_mtime > _ACCESS_RESOLUTION_SECONDS:
            os.utime(path)


def _list_sizes(entry: Path) -> list[int]:
    """Return the sizes of the files of an entry: its own, or those of all files below a folder."""
    sizes, paths = [], [entry]
    while paths:
        path = paths.pop()
        with contextlib.suppress(OSError):  # a concurrent build may delete it
            if path.is_dir() and not path.is_symlink():
                paths += path.iterdir()
            else:
                sizes.append(path.lstat().st_size)
    return sizes


def _load_key(path: Path) -> bytes:
    """Return the key in a file, or create one if no file is there that only this user can read. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if is_private_file(path) and path.stat().st_size == _KEY_BYTES:
            return path.read_bytes()
        delete_below(path.parent, path)
    handle, name = tempfile.mkstemp(dir=path.parent)
    new = Path(name)
    with os.fdopen(handle, "wb") as stream:
        stream.write(secrets.token_bytes(_KEY_BYTES))
    try:
        path.hardlink_to(new)
    except FileExistsError:
        pass  # another process was faster
    except OSError:  # the file system has no hard links
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return path.read_bytes()


def _digest_name(name: str | Path) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()
