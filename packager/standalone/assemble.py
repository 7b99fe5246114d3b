"""Bundle → executable: runner, library, notices, digests, trailer and archive, one after the other, in one new file.

The same bundle, runner and library give the same bytes. The archive is the bundle's own, byte for byte, so that the
fingerprint stays the same, and whatever reads ZIP files reads this one. What was written is checked before it gets its
name.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from packager.bundle.archive import write_archive
from packager.bundle.executable_layout import MACHINES, build_front, read_trailer
from packager.bundle.files import ARCHIVE_SUFFIX, is_executable, open_bundle
from packager.bundle.seal import check_intact, check_listed
from packager.bundle.writer import translate_os_errors
from packager.common.hashing import CHUNK_BYTES
from packager.errors import IntegrityFailed, OutputRefused, StandaloneUnsupported
from packager.standalone.library import Library, read_library
from packager.standalone.runners import find_host_target, read_runner

SUFFIX = ".run"
"""What `package build --standalone` appends to the name of the bundle's folder."""

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,30}")
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Standalone:
    """An executable that was written."""

    executable: Path
    fingerprint: str
    target: str
    onnxruntime: str
    size: int

    def as_json(self) -> dict[str, object]:
        """Return the object that `package standalone --json` prints."""
        return {
            "executable": str(self.executable),
            "fingerprint": self.fingerprint,
            "target": self.target,
            "onnxruntime": self.onnxruntime,
            "bytes": self.size,
        }


def make_standalone(
    bundle: str | Path,
    output: str | Path,
    *,
    target: str | None = None,
    force: bool = False,
    onnxruntime_wheel: str | Path | None = None,
) -> Standalone:
    """Write the executable of a bundle, given as a folder, an archive or an executable.

    - `target`: linux-x64 or linux-arm64; None means that of this machine.
    - `force`: replace `output` if it exists.
    - `onnxruntime_wheel`: the wheel to take onnxruntime's library from; None means the installed one.

    Raises `StandaloneUnsupported` if the bundle has no ONNX model for the CPU, `RunnerUnavailable`,
    `LibraryUnavailable`, `OutputRefused`, and what `open_bundle` raises or `IntegrityFailed` for the bundle.
    """
    bundle, output = Path(bundle), Path(output)
    target = target or find_host_target(bundle)
    if os.path.lexists(output) and not force:
        raise OutputRefused(str(output), "it exists", "choose another name with -o, or use --force", what="the file")
    if output.is_dir():
        raise OutputRefused(str(output), "it is a folder", "choose another name with -o", what="the file")
    with open_bundle(bundle) as files:
        config, seal = check_listed(files)
    version = _check_runnable(bundle, config)
    runner = read_runner(target)
    library = read_library(version, target, None if onnxruntime_wheel is None else Path(onnxruntime_wheel))
    with (
        translate_os_errors(output.parent),
        tempfile.TemporaryDirectory(prefix=".standalone-", dir=output.parent) as scratch,
    ):
        executable = Path(scratch) / "executable"
        with _open_archive(bundle, Path(scratch)) as archive, executable.open("xb") as stream:
            _write(stream, runner, library, MACHINES[target], archive)
        _check_written(executable, bundle, seal.fingerprint)
        executable.chmod(0o755)
        executable.replace(output)
    return Standalone(output, seal.fingerprint, target, version, output.stat().st_size)


def make_beside(bundle: Path, *, force: bool) -> Standalone:
    """Write the executable of the bundle in the folder NAME-VERSION for this machine beside it, as NAME-VERSION.run.

    It replaces an earlier executable; `force` lets it replace any file. Raises as `make_standalone`.
    """
    output = bundle.with_name(f"{bundle.name}{SUFFIX}")
    return make_standalone(bundle, output, force=force or (output.is_file() and is_executable(output)))


def _check_runnable(bundle: Path, config: Mapping[str, Any]) -> str:
    """Return the version of onnxruntime that parity was proven with. Raises `StandaloneUnsupported`."""
    if config["artifacts"]["onnx"] is None:
        why = "it has no ONNX model, and nothing else runs without PyTorch"
        raise StandaloneUnsupported(str(bundle), why, "build it with export.required: true to see why")
    if config["providers"] != [_CPU]:
        names = ", ".join(config["providers"])
        why = f"its manifest asks for {names}, and the library in an executable has {_CPU} alone"
        raise StandaloneUnsupported(str(bundle), why, f"set target.providers: [{_CPU}], and build again")
    version = config["source"]["toolchain"].get("onnxruntime", "")
    if not _VERSION.fullmatch(version):
        why = f"config.json has no usable version of onnxruntime: {version[:100]!r}"
        raise StandaloneUnsupported(str(bundle), why, "build it again")
    return str(version)


@contextlib.contextmanager
def _open_archive(bundle: Path, scratch: Path) -> Iterator[IO[bytes]]:
    """Yield the archive of a bundle as an open file that is at its start."""
    path = bundle
    if bundle.is_dir():
        path = scratch / "archive.zip"
        write_archive(bundle, path)
    with path.open("rb") as stream:
        trailer = None if path.suffix == ARCHIVE_SUFFIX else read_trailer(stream.fileno())
        if trailer is not None:
            stream.seek(trailer.archive_offset)
        yield stream


def _write(stream: IO[bytes], runner: bytes, library: Library, machine: int, archive: IO[bytes]) -> None:
    """Write the parts, and then the rest of the archive, to an empty file."""
    start = archive.tell()
    size = archive.seek(0, os.SEEK_END) - start
    stream.write(
        build_front(
            runner, library.content, library.notices, archive_size=size, machine=machine, onnxruntime=library.version
        )
    )
    archive.seek(start)
    shutil.copyfileobj(archive, stream, CHUNK_BYTES)


def _check_written(executable: Path, bundle: Path, fingerprint: str) -> None:
    """Raise `IntegrityFailed` unless the executable has the bundle in it, whole."""
    with open_bundle(executable) as files:
        _, seal = check_intact(files, models=False, evidence=False)
    if seal.fingerprint != fingerprint:
        raise IntegrityFailed(str(bundle), "it was changed while it was copied")
