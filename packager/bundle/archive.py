"""The archive of a bundle: its folder as one file, NAME-VERSION.zip.

The archive is a ZIP as `packager.common.deterministic_zip` writes them: stored entries, each content at a multiple
of 64 bytes, every header fixed, ZIP64 where it must be. It has one entry for every file of the
folder, SHA256SUMS, FINGERPRINT and model.sig included, and nothing else: no folder, no link, nothing
before, between or behind. An entry's name is the path inside the bundle, in UTF-8: parts between
`/`, none of them empty, `.` or `..`, at most 32 folders deep, without line break, NUL or backslash.
Entries stand in the order of their names' bytes.

So the same files give the same archive, whatever their times and modes, and the archive of a bundle
has no identity of its own: the bundle in it has the fingerprint of the folder. In a shell:

    unzip -d NAME-VERSION NAME-VERSION.zip && cd NAME-VERSION && sha256sum -c SHA256SUMS

A reader takes only what a writer writes. It goes from the first byte to the last, once, and writes
down no more than the archive's own size; whatever differs in one byte is refused, and with it all.
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
    """Write the archive of a bundle's folder, in one step: nobody sees half of it.

    Raises `OutputRefused` where the folder holds what no archive can (links, names that are no paths,
    a file that changes meanwhile), and the OSError of a target that cannot be written.
    """
    from tempfile import TemporaryDirectory

    outside = {name for name in layout.UNSEALED_FILES if os.path.lexists(folder / name)}
    paths = sorted({*list_files(folder), *outside}, key=os.fsencode)
    if not paths:
        raise OutputRefused(str(target), f"there are no files in {folder}", "give the folder of a bundle")
    with TemporaryDirectory(prefix=".archive-", dir=target.parent) as place:
        made = Path(place) / "made"
        try:
            with made.open("wb") as stream:
                deterministic_zip.write_zip(stream, (_archive_member(folder, path) for path in paths))
        except deterministic_zip.ZipMalformed as error:
            raise OutputRefused(str(target), str(error), "take it out, or build the bundle anew") from None
        os.replace(made, target)


def is_archive(path: Path) -> bool:
    """Whether a path is to be read as an archive: a file whose name ends in .zip."""
    return path.suffix == _SUFFIX and path.is_file()


@contextlib.contextmanager
def open_as_folder(path: Path) -> Iterator[Path]:
    """The bundle's folder: the path itself, or for an archive a private copy, which goes with the block.

    Whatever `PackagerError` leaves the block names the archive, not the copy. Raises `ArchiveRefused`
    for what is no archive or finds no room, `IntegrityFailed` for a content without its CRC.
    """
    if not is_archive(path):
        yield path
        return
    from tempfile import TemporaryDirectory  # takes a while, and a folder needs it not

    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="packager-")))
            _unpack(path, folder)
        except deterministic_zip.ZipEntryDamaged as error:
            raise IntegrityFailed(str(path), str(error)) from None
        except deterministic_zip.ZipMalformed as error:
            hint = "fetch it again, or unpack it and give the folder"
            raise ArchiveRefused(str(path), str(error), hint) from None
        except OSError as error:
            hint = "it must be readable, and find room in the temporary folder, which TMPDIR names"
            raise ArchiveRefused(str(path), str(error.strerror), hint) from None
        try:
            yield folder
        except PackagerError as error:
            error.replace_path(str(folder), str(path))
            raise


def _archive_member(folder: Path, path: str) -> tuple[str, int, Iterator[bytes]]:
    _check_member_path(path)
    found = (folder / path).lstat()
    if not stat.S_ISREG(found.st_mode):
        raise deterministic_zip.ZipMalformed(f"{path!r} is no regular file")
    return path, found.st_size, _read_chunks(folder / path)


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
                raise deterministic_zip.ZipMalformed(f"{name[:200]!r} stands in the place of another entry") from None
            with created:
                created.writelines(chunks)


def _check_member_path(path: str) -> None:
    """Raise `Malformed` for a path that leads out of the bundle, or that no bundle has."""
    parts, shown = path.split("/"), repr(path[:200])
    if any(part in ("", ".", "..") for part in parts):
        raise deterministic_zip.ZipMalformed(f"{shown} is no path inside a bundle")
    if any(character in path for character in "\n\r\0\\"):
        raise deterministic_zip.ZipMalformed(f"a path in a bundle has no line break, no NUL and no backslash: {shown}")
    if len(parts) > _MAX_DEPTH + 1:
        raise deterministic_zip.ZipMalformed(f"{shown} lies more than {_MAX_DEPTH} folders deep")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise deterministic_zip.ZipMalformed(f"{shown} is no UTF-8") from None
