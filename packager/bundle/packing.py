"""`package pack` and `package unpack`: the folder of a bundle → its archive, and back.

The fingerprint stays the same, and so does a signature beside it. What is damaged is not packed or unpacked, and what
was written is checked before it gets its name.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from packager.bundle.archive import copy_files, write_archive
from packager.bundle.files import ARCHIVE_SUFFIX, BundleFiles, is_archive, open_bundle
from packager.bundle.seal import check_intact
from packager.bundle.writer import stage_bundle, translate_os_errors
from packager.errors import IntegrityFailed, NotABundle, OutputRefused


def pack_bundle(folder: Path, target: Path, *, force: bool) -> str:
    """Write the archive of the bundle in `folder` to `target`, and return the fingerprint.

    Raises `IntegrityFailed` or what `open_bundle` raises for a bundle that is not intact, and `OutputRefused` if
    `target` cannot be written, or exists without `force`.
    """
    if is_archive(folder):
        raise NotABundle(str(folder), "it is an archive already")
    if target.suffix != ARCHIVE_SUFFIX:
        raise OutputRefused(
            str(target), f"the name of an archive ends in {ARCHIVE_SUFFIX}", "choose another name with -o"
        )
    with open_bundle(folder) as files:
        fingerprint = _check_intact(files)
    _check_target(target, force=force)
    with translate_os_errors(target.parent), TemporaryDirectory(prefix=".pack-", dir=target.parent) as scratch:
        archive = Path(scratch) / target.name
        write_archive(folder, archive)
        with open_bundle(archive) as files:
            if _check_intact(files) != fingerprint:
                raise IntegrityFailed(str(folder), "it was changed while it was packed")
        archive.replace(target)
    return fingerprint


def unpack_bundle(archive: Path, target: Path, *, force: bool) -> str:
    """Write the files of an archive into the folder `target`, and return the fingerprint.

    Raises `IntegrityFailed` or what `open_bundle` raises for a bundle that is not intact, and `OutputRefused` if
    `target` cannot be written, or exists without `force`.
    """
    if archive.is_dir():
        raise NotABundle(str(archive), "it is a folder already")
    with open_bundle(archive) as files:
        fingerprint = _check_intact(files)
        _check_target(target, force=force)
        with stage_bundle(target.parent, target.name, force=force) as staging:
            copy_files(files, staging / "bundle")
    return fingerprint


def _check_intact(files: BundleFiles) -> str:
    _, seal = check_intact(files, models=False, evidence=False)
    return seal.fingerprint


def _check_target(target: Path, *, force: bool) -> None:
    if os.path.lexists(target) and not force:
        raise OutputRefused(str(target), "it exists", "choose another name with -o, or use --force")
