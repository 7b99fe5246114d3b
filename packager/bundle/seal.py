"""Check the seal of an opened bundle: that its files are those of SHA256SUMS, and FINGERPRINT is that of SHA256SUMS.

`load` and `verify` share this one definition of an intact bundle. The order matters: SHA256SUMS is read first, then
config.json is compared with its digest, and only then parsed. `check_intact` compares all other files then.
`check_listed` leaves that to those who use a file, so that loading a model does not read what it does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from packager.bundle import layout
from packager.bundle.config import (
    MAX_CONFIG_BYTES,
    find_config_problem,
    list_artifacts,
    parse_config,
    read_config,
)
from packager.bundle.files import BundleFiles
from packager.bundle.fingerprint import Integrity, SumsMalformed, compute_fingerprint, parse_sums
from packager.common.hashing import map_on_cores
from packager.errors import IntegrityFailed, NotABundle, escape_unprintable

_MAX_SUMS_BYTES = 4 << 20  # 10,000 lines of 400 bytes
_MAX_FINGERPRINT_BYTES = 1000
MAX_RECORD_BYTES = 16 << 20
"""The largest parity.json, build.json or model.sig that is read."""


@dataclass(frozen=True)
class Seal:
    """The result of checking a seal.

    - `fingerprint` follows from SHA256SUMS, and `sums` are its hex digests by path; both are empty if it is malformed.
    - `integrity`: how the files differ from SHA256SUMS.
    - `problems`: one line for everything else.
    """

    fingerprint: str
    sums: Mapping[str, str]
    integrity: Integrity = field(default_factory=Integrity)
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


@dataclass(frozen=True)
class CheckedBundle:
    """A bundle whose seal was checked.

    `config` is None if config.json has the wrong digest, so that it was not parsed. `config_problem` says how a config
    is malformed, in which nothing may be relied on.
    """

    seal: Seal
    config: dict[str, Any] | None = None
    config_problem: str | None = None


def check_bundle(
    files: BundleFiles,
    *,
    models: bool,
    evidence: bool,
    in_child: bool = False,
    sha256: Callable[[str], str] | None = None,
) -> CheckedBundle:
    """Check the seal of a bundle, and read config.json if its digest is right.

    `models` and `evidence` say what will be used later: `files` holds it, so that it is what was compared here.
    With `in_child`, a child process will read it from descriptors that it inherits, and this process copies nothing.
    `sha256` returns the digest of a file by path, and is `files.sha256` by default. Raises `NotABundle` if a file
    cannot be read, and what `parse_config` raises.
    """
    try:
        seal = read_sums(files)
    except SumsMalformed as error:
        return CheckedBundle(Seal("", {}, Integrity(changed=(layout.SUMS,)), (f"{layout.SUMS}: {error}",)))
    digest = sha256 or files.sha256
    config, problem = None, None
    if layout.CONFIG in files.sizes:
        files.read(layout.CONFIG, MAX_CONFIG_BYTES)
        if digest(layout.CONFIG) == seal.sums.get(layout.CONFIG):
            config = parse_config(files)
            problem = find_config_problem(config)
    if config is not None and problem is None:
        _hold(files, config, models=models, evidence=evidence, in_child=in_child)
    return CheckedBundle(_compare_files(files, seal, digest), config, problem)


def check_intact(files: BundleFiles, *, models: bool, evidence: bool) -> tuple[dict[str, Any], Seal]:
    """Return config.json and the seal of a bundle that is intact. The arguments are those of `check_bundle`.

    Raises `IntegrityFailed` if it is not, `NotABundle` if config.json is malformed, and what `check_bundle` raises.
    """
    checked = check_bundle(files, models=models, evidence=evidence)
    if not checked.seal.is_intact:
        raise IntegrityFailed(str(files.path), checked.seal.describe())
    if checked.config is None or checked.config_problem:
        raise NotABundle(str(files.path), str(checked.config_problem))
    files.expect(checked.seal.sums)  # also of the pieces of external weights
    return checked.config, checked.seal


def check_listed(files: BundleFiles) -> tuple[dict[str, Any], Seal]:
    """Check the seal and config.json of a bundle, and the digest of any other file when it is read.

    The names of the files must be those of SHA256SUMS. Returns config.json and the seal. Raises as `check_intact`.
    """
    try:
        seal = read_sums(files)
    except SumsMalformed as error:
        raise IntegrityFailed(str(files.path), f"{layout.SUMS}: {error}") from None
    files.expect(seal.sums)
    seal = _check_fingerprint(files, replace(seal, integrity=_compare_names(files, seal)))
    if not seal.is_intact:
        raise IntegrityFailed(str(files.path), seal.describe())
    return read_config(files), seal


def read_sums(files: BundleFiles) -> Seal:
    """Read SHA256SUMS, and compare nothing. Raises `SumsMalformed`, or `NotABundle` if it cannot be read."""
    try:
        text = files.read(layout.SUMS, _MAX_SUMS_BYTES).decode()
    except UnicodeDecodeError as error:
        raise SumsMalformed(str(error)) from None
    except IntegrityFailed as error:
        raise SumsMalformed(str(error.why)) from None
    return Seal(compute_fingerprint(text), parse_sums(text))


def read_signature(files: BundleFiles) -> bytes | None:
    """Return the bytes of model.sig, None if there is no such file. Raises what `files.read` raises."""
    return files.read(layout.SIGNATURE, MAX_RECORD_BYTES) if layout.SIGNATURE in files else None


def _hold(files: BundleFiles, config: Mapping[str, Any], *, models: bool, evidence: bool, in_child: bool) -> None:
    """Read the ONNX model, map its weights and keep the fallbacks open, and read the evidence.

    For a child, keep the models and the golden cases open; the weights always, as their pieces may be hashed too.
    """
    onnx = config["artifacts"]["onnx"] or {}
    data = (onnx.get("data") or {}).get("path")
    if data is not None and data in files.sizes:
        files.locate(data)
    for path, _ in list_artifacts(config) if models else ():
        if path in files.sizes:
            hold = files.map if path == data else files.read if path == onnx.get("path") else files.locate
            (files.locate if in_child else hold)(path)
    for path in (layout.PARITY, layout.BUILD, layout.GOLDEN) if evidence else ():
        if path in files.sizes and path == layout.GOLDEN and in_child:
            files.locate(path)
        elif path in files.sizes:
            files.read(path, None if path == layout.GOLDEN else MAX_RECORD_BYTES)


def _compare_files(files: BundleFiles, seal: Seal, sha256: Callable[[str], str]) -> Seal:
    """Compare every file with SHA256SUMS, on all usable cores, and FINGERPRINT with the fingerprint."""
    names = _compare_names(files, seal)
    listed = sorted(set(seal.sums) - set(names.missing), key=lambda path: -files.sizes.get(path, 0))
    digests = dict(zip(listed, map_on_cores(sha256, listed), strict=True))
    changed = tuple(path for path in seal.sums if path in digests and digests[path] != seal.sums[path])
    return _check_fingerprint(files, replace(seal, integrity=replace(names, changed=changed)))


def _compare_names(files: BundleFiles, seal: Seal) -> Integrity:
    """Return which files SHA256SUMS lists that are missing, and which exist that it does not list."""
    present = {path for path in files.paths if path not in layout.UNSEALED_FILES}
    extra = {*(present - set(seal.sums)), *files.empty_folders}
    if layout.SIGNATURE in files.sizes:
        files.read(layout.SIGNATURE, MAX_RECORD_BYTES)  # so that the CRC of an archive's entry is checked
    elif layout.SIGNATURE in files:
        extra.add(layout.SIGNATURE)  # a link
    return Integrity(missing=tuple(sorted(set(seal.sums) - present)), extra=tuple(sorted(extra)))


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
        shown = escape_unprintable(recorded.strip())
        problem = f"{layout.FINGERPRINT} says {shown}; that of the files is {seal.fingerprint}"
    return replace(seal, integrity=changed, problems=(problem,))


def _join(paths: tuple[str, ...]) -> str:
    return ", ".join(escape_unprintable(path) for path in paths)
