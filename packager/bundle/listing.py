"""List what a bundle contains, once: a folder, without following links, or the archive in a file.

Nothing is read but names, sizes and an archive's directory, and everything is listed by descriptors.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import layout
from packager.bundle.executable_layout import Trailer, TrailerMalformed, read_trailer
from packager.bundle.names import MAX_DEPTH, MAX_FILES, describe_path_problem, describe_set_problem
from packager.common import deterministic_zip
from packager.common.file_slice import FileSlice
from packager.errors import ArchiveRefused, IntegrityFailed, NotABundle, StandaloneRefused

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Listing:
    """What a bundle contains.

    - `files`: the paths of everything but folders, sorted by their bytes.
    - `sizes`: the sizes in bytes of regular files; the others are links, pipes or devices.
    - `empty_folders`: folders without a file, each with a `/` at the end.
    - `entries`: the entries of an archive by path, and `trailer`: that of the executable in which it is.
    """

    files: tuple[str, ...]
    sizes: Mapping[str, int]
    empty_folders: tuple[str, ...] = ()
    entries: dict[str, deterministic_zip.ZipEntry] | None = None
    trailer: Trailer | None = None


def list_executable(path: Path, descriptor: int) -> Listing | None:
    """List the archive at the end of an executable; return None if the file is not one. Raises as `list_archive`."""
    try:
        trailer = read_trailer(descriptor)
    except TrailerMalformed as error:
        raise StandaloneRefused(str(path), str(error)) from None
    except OSError as error:
        raise unreadable(path, "it", error) from None
    return None if trailer is None else list_archive(path, descriptor, trailer)


def list_archive(path: Path, descriptor: int, trailer: Trailer | None = None) -> Listing:
    """List an archive, or the one in the executable that `trailer` is of.

    Raises `ArchiveRefused` if it is malformed, and what `list_folder` raises.
    """
    try:
        with io.BufferedReader(FileSlice(descriptor, trailer.archive_offset if trailer else 0)) as stream:
            entries = {entry.name.decode(): entry for entry in deterministic_zip.index_zip(stream, MAX_FILES)}
        for name in entries:
            if problem := describe_path_problem(name):
                raise deterministic_zip.ZipMalformed(problem)
        if problem := describe_set_problem(entries):
            raise deterministic_zip.ZipMalformed(problem)
    except deterministic_zip.ZipMalformed as error:
        raise ArchiveRefused(str(path), str(error), "fetch it again, or pass the folder of the bundle") from None
    except OSError as error:
        raise ArchiveRefused(str(path), str(error.strerror), "it must be readable") from None
    _check_is_bundle(path, entries.__contains__)
    sizes = {name: entry.size for name, entry in entries.items()}
    return Listing(tuple(entries), sizes, entries=entries, trailer=trailer)


def list_folder(path: Path, descriptor: int) -> Listing:
    """List everything below an open folder.

    Raises `NotABundle` if it is no bundle or cannot be read, and `IntegrityFailed` if it was a bundle once, or contains
    more or deeper files than a bundle may.
    """

    def exists(name: str) -> bool:
        with contextlib.suppress(OSError):
            return bool(os.stat(name, dir_fd=descriptor, follow_symlinks=False))
        return False

    _check_is_bundle(path, exists)  # before all files of, say, a home folder are listed
    files: list[str] = []
    sizes: dict[str, int] = {}
    empty: list[str] = []
    try:
        for count, (name, kind) in enumerate(_walk(descriptor, "", 0), start=1):
            if count > MAX_FILES:
                raise IntegrityFailed(str(path), f"it contains more than {MAX_FILES} files and folders")
            if kind == "deep":
                raise IntegrityFailed(str(path), f"{name[:200]!r} is more than {MAX_DEPTH} folders deep")
            if kind == "empty":
                empty.append(f"{name}/")
            elif kind != "folder":
                files.append(name)
                if isinstance(kind, int):
                    sizes[name] = kind
    except OSError as error:
        raise unreadable(path, error.filename or "a folder", error) from None
    return Listing(tuple(sorted(files, key=os.fsencode)), sizes, tuple(sorted(empty, key=os.fsencode)))


def _walk(descriptor: int, prefix: str, depth: int) -> Iterator[tuple[str, int | str | None]]:
    """Yield the path and kind of everything below an open folder.

    The kind is the size of a regular file, None for a link or a pipe, "folder", "empty" for a folder without anything,
    or "deep" for one below the deepest that is allowed.
    """
    with os.scandir(descriptor) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if not entry.is_dir(follow_symlinks=False):
                yield name, entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else None
                continue
            if depth == MAX_DEPTH:
                yield name, "deep"
                continue
            folder = os.open(entry.name, FOLDER_FLAGS, dir_fd=descriptor)
            try:
                is_empty = True
                for item in _walk(folder, f"{name}/", depth + 1):
                    is_empty = False
                    yield item
                yield name, "empty" if is_empty else "folder"
            finally:
                os.close(folder)


def _check_is_bundle(path: Path, exists: Callable[[str], bool]) -> None:
    for name in (layout.SUMS, layout.CONFIG):
        if not exists(name):
            kind = IntegrityFailed if exists(layout.FINGERPRINT) else NotABundle
            raise kind(str(path), f"it has no {name}")


def unreadable(path: Path, name: str, error: OSError) -> NotABundle:
    """Return the error for a file or folder called `name` that the system does not let us read."""
    return NotABundle(str(path), f"{name} cannot be read: {error.strerror}")
