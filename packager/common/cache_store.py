"""What was built from what: a store of stages' outputs, named by everything that went into them.

An action is a stage with all its inputs, as text: digests of files, fields of the manifest, versions
of tools. Its id is the SHA-256 of that, and says nothing about what came out; what came out is named
by its own SHA-256. The two are not the same thing, and are kept apart, as in Go's build cache
(cmd/go/internal/cache): a change of the inputs that leads to the same output stops there.

    actions/AB/ID        the inputs, a record of small results, and the digests of the files that came out
    objects/AB/SHA256    those files
    projects/AB/ID       the inputs of a manifest's last build: to say what changed since, and what its code read
    digests/AB/ID        the digest of a file by path, size, mtime, ctime and inode
    downloads/AB/SHA256/ a checkpoint that a URL named, one file or several: see `packager.checkpoint.remote.fetch`

Every file is written beside its place and renamed, so that builds at once do not see each other's
halves. Nothing is trusted: a record carries its own digest, an object is hashed when it is taken, and
what does not fit is dropped and built again.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.common.hashing import sha256_file

_MAX_BYTES = 10 << 30
_MAX_DOWNLOAD_BYTES = 50 << 30  # these cost more to have again
_MAX_AGE_SECONDS = 30 * 24 * 3600
_TRIM_INTERVAL_SECONDS = 24 * 3600  # trimmed once a day at most
_ACCESS_RESOLUTION_SECONDS = 3600  # the time of the last use is kept to the hour
_MTIME_SETTLE_NS = 2_000_000_000  # a file younger than this may change again without its times showing it
_BUILD_KINDS = ("actions", "objects", "projects", "digests")
_KINDS = (*_BUILD_KINDS, "downloads")
_FORMAT_FOLDER = "builds-1"  # named for the format; nothing beside it is touched, whatever PACKAGER_CACHE names
_INCOMING = "new"
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CacheKey:
    """One stage with everything that goes into it, by name."""

    stage: str
    inputs: Mapping[str, str]

    @property
    def id(self) -> str:
        """SHA-256 of the stage and its inputs."""
        return _digest_bytes(self.canonical_text().encode())

    def canonical_text(self) -> str:
        """What is hashed: one line each, sorted."""
        lines = [f"{name}: {json.dumps(self.inputs[name])}\n" for name in sorted(self.inputs)]
        return f"stage: {self.stage}\n" + "".join(lines)


@dataclass(frozen=True)
class CacheEntry:
    """What came out of an action: small results as JSON has them, and files by name with their digests."""

    record: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the output: what a later stage that reads it takes for an input."""
        return _digest_bytes(json.dumps([self.record, self.files]).encode())


class CacheUnavailable(Exception):
    """The cache cannot be used, and why."""


class Cache:
    """A cache folder. Raises `Unusable` where it cannot be made, cannot be written, or is somebody else's."""

    def __init__(self, folder: Path) -> None:
        folder = folder.absolute() / _FORMAT_FOLDER
        self.folder = folder
        self._verified: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            owner = folder.stat().st_uid
        except OSError as error:
            raise CacheUnavailable(f"{error.strerror}: {folder.parent}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CacheUnavailable(f"{folder} cannot be written")
        if hasattr(os, "geteuid") and owner != os.geteuid():
            raise CacheUnavailable(f"{folder} belongs to another user")

    # -- actions ------------------------------------------------------------------------------

    def look_up(self, action: CacheKey, *, files: bool = True) -> CacheEntry | None:
        """What came out of an action before; None where that is not known, or damaged, and then it goes.

        `files` has the files checked, without which nothing may be taken from them.
        """
        print_key_debug(action)
        path = self._path("actions", action.id)
        found = _read_record(path)
        if found is None:
            return None
        try:
            entry = CacheEntry(found["record"], found["files"])
            whole = found["inputs"] == dict(action.inputs)
            whole = whole and (not files or all(self._has_object(one) for one in entry.files.values()))
        except (KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            delete_quietly(path)
            return None
        for one in (path, *(self.object_path(sha256) for sha256 in entry.files.values())):
            touch_entry(one)
        return entry

    def put(self, action: CacheKey, entry: CacheEntry, files: Mapping[str, Path]) -> None:
        """Keep what came out of an action. Raises OSError where there is no room."""
        print_key_debug(action)
        for name, sha256 in entry.files.items():
            self._add_object(files[name], sha256)
        content = {"stage": action.stage, "inputs": dict(action.inputs), "record": entry.record, "files": entry.files}
        _write_record(self._path("actions", action.id), content)

    def object_path(self, sha256: str) -> Path:
        """Where a file lies."""
        return self._path("objects", sha256)

    def _add_object(self, source: Path, sha256: str) -> None:
        if self._has_object(sha256):
            return
        with self._temporary_file() as copy:
            shutil.copyfile(source, copy)
            if sha256_file(copy) != sha256:
                raise OSError(errno.EIO, "a file changed while it was kept", str(source))
            target = self._path("objects", sha256)
            target.parent.mkdir(exist_ok=True)
            os.replace(copy, target)
        self._verified.add(sha256)

    def _has_object(self, sha256: str) -> bool:
        path = self._path("objects", sha256)
        if sha256 in self._verified:
            return path.exists()
        try:
            if sha256_file(path) == sha256:
                self._verified.add(sha256)
                return True
        except OSError:
            return False  # it is not there, or cannot be read
        delete_quietly(path)
        return False

    # -- projects -----------------------------------------------------------------------------

    def load_record(self, name: str) -> dict[str, Any] | None:
        """What was remembered under a name."""
        return _read_record(self._path("projects", _digest_bytes(os.fsencode(name))))

    def save_record(self, name: str, content: Mapping[str, Any]) -> None:
        """Remember something under a name. Raises OSError where there is no room."""
        _write_record(self._path("projects", _digest_bytes(os.fsencode(name))), content)

    # -- digests ------------------------------------------------------------------------------

    def file_digest(self, path: Path) -> str:
        """The digest of a file: remembered where path, size, times and inode are those it was computed for."""
        place = self._path("digests", _digest_bytes(os.fsencode(path.absolute())))
        status = path.stat()
        key = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        known = _read_record(place)
        if known is not None and known.get("key") == key:
            return str(known["sha256"])
        found = sha256_file(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _MTIME_SETTLE_NS:
            with contextlib.suppress(OSError):  # it is computed again, and that is all
                _write_record(place, {"key": key, "sha256": found})
        return found

    # -- downloads ----------------------------------------------------------------------------

    def download_folder(self, sha256: str) -> Path:
        """The folder of a downloaded checkpoint."""
        return self._path("downloads", sha256)

    def incoming_folder(self, name: str) -> Path:
        """The folder of one that is on its way, under whatever it is known by until its digest is."""
        return self.folder / "downloads" / _INCOMING / _digest_bytes(os.fsencode(name))

    # -- upkeep -------------------------------------------------------------------------------

    def usage(self) -> dict[str, tuple[int, int]]:
        """How many files there are of each kind, and their bytes."""
        found = {}
        for kind in _KINDS:
            sizes = [one.stat().st_size for entry in self._iterate_entries(kind) for one in _list_files(entry)]
            found[kind] = (len(sizes), sum(sizes))
        return found

    def clear(self) -> int:
        """Delete everything; returns how many bytes that were. A build that runs meanwhile builds what it misses."""
        freed = sum(size for _, size in self.usage().values())
        for kind in _KINDS:
            for path in self._iterate_entries(kind):
                delete_quietly(path)
        return freed

    def trim(self, *, max_bytes: int = _MAX_BYTES, max_age_seconds: float = _MAX_AGE_SECONDS) -> None:
        """Once a day, delete what was not used for long, and then the least used until the rest is small enough."""
        stamp = self.folder / "trimmed"
        now = time.time()
        with contextlib.suppress(OSError):
            if now - stamp.stat().st_mtime < _TRIM_INTERVAL_SECONDS:
                return
        with contextlib.suppress(OSError):  # a disk that is full is trimmed all the same
            stamp.touch()
        self.trim_now(now, largest=max_bytes, oldest=max_age_seconds)
        self.trim_now(now, largest=_MAX_DOWNLOAD_BYTES, oldest=max_age_seconds, kinds=("downloads",))

    def trim_now(self, now: float, *, largest: int, oldest: float, kinds: Sequence[str] = _BUILD_KINDS) -> None:
        """Delete as `trim` does, whenever that was last done."""
        kept = []
        for kind in kinds:
            for path in self._iterate_entries(kind):
                with contextlib.suppress(FileNotFoundError):  # another build trims too
                    kept.append((path.stat().st_mtime, sum(one.stat().st_size for one in _list_files(path)), path))
        total = sum(size for _, size, _ in kept)
        for modified, size, path in sorted(kept, key=lambda one: (one[0], str(one[2]))):
            if now - modified > oldest or total > largest:
                delete_quietly(path)
                total -= size

    def _iterate_entries(self, kind: str) -> Iterator[Path]:
        """Every entry of a kind, and what a build that was killed left half written."""
        yield from (self.folder / kind / _INCOMING).glob("*")
        for place in (self.folder / kind).glob("[0-9a-f][0-9a-f]"):
            named = (path for path in place.iterdir() if _ENTRY_NAME.fullmatch(path.name))
            yield from (path for path in named if path.is_dir() == (kind == "downloads"))

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / name[:2] / name

    @contextlib.contextmanager
    def _temporary_file(self) -> Iterator[Path]:
        place = self.folder / "objects" / _INCOMING
        place.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def open_cache(environment: Mapping[str, str] = os.environ) -> Cache:
    """The user's cache: PACKAGER_CACHE, or packager/ in the system's folder for caches. Raises `Unusable`."""
    try:
        return Cache(default_cache_folder(environment))
    except RuntimeError as error:  # there is no home folder
        raise CacheUnavailable(str(error)) from None


def default_cache_folder(where: Mapping[str, str]) -> Path:
    """PACKAGER_CACHE, or else `packager` where the system keeps caches."""
    if where.get("PACKAGER_CACHE"):
        return Path(where["PACKAGER_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/packager"
    if sys.platform == "win32" and where.get("LOCALAPPDATA"):
        return Path(where["LOCALAPPDATA"]) / "packager" / "cache"
    return Path(where.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packager"


def print_key_debug(action: CacheKey) -> None:
    """With PACKAGER_DEBUG_HASH=1, print what is hashed and what that gives."""
    if os.environ.get("PACKAGER_DEBUG_HASH") == "1":
        print(
            f"HASH {action.id}\n" + "".join(f"  {line}\n" for line in action.canonical_text().splitlines()),
            end="",
            file=sys.stderr,
        )


def describe_write_error(error: OSError) -> str:
    """Why something could not be cached, in words."""
    return "no space is left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)


def _read_record(path: Path) -> dict[str, Any] | None:
    """A record whose first line is the digest of the rest; None where it is absent or damaged, which ends it."""
    try:
        head, _, rest = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if head != _digest_bytes(rest).encode():
        delete_quietly(path)
        return None
    found: dict[str, Any] = json.loads(rest)
    return found


def _write_record(path: Path, content: Mapping[str, Any]) -> None:
    rest = json.dumps(content).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent.parent / _INCOMING
    new.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=new)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(_digest_bytes(rest).encode() + b"\n" + rest)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def delete_quietly(path: Path) -> None:
    """Delete what is of no use. Where it cannot be, it stays of no use."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _list_files(entry: Path) -> list[Path]:
    """The files that an entry is made of."""
    return [one for one in entry.rglob("*") if one.is_file()] if entry.is_dir() else [entry]


def touch_entry(path: Path) -> None:
    """Let `trim` see that it is in use."""
    with contextlib.suppress(OSError):  # of no consequence but an earlier end
        if time.time() - path.stat().st_mtime > _ACCESS_RESOLUTION_SECONDS:
            os.utime(path)


def _digest_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
