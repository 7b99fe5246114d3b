"""Check the seal of an opened bundle: that its files are those of SHA256SUMS, and FINGERPRINT is that of SHA256SUMS.

`load` and `verify` share this one definition of an intact bundle. The order matters: SHA256SUMS is read first, then
config.json is compared with its digest, and only then parsed; all other files are compared before a model is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from packager.bundle import layout
from packager.bundle.files import BundleFiles
from packager.bundle.fingerprint import Integrity, SumsMalformed, compute_fingerprint, parse_sums
from packager.common.hashing import map_on_cores
from packager.errors import IntegrityFailed

_MAX_SUMS_BYTES = 16 << 20
_MAX_FINGERPRINT_BYTES = 1000
MAX_SIGNATURE_BYTES = 16 << 20


@dataclass(frozen=True)
class Sums:
    """SHA256SUMS: the fingerprint that follows from it, and hex digests by path."""

    fingerprint: str
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Seal:
    """The result of checking a seal: how the files differ from SHA256SUMS, and one line per other problem."""

    fingerprint: str
    integrity: Integrity
    problems: tuple[str, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Return whether nothing differs."""
        return self.integrity.is_intact and not self.problems

    def describe(self) -> str:
        """Return what differs, one line for each kind of difference."""
        integrity = self.integrity
        paths = {"missing": integrity.missing, "not listed": integrity.extra, "changed": integrity.changed}
        return "\n".join([*(f"{kind}: {_join(names)}" for kind, names in paths.items() if names), *self.problems])


def read_sums(files: BundleFiles) -> Sums:
    """Read SHA256SUMS. Raises `SumsMalformed` if it is not what a build writes, `NotABundle` if it cannot be read."""
    try:
        text = files.read(layout.SUMS, _MAX_SUMS_BYTES).decode()
    except UnicodeDecodeError as error:
        raise SumsMalformed(str(error)) from None
    except IntegrityFailed as error:
        raise SumsMalformed(str(error.why)) from None
    return Sums(compute_fingerprint(text), parse_sums(text))


def check_seal(files: BundleFiles, sums: Sums, sha256: Callable[[str], str] | None = None) -> Seal:
    """Compare every file with SHA256SUMS, on all usable cores, and FINGERPRINT with the fingerprint.

    Hold the files that will be used before: see `BundleFiles`. `sha256` returns the digest of a file by path, and is
    `files.sha256` by default. Raises `NotABundle` if a file cannot be read.
    """
    digest = sha256 or files.sha256
    present = {path for path in files.paths if path not in layout.UNSEALED_FILES}
    listed = sorted((path for path in sums.digests if path in present), key=lambda path: -files.sizes.get(path, 0))
    if layout.SIGNATURE in files.sizes:
        files.read(layout.SIGNATURE, MAX_SIGNATURE_BYTES)  # so that the CRC of an archive's entry is checked
    digests = dict(zip(listed, map_on_cores(digest, listed), strict=True))
    linked = {layout.SIGNATURE} & (set(files.paths) - files.sizes.keys())
    integrity = Integrity(
        missing=tuple(sorted(set(sums.digests) - present)),
        extra=tuple(sorted({*(present - set(sums.digests)), *files.empty_folders, *linked})),
        changed=tuple(path for path in sums.digests if path in present and digests[path] != sums.digests[path]),
    )
    return _check_fingerprint(files, Seal(sums.fingerprint, integrity))


def _check_fingerprint(files: BundleFiles, seal: Seal) -> Seal:
    integrity = seal.integrity
    if layout.FINGERPRINT not in files:
        return replace(seal, integrity=replace(integrity, missing=(layout.FINGERPRINT, *integrity.missing)))
    changed = replace(integrity, changed=(layout.FINGERPRINT, *integrity.changed))
    try:
        recorded = files.read(layout.FINGERPRINT, _MAX_FINGERPRINT_BYTES).decode()
    except (IntegrityFailed, UnicodeDecodeError):
        problem = f"{layout.FINGERPRINT} is unreadable; that of the files is {seal.fingerprint}"
    else:
        if recorded == f"{seal.fingerprint}\n":
            return seal
        shown = ascii(recorded.strip())[1:-1]
        problem = f"{layout.FINGERPRINT} says {shown}; that of the files is {seal.fingerprint}"
    return replace(seal, integrity=changed, problems=(problem,))


def _join(paths: tuple[str, ...]) -> str:
    return ", ".join(path if path.isprintable() else ascii(path) for path in paths)
