"""The cache folder: records, files and downloads that outlive a build.

    actions/AB/ID        the outcome of a build stage, named by its inputs: see `packager.builder.incremental.store`
    objects/AB/SHA256    the files of those outcomes, each named by its own digest
    projects/AB/ID       small records by name: the inputs of a manifest's last build, the answers of a server
    digests/AB/ID        the digest of a file by path, size, mtime, ctime and inode
    downloads/AB/SHA256/ a downloaded checkpoint, one file or several: see `packager.checkpoint.remote.fetch`

AB are the first two characters of the name that follows.

Every file is written under a temporary name and renamed, so that concurrent builds never see half a file. Nothing is
trusted: a record carries its own digest, an object is hashed before it is used, and whatever fails the check is
deleted and built again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packager.common.hashing import sha256_file

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


class CacheUnavailable(Exception):
    """The cache cannot be used; the message says why."""


class Cache:
    """A cache folder below `folder`.

    Raises `CacheUnavailable` if the folder cannot be created or written, or belongs to a different user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute() / _FORMAT_FOLDER
        self._verified: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            owner = self.folder.stat().st_uid
        except OSError as error:
            raise CacheUnavailable(f"{error.strerror}: {self.folder.parent}") from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise CacheUnavailable(f"{self.folder} is not writable")
        if hasattr(os, "geteuid") and owner != os.geteuid():
            raise CacheUnavailable(f"{self.folder} belongs to a different user")

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
        with _temporary_file(target) as copy:
            shutil.copyfile(source, copy)
            if (sha256_file(copy) if digest is None else digest(source)) != sha256:
                raise OSError(errno.EIO, "a file changed while it was being cached", str(source))
            target.parent.mkdir(exist_ok=True)
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
            if sha256_file(path) == sha256:
                self._verified.add(sha256)
                return True
        except OSError:
            return False  # absent or unreadable
        delete_quietly(path)
        return False

    # -- records and digests ------------------------------------------------------------------

    def load_record(self, name: str) -> dict[str, Any] | None:
        """Return the record saved under a name; None if it is absent or damaged."""
        return read_record(self._named_path("projects", name))

    def save_record(self, name: str, content: Mapping[str, Any]) -> None:
        """Save a record, as JSON, under a name. Raises OSError if it cannot be written."""
        write_record(self._named_path("projects", name), content)

    def file_digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, remembered for as long as path, size, times and inode stay the same.

        Raises OSError.
        """
        status = path.stat()
        key = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        record_path = self._named_path("digests", path.absolute())
        record = read_record(record_path)
        if record is not None and record.get("key") == key:
            return str(record["sha256"])
        sha256 = sha256_file(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _MTIME_SETTLE_NS:
            with contextlib.suppress(OSError):  # the only loss is hashing the file again
                write_record(record_path, {"key": key, "sha256": sha256})
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
            sizes = [file.stat().st_size for entry in self._iterate_entries(kind) for file in _list_files(entry)]
            usage[kind] = (len(sizes), sum(sizes))
        return usage

    def clear(self) -> int:
        """Delete everything and return the bytes freed. A build that is running rebuilds whatever it misses."""
        freed = sum(size for _, size in self.usage().values())
        for kind in _KINDS:
            for path in self._iterate_entries(kind):
                delete_quietly(path)
        return freed

    def trim(self, *, max_bytes: int = _MAX_BYTES, max_age_seconds: float = _MAX_AGE_SECONDS) -> None:
        """Delete old entries, then the least recently used ones until the rest fits; at most once a day.

        `max_bytes` limits everything but downloads, which have a limit of their own.
        """
        stamp = self.folder / "trimmed"
        now = time.time()
        with contextlib.suppress(OSError):
            if now - stamp.stat().st_mtime < _TRIM_INTERVAL_SECONDS:
                return
        with contextlib.suppress(OSError):  # a full disk must be trimmed all the same
            stamp.touch()
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
                    entries.append((path.stat().st_mtime, str(path), sum(f.stat().st_size for f in _list_files(path))))
        total = sum(size for _, _, size in entries)
        for modified, name, size in sorted(entries):
            if now - modified > max_age_seconds or total > max_bytes:
                delete_quietly(Path(name))
                total -= size

    def _iterate_entries(self, kind: str) -> Iterator[Path]:
        """Yield every entry of a kind, and whatever a killed build left half written."""
        yield from (self.folder / kind / _INCOMING).glob("*")
        for folder in (self.folder / kind).glob("[0-9a-f][0-9a-f]"):
            for path in folder.iterdir():
                if _ENTRY_NAME.fullmatch(path.name) and path.is_dir() == (kind == "downloads"):
                    yield path

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


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a record; None if it is absent or damaged, and a damaged one is deleted."""
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest != hashlib.sha256(text).hexdigest().encode():
        delete_quietly(path)
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record: a line with the SHA-256 of the rest, then JSON. Raises OSError."""
    text = json.dumps(content).encode()
    with _temporary_file(path) as temporary:
        temporary.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        path.parent.mkdir(exist_ok=True)
        temporary.replace(path)


@contextlib.contextmanager
def _temporary_file(target: Path) -> Iterator[Path]:
    """Yield an empty file on the target's file system, deleted at the end unless it was renamed."""
    folder = target.parent.parent / _INCOMING
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def delete_quietly(path: Path) -> None:
    """Delete a file or a folder; whatever cannot be deleted stays, without an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def touch_entry(path: Path) -> None:
    """Mark an entry as used now, which `trim` goes by."""
    with contextlib.suppress(OSError):  # the entry may be trimmed earlier, and that is all
        if time.time() - path.stat().st_mtime > _ACCESS_RESOLUTION_SECONDS:
            os.utime(path)


def _list_files(entry: Path) -> list[Path]:
    """Return the files of an entry: itself, or all files below a folder."""
    return [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else [entry]


def _digest_name(name: str | Path) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()
