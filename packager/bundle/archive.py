"""The archive of a bundle: its folder as one file, NAME-VERSION.zip.

The archive is a ZIP in the format of `packager.common.deterministic_zip`: stored entries, contents aligned
to 64 bytes, fixed headers, ZIP64 only where needed. It has one entry per file of the folder, including
SHA256SUMS, FINGERPRINT and model.sig, and nothing else: no folders, no links, and no bytes before, between
or after the entries. An entry's name is the path inside the bundle in UTF-8: parts separated by `/`, none
of them empty, `.` or `..`, at most 32 folders deep, without line breaks, NULs or backslashes. Entries are
sorted by the bytes of their names.

The same files therefore give the same archive, whatever their times and modes. An archive has no identity
of its own: the bundle in it has the fingerprint of the folder. In a shell:

    unzip -d NAME-VERSION NAME-VERSION.zip && cd NAME-VERSION && sha256sum -c SHA256SUMS

The reader accepts only what the writer writes. It reads the archive once, from the first byte to the last,
writes no more bytes than the archive has, and rejects the whole archive if a single byte is different.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from packager.bundle import layout
from packager.bundle.fingerprint import list_files
from packager.common import deterministic_zip
from packager.common.hashing import CHUNK_BYTES
from packager.errors import ArchiveRefused, IntegrityFailed, OutputRefused, PackagerError

_SUFFIX = ".zip"
_MAX_DEPTH = 32


def write_archive(folder: Path, target: Path) -> None:
    """Write the archive of the bundle in `folder` to `target`, atomically.

    Raises `OutputRefused` if the folder holds something that no archive can (a link, a name that is not a
    valid path, a file that changes while it is read), and OSError if `target` cannot be written.
    """
    from tempfile import TemporaryDirectory

    unsealed = {name for name in layout.UNSEALED_FILES if os.path.lexists(folder / name)}
    paths = sorted({*list_files(folder), *unsealed}, key=os.fsencode)
    if not paths:
        raise OutputRefused(str(target), f"there are no files in {folder}", "give the folder of a bundle")
    with TemporaryDirectory(prefix=".archive-", dir=target.parent) as scratch:
        archive = Path(scratch) / "archive"
        try:
            with archive.open("wb") as stream:
                deterministic_zip.write_zip(stream, (_archive_member(folder, path) for path in paths))
        except deterministic_zip.ZipMalformed as error:
            raise OutputRefused(str(target), str(error), "remove it, or rebuild the bundle") from None
        archive.replace(target)


def is_archive(path: Path) -> bool:
    """Return whether `path` is read as an archive: a file whose name ends in .zip."""
    return path.suffix == _SUFFIX and path.is_file()


@contextlib.contextmanager
def open_as_folder(path: Path) -> Iterator[Path]:
    """Yield the folder of a bundle: `path` itself, or the unpacked archive, deleted when the block ends.

    A `PackagerError` raised in the block is changed to name the archive instead of the unpacked copy. Raises
    `ArchiveRefused` if the archive is malformed or cannot be unpacked, `IntegrityFailed` if a CRC is wrong.
    """
    if not is_archive(path):
        yield path
        return
    from tempfile import TemporaryDirectory  # a slow import that folders do not need

    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="packager-")))
            _unpack(path, folder)
        except deterministic_zip.ZipEntryDamaged as error:
            raise IntegrityFailed(str(path), str(error)) from None
        except deterministic_zip.ZipMalformed as error:
            hint = "download it again, or unpack it and pass the folder"
            raise ArchiveRefused(str(path), str(error), hint) from None
        except OSError as error:
            hint = "it must be readable, and the temporary folder (TMPDIR) must have room for it"
            raise ArchiveRefused(str(path), str(error.strerror), hint) from None
        try:
            yield folder
        except PackagerError as error:
            error.replace_path(str(folder), str(path))
            raise


def _archive_member(folder: Path, path: str) -> tuple[str, int, Iterator[bytes]]:
    _check_member_path(path)
    status = (folder / path).lstat()
    if not stat.S_ISREG(status.st_mode):
        raise deterministic_zip.ZipMalformed(f"{path!r} is not a regular file")
    return path, status.st_size, _read_chunks(folder / path)


def _read_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _unpack(path: Path, folder: Path) -> None:
    with path.open("rb") as stream:
        for name, chunks in deterministic_zip.read_zip(stream):
            _check_member_path(name)
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                created = target.open("xb")
            except (FileExistsError, NotADirectoryError):
                raise deterministic_zip.ZipMalformed(f"{name[:200]!r} takes the place of another entry") from None
            with created:
                created.writelines(chunks)


def _check_member_path(path: str) -> None:
    """Raise `ZipMalformed` for a path that leaves the bundle, or that no bundle may contain."""
    parts, shown = path.split("/"), repr(path[:200])
    if any(part in ("", ".", "..") for part in parts):
        raise deterministic_zip.ZipMalformed(f"{shown} is not a path inside a bundle")
    if any(character in path for character in "\n\r\0\\"):
        raise deterministic_zip.ZipMalformed(
            f"a path in a bundle may not contain line breaks, NULs or backslashes: {shown}"
        )
    if len(parts) > _MAX_DEPTH + 1:
        raise deterministic_zip.ZipMalformed(f"{shown} is more than {_MAX_DEPTH} folders deep")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise deterministic_zip.ZipMalformed(f"{shown} is not UTF-8") from None
