"""The files of a bundle, opened once: whatever it is in is read through descriptors, and never by name again.

What is verified is what is used. `read` returns bytes, `map` a mapping for weights too large to copy, and `sha256` the
digest of those very bytes; whatever happens to the names in the meantime changes nothing. A folder is one descriptor,
below which files are opened without following links, and only regular files. An archive is one descriptor, in which
every entry is a range of bytes: nothing is unpacked. An executable (`packager.bundle.executable_layout`) ends in an
archive.

A mapping shows what others write into the file in place; `read` copies, and does not.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.executable_layout import TrailerMalformed, read_trailer
from packager.bundle.listing import FOLDER_FLAGS, Listing, list_archive, list_executable, list_folder, unreadable
from packager.common.hashing import digest_pieces, digest_range, read_range
from packager.errors import IntegrityFailed, NotABundle

ARCHIVE_SUFFIX = ".zip"

_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not block
_REPLACED = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}  # by a link, by a file, by a socket


@dataclass(frozen=True)
class Location:
    """Where the bytes of a file are: `size` bytes from `offset` of an open descriptor, which a child may inherit."""

    descriptor: int
    offset: int
    size: int


class BundleFiles:
    """The files of one opened bundle. Use it as a context manager, or call `close`.

    `paths` are all files, sorted by their bytes, with the unsealed ones. `sizes` are those of regular files, in bytes;
    nothing else can be read. `empty_folders` are folders without a file, ending in `/`. `trailer` is an executable's.

    Read, map or locate whatever will be used before its digest is taken: its descriptor then stays open. A file of a
    folder that nobody holds is closed after `sha256`; using it later is an error of the caller (ValueError), because
    it would have to be opened a second time.
    """

    def __init__(self, path: Path, descriptor: int, listing: Listing) -> None:
        self.path = path
        self.paths = listing.files
        self.sizes = listing.sizes
        self.empty_folders = listing.empty_folders
        self.trailer = listing.trailer
        self.descriptor = descriptor
        self._entries = listing.entries
        self._start = listing.trailer.archive_offset if listing.trailer else 0
        self._names = frozenset(listing.files)
        self._locations: dict[str, Location] = {}
        self._contents: dict[str, bytes | memoryview] = {}
        self._digests: dict[str, str] = {}
        self._expected: Mapping[str, str] = {}

    def __enter__(self) -> BundleFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors. Bytes and mappings that were returned stay valid."""
        self._contents.clear()
        descriptors = {location.descriptor for location in self._locations.values()} | {self.descriptor}
        self._locations.clear()
        for descriptor in descriptors:
            os.close(descriptor)

    def __contains__(self, path: str) -> bool:
        return path in self._names

    def expect(self, digests: Mapping[str, str]) -> None:
        """Let `read` and `check` refuse a file whose SHA-256 is not the one in `digests`, in hex by path."""
        self._expected = digests

    def check(self, path: str, pieces: Sequence[str] = ()) -> None:
        """Compare the digest of a file with the expected one, if there is one. Raises `IntegrityFailed`.

        If there are digests of `pieces`, from a file that was checked, those are compared instead, on all cores.
        """
        if path not in self._expected:
            return
        if not (self.has_pieces(path, pieces) if pieces else self.sha256(path) == self._expected[path]):
            raise self._damaged(f"changed: {path}")

    def has_pieces(self, path: str, digests: Sequence[str]) -> bool:
        """Return whether the pieces of a file have these digests, as `digest_pieces` returns them. Raises `NotABundle`.

        The CRC of an archive's entry is not compared: the digests say more.
        """
        location = self.locate(path)
        try:
            return digest_pieces(location.descriptor, location.offset, location.size) == list(digests)
        except OSError as error:
            raise unreadable(self.path, path, error) from None

    def locate(self, path: str) -> Location:
        """Open a file, if it is not open yet, and return where its bytes are. It stays open until `close`.

        Raises `IntegrityFailed` if it is missing or no regular file, and `NotABundle` if it cannot be opened.
        """
        if path not in self._locations:
            self._locations[path] = self._open(path)
        return self._locations[path]

    def read(self, path: str, limit: int | None = None) -> bytes:
        """Return the bytes of a file, read once and kept until `release` or `close`.

        Raises `IntegrityFailed` if there are more than `limit`, if the digest is not the expected one, or if an entry
        of an archive does not match its CRC, and what `locate` raises.
        """
        content = self._contents.get(path)
        if content is None:
            location = self.locate(path)
            if limit is not None and location.size > limit:
                raise self._damaged(f"{path} has {location.size} bytes; at most {limit} are read")
            try:
                content = read_range(location.descriptor, location.offset, location.size)
            except OSError as error:
                raise unreadable(self.path, path, error) from None
            self._check_crc(path, content)
            self._hold(path, content)
            self.check(path)
        return content if isinstance(content, bytes) else bytes(content)

    def map(self, path: str) -> memoryview:
        """Return a read-only mapping of a file, which lives as long as a view of it. Raises as `locate`."""
        content = self._contents.get(path)
        if content is None:
            location = self.locate(path)
            start = location.offset % mmap.ALLOCATIONGRANULARITY
            length, offset = start + location.size, location.offset - start
            try:  # a mapping cannot be empty
                mapping = (
                    mmap.mmap(location.descriptor, length, access=mmap.ACCESS_READ, offset=offset) if length else b""
                )
            except (OSError, ValueError) as error:  # it has become shorter, or there is no address space left
                raise self._damaged(f"{path} cannot be mapped: {error}") from None
            content = memoryview(mapping)[start:]
            self._hold(path, content)
        return memoryview(content)

    def sha256(self, path: str) -> str:
        """Return the SHA-256 in hex of the bytes that `read` or `map` returned, or else of the open file.

        It is computed once, and "" for anything but a regular file, which equals no digest. Raises `NotABundle` if the
        file cannot be read, and `IntegrityFailed` if an entry of an archive does not match its CRC.
        """
        if path not in self._digests:
            self._digests[path] = self._hash(path) if path in self.sizes else ""
        return self._digests[path]

    def release(self, path: str) -> None:
        """Forget the bytes of a file, so that they are freed once nobody else uses them."""
        self._contents.pop(path, None)

    def close_file(self, path: str) -> None:
        """Close a file that `locate` opened and nobody uses any more, so that few are open at a time."""
        location = self._locations.pop(path, None)
        if location is not None and location.descriptor != self.descriptor:
            os.close(location.descriptor)

    def _hash(self, path: str) -> str:
        content = self._contents.get(path)
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        # A mapping shows the file's own bytes: they are hashed from the descriptor, without making its pages resident.
        try:
            location = self._locations.get(path) or self._open(path)
        except IntegrityFailed:
            return ""  # something else has taken its place since it was listed
        is_archive = self._entries is not None
        try:
            digest, crc = digest_range(location.descriptor, location.offset, location.size, with_crc=is_archive)
        except OSError as error:
            raise unreadable(self.path, path, error) from None
        finally:
            if path not in self._locations and not is_archive:
                os.close(location.descriptor)
        if self._entries is not None and self._entries[path].crc != crc:
            raise self._damaged(f"the content of {path!r} does not match its CRC")
        return digest

    def _hold(self, path: str, content: bytes | memoryview) -> None:
        """Keep the content of a file; if its digest was taken from the file before, it must be that of the content."""
        if path in self._digests and hashlib.sha256(content).hexdigest() != self._digests[path]:
            raise self._damaged(f"{path} was changed while it was read")
        self._contents[path] = content

    def _check_crc(self, path: str, content: bytes | memoryview) -> None:
        if self._entries is not None and self._entries[path].crc != zlib.crc32(content):
            raise self._damaged(f"the content of {path!r} does not match its CRC")

    def _open(self, path: str) -> Location:
        if path not in self._names:
            raise self._damaged(f"{path} is missing")
        if self._entries is not None:
            entry = self._entries[path]
            return Location(self.descriptor, self._start + entry.content_offset, entry.size)
        if path in self._digests:
            raise ValueError(f"{path} was closed after its digest: locate it first")
        try:
            descriptor = _open_below(self.descriptor, path)
        except OSError as error:
            if error.errno in _REPLACED:
                raise self._damaged(f"{path} is not a regular file") from None
            raise unreadable(self.path, path, error) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise self._damaged(f"{path} is not a regular file")
        return Location(descriptor, 0, status.st_size)

    def _damaged(self, why: str) -> IntegrityFailed:
        return IntegrityFailed(str(self.path), why)


def open_bundle(path: str | Path) -> BundleFiles:
    """Open a bundle: a folder, an archive whose name ends in .zip, or an executable. Links in `path` are followed.

    Of an executable, nothing is looked at but its trailer and its archive. Raises `NotABundle`, `ArchiveRefused` or
    `StandaloneRefused` if the archive or the trailer is malformed, and `IntegrityFailed` if it was a bundle once, or
    contains more or deeper files than a bundle may.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotABundle(str(path), "there is no such folder or .zip") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise NotABundle(str(path), f"it cannot be read: {error}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            listing = list_folder(path, descriptor)
        elif stat.S_ISREG(mode) and path.suffix == ARCHIVE_SUFFIX:
            listing = list_archive(path, descriptor)
        elif stat.S_ISREG(mode) and (executable := list_executable(path, descriptor)) is not None:
            listing = executable
        else:
            raise NotABundle(str(path), "it is a file; a bundle is a folder or a .zip")
    except BaseException:
        os.close(descriptor)
        raise
    return BundleFiles(path, descriptor, listing)


def adopt_files(locations: Mapping[str, Location], digests: Mapping[str, str]) -> BundleFiles:
    """Return the files of a bundle that another process has opened, from the descriptors that this one inherited.

    There are no other files: nothing is opened by its name. `read` refuses bytes that do not have their digest in
    `digests`, SHA-256 in hex by path.
    """
    listing = Listing(tuple(locations), {path: location.size for path, location in locations.items()})
    files = BundleFiles(Path(), os.open(os.curdir, FOLDER_FLAGS), listing)
    files._locations.update(locations)
    files._digests.update(digests)
    return files


def is_archive(path: Path) -> bool:
    """Return whether `path` is read as an archive: a file whose name ends in .zip."""
    return path.suffix == ARCHIVE_SUFFIX and path.is_file()


def is_executable(path: Path) -> bool:
    """Return whether `path` is an executable made of a bundle, by its trailer. A malformed trailer counts too."""
    try:
        with path.open("rb") as stream:
            return read_trailer(stream.fileno()) is not None
    except TrailerMalformed:
        return True
    except OSError:
        return False


def _open_below(descriptor: int, path: str) -> int:
    """Open a file below an open folder, following no link on the way. Raises OSError."""
    *folders, name = path.split("/")
    opened: list[int] = []
    try:
        for folder in folders:
            opened.append(os.open(folder, FOLDER_FLAGS, dir_fd=opened[-1] if opened else descriptor))
        return os.open(name, _FILE_FLAGS, dir_fd=opened[-1] if opened else descriptor)
    finally:
        for folder_descriptor in opened:
            os.close(folder_descriptor)
