"""The tools that made a bundle: their versions, and digests of their files."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping

from packager.builder.incremental import keys
from packager.bundle.fingerprint import format_lines
from packager.common import installed_distributions
from packager.common.hashing import sha256_file
from packager.common.paths import PACKAGE, data_folder, is_own_file


def collect_toolchain_versions() -> dict[str, str]:
    """Return the version of each tool by its name; "" if it is not installed as a distribution."""
    return {name: installed_distributions.tool_version(name) for name in keys.TOOLCHAIN}


def digest_toolchain() -> dict[str, str]:
    """Return the dirHash of each tool's files, in hex, by the tool's name: in-toto's name for Go's Hash1.

    It covers the files of the wheel without its `.dist-info`, so it is the same in every environment that the wheel is
    installed in. The files are not read again: RECORD has their digests. A tool without a RECORD is left out.
    """
    digests = {"packager": _digest_own_files()}
    for name in keys.TOOLCHAIN:
        digest = "" if name == "packager" else _digest_record(installed_distributions.read_record(name))
        if digest:
            digests[name] = digest
    return digests


@functools.cache
def _digest_record(text: str) -> str:
    """Return the dirHash of the files that a RECORD lists; "" if it lists none. torch's has ten thousand."""
    files = _parse_record(text)
    return _hash_lines(files) if files else ""


def _parse_record(text: str) -> dict[str, str]:
    """Return the SHA-256 in hex by path from the lines `path,sha256=BASE64,size` of a RECORD.

    Files that the installer writes are left out: `.dist-info`, scripts (`../../bin`), bytecode and `.pth`.
    """
    files = {}
    for line in text.splitlines():
        path, _, digest = line.rpartition(",")[0].rpartition(",")
        is_written = path.startswith("..") or path.endswith(".pth") or path.partition("/")[0].endswith(".dist-info")
        if digest.startswith("sha256=") and not is_written:
            files[path] = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=").hex()
    return files


def _digest_own_files() -> str:
    """Return the dirHash of packager's own files, which are the same installed from a wheel and in a checkout."""
    code = [path for path in PACKAGE.rglob("*") if is_own_file(path.name)]
    files = {f"packager/{path.relative_to(PACKAGE).as_posix()}": sha256_file(path) for path in code}
    for name in ("schemas", "templates"):
        files.update({f"packager/{name}/{path.name}": sha256_file(path) for path in data_folder(name).iterdir()})
    return _hash_lines(files)


def _hash_lines(files: Mapping[str, str]) -> str:
    return hashlib.sha256(format_lines(files).encode()).hexdigest()
