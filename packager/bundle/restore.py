"""Restore a bundle from files that are known by digest, unless the same bundle is already in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from packager.bundle import layout
from packager.bundle.fingerprint import compute_fingerprint, format_sums, list_files
from packager.bundle.writer import BundleWriter


class CachedFileDamaged(Exception):
    """A file to restore is gone, or does not have its digest."""


def is_restored(folder: Path, digests: Mapping[str, str], sha256: Callable[[Path], str]) -> bool:
    """Return whether `folder` already holds exactly the bundle of these files; a signature beside them is ignored.

    `digests` are SHA-256 in hex by path in the bundle; `sha256` computes the digest of a file.
    """
    try:
        text = format_sums(digests)
        return (
            not folder.is_symlink()
            and list_files(folder) == sorted(digests, key=str.encode)
            and (folder / layout.SUMS).read_bytes() == text.encode()
            and (folder / layout.FINGERPRINT).read_bytes() == f"{compute_fingerprint(text)}\n".encode()
            and all(not (folder / path).is_symlink() for path in digests)
            and all(sha256(folder / path) == digest for path, digest in digests.items())
        )
    except (OSError, ValueError):
        return False  # a file is missing or cannot be read, or these are not the files of a bundle


def restore_bundle(writer: BundleWriter, digests: Mapping[str, str], source_path: Callable[[str], Path]) -> None:
    """Copy every file into the bundle and seal it. Raises `CachedFileDamaged`.

    `digests` are SHA-256 in hex by path in the bundle; `source_path` returns the file to copy for a digest.
    """
    for path, digest in digests.items():
        try:
            written = writer.add_file(path, source_path(digest))
        except FileNotFoundError:
            raise CachedFileDamaged(path) from None
        if written != digest:
            raise CachedFileDamaged(path)
    writer.seal()
