"""A bundle whose files are known by digest: is it there already, and if not, put it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from packager.bundle import layout
from packager.bundle.fingerprint import compute_fingerprint, format_sums, list_files
from packager.bundle.writer import BundleWriter


def is_restored(folder: Path, digests: Mapping[str, str], sha256: Callable[[Path], str]) -> bool:
    """Whether the folder is the bundle of these files, to the byte; a signature beside them does not count."""
    text = format_sums(digests)
    try:
        return (
            not folder.is_symlink()
            and list_files(folder) == sorted(digests, key=str.encode)
            and (folder / layout.SUMS).read_bytes() == text.encode()
            and (folder / layout.FINGERPRINT).read_bytes() == f"{compute_fingerprint(text)}\n".encode()
            and all(not (folder / path).is_symlink() for path in digests)
            and all(sha256(folder / path) == digest for path, digest in digests.items())
        )
    except OSError:
        return False  # something is missing, or cannot be read


class CachedFileDamaged(Exception):
    """A file that is to be restored is gone, or is not what its digest says."""


def restore_bundle(writer: BundleWriter, digests: Mapping[str, str], source_path: Callable[[str], Path]) -> None:
    """Write and seal the bundle from `sources` by digest. Raises `SourceDamaged`."""
    for path, digest in digests.items():
        try:
            written = writer.add_file(path, source_path(digest))
        except FileNotFoundError:
            raise CachedFileDamaged(path) from None
        if written != digest:
            raise CachedFileDamaged(path)
    writer.seal()
