"""Verify an executable from outside, without running it: its parts, its runner, its library, and the bundle in it.

An executable proves nothing of itself: a forged one says whatever it likes. So the digest of the runner is held against
those that packager knows, and that of the library against the wheel of onnxruntime that is installed here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packager.bundle.executable_layout import Part, Trailer
from packager.bundle.files import open_bundle
from packager.common.hashing import CHUNK_BYTES, digest_range, map_on_cores, read_range
from packager.errors import StandaloneRefused
from packager.runtime.verify import ParityOptions, VerifyReport, read_demands, verify_files
from packager.standalone.library import read_installed_digest
from packager.standalone.runners import read_digests


def verify_file(
    bundle: str | Path,
    *,
    fingerprint: str | None = None,
    public_key: str | Path | bytes | None = None,
    certificate_chain: str | Path | Sequence[str | Path] = (),
    trust_program: bool = False,
    parity: bool = True,
    time_limit: float | None = None,
    memory_limit: float | None = None,
) -> VerifyReport:
    """Verify an executable: its parts, and then the bundle in it as `verify` does, whose arguments these are.

    It is opened once: the parts and the bundle are those of one file, whatever takes its name meanwhile.

    What is wrong with the parts is in `structure` of the report. Then the evidence is not replayed. Raises
    `StandaloneRefused` if it is no executable or its trailer is malformed, and what `verify` raises.
    """
    demands = read_demands(fingerprint, public_key, certificate_chain)
    with open_bundle(bundle) as files:
        if files.trailer is None:
            raise StandaloneRefused(str(bundle), "it has no trailer")
        problems, notes = _compare_parts(files.descriptor, files.trailer)
        options = ParityOptions(parity and not problems, trust_program, time_limit, memory_limit)
        return verify_files(files, demands, options).with_executable(problems, notes)


def _compare_parts(descriptor: int, trailer: Trailer) -> tuple[list[str], list[str]]:
    parts = {
        "runner": trailer.runner,
        "library": trailer.library,
        "notices": trailer.notices,
        "list of digests": trailer.digests,
    }

    def is_intact(part: Part) -> bool:
        return digest_range(descriptor, part.offset, part.size)[0] == part.sha256.hex()

    intact = map_on_cores(is_intact, parts.values())
    problems = [f"executable: its {name} was changed" for name, same in zip(parts, intact, strict=True) if not same]
    if not problems and _digest_pieces(descriptor, trailer) != trailer.digests.sha256:
        problems.append("executable: its list of digests is not that of its pieces")
    if any(any(chunk) for chunk in _read_padding(descriptor, trailer)):
        problems.append("executable: the bytes between its parts are not zero")
    notes: list[str] = []
    if trailer.runner.sha256.hex() not in read_digests().get(trailer.target, ()):
        problems.append(
            f"executable: its runner, sha256 {trailer.runner.sha256.hex()}, is none for {trailer.target} that this "
            "version of packager knows"
        )
    expected = read_installed_digest(trailer.onnxruntime, trailer.target)
    if expected is None:
        notes.append(
            f"executable: the library of onnxruntime {trailer.onnxruntime} for {trailer.target}, sha256 "
            f"{trailer.library.sha256.hex()}, was not compared, because that wheel is not installed here"
        )
    elif expected != trailer.library.sha256:
        problems.append(f"executable: its library is not that of the wheel onnxruntime {trailer.onnxruntime}")
    return problems, notes


def _digest_pieces(descriptor: int, trailer: Trailer) -> bytes:
    """Return what the SHA-256 of the list of digests has to be."""
    digests = hashlib.sha256()
    for offset, size in trailer.pieces():
        digests.update(bytes.fromhex(digest_range(descriptor, offset, size)[0]))
    return digests.digest()


def _read_padding(descriptor: int, trailer: Trailer) -> Iterator[bytes]:
    """Yield what lies between the parts, in chunks."""
    gaps = [(trailer.runner.end, trailer.library.offset), (trailer.digests.end, trailer.offset)]
    for start, end in gaps:
        for position in range(start, end, CHUNK_BYTES):
            yield read_range(descriptor, position, min(CHUNK_BYTES, end - position))
