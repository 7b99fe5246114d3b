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

`packager.bundle.files` reads an archive in place, and accepts only what is written here: it refuses the whole archive
if a single byte is different.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from packager.bundle import layout
from packager.bundle.files import BundleFiles, is_archive, is_executable, open_bundle
from packager.bundle.fingerprint import list_files
from packager.bundle.names import describe_path_problem
from packager.common import deterministic_zip
from packager.common.hashing import CHUNK_BYTES, read_range
from packager.errors import ArchiveRefused, IntegrityFailed, OutputRefused, PackagerError


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


@contextlib.contextmanager
def open_as_folder(path: Path) -> Iterator[Path]:
    """Yield the folder of a bundle: `path` itself, or the unpacked archive, deleted when the block ends.

    This is for comparing the files of two bundles; digests are not checked. A `PackagerError` raised in the block is
    changed to name the archive instead of the unpacked copy. Raises `NotABundle`, `ArchiveRefused` if the archive is
    malformed or cannot be unpacked, and `IntegrityFailed` if a CRC is wrong.
    """
    if not is_archive(path) and not (path.is_file() and is_executable(path)):
        yield path
        return
    from tempfile import TemporaryDirectory  # a slow import that folders do not need

    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="packager-")))
            with open_bundle(path) as files:
                copy_files(files, folder)
        except OSError as error:
            hint = "the temporary folder (TMPDIR) must have room for it"
            raise ArchiveRefused(str(path), str(error.strerror), hint) from None
        try:
            yield folder
        except PackagerError as error:
            error.replace_path(str(folder), str(path))
            raise


def copy_files(files: BundleFiles, folder: Path) -> dict[str, str]:
    """Copy all files of an opened bundle into a folder. Returns the SHA-256 in hex of what was written, by path.

    Raises OSError if the folder cannot be written, and what `files.locate` and `files.sha256` raise.
    """
    digests = {}
    for path in files.paths:
        digests[path] = copy_file(files, path, folder / path)
        if digests[path] != files.sha256(path):  # checks the CRC too
            raise IntegrityFailed(str(files.path), f"{path} was changed while it was read")
    return digests


def copy_file(files: BundleFiles, path: str, target: Path) -> str:
    """Copy one file of an opened bundle to `target`, which must not exist.

    Returns the SHA-256 in hex of what was written. Raises OSError if it cannot be written, and what `files.locate`
    raises.
    """
    source = files.locate(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as stream:
        for start in range(0, source.size, CHUNK_BYTES):
            chunk = read_range(source.descriptor, source.offset + start, min(CHUNK_BYTES, source.size - start))
            stream.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


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


def _check_member_path(path: str) -> None:
    """Raise `ZipMalformed` for a path that leaves the bundle, or that no bundle may contain."""
    if problem := describe_path_problem(path):
        raise deterministic_zip.ZipMalformed(problem)
