"""Hash files with SHA-256, and several at once on the cores that this process may use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

CHUNK_BYTES = 1 << 20
PIECE_BYTES = 8 << 20
"""The size of a piece with a digest of its own. It is part of the format of bundles: config.json has such digests."""

T = TypeVar("T")
R = TypeVar("R")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_pieces(path: Path) -> list[str]:
    """Return the digests of the pieces of a file, as `digest_pieces` does."""
    with path.open("rb") as stream:
        return digest_pieces(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)


def digest_range(descriptor: int, offset: int, size: int, *, with_crc: bool = False) -> tuple[str, int]:
    """Hash a range of an open file. The system reads ahead meanwhile: a thread of ours costs more than it saves.

    Returns the SHA-256 in hex, and the CRC-32, which is 0 unless `with_crc`. If the file has become shorter, the digest
    is that of the bytes left, which differs. Raises OSError.
    """
    digest, crc = hashlib.sha256(), 0
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_SEQUENTIAL)
    for chunk in _read(descriptor, offset, size):
        digest.update(chunk)  # without the interpreter lock, as are the reads
        crc = zlib.crc32(chunk, crc) if with_crc else 0
    return digest.hexdigest(), crc


def digest_pieces(descriptor: int, offset: int, size: int) -> list[str]:
    """Hash a range of an open file in pieces of `PIECE_BYTES`, of which the last may be shorter, on all usable cores.

    Returns the SHA-256 of each in hex, in order. Raises OSError.
    """
    starts = range(0, size, PIECE_BYTES)
    return map_on_cores(
        lambda start: digest_range(descriptor, offset + start, min(PIECE_BYTES, size - start))[0], starts
    )


def read_range(descriptor: int, offset: int, size: int) -> bytes:
    """Read a range of an open file; fewer bytes if the file ends before. Raises OSError."""
    chunks = []
    while size and (chunk := os.pread(descriptor, size, offset)):
        chunks.append(chunk)
        offset, size = offset + len(chunk), size - len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _read(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK_BYTES):
        yield read_range(descriptor, offset + start, min(CHUNK_BYTES, size - start))


def map_on_cores(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a function that releases the interpreter lock, such as a digest, to all items on all usable cores."""
    from concurrent.futures import ThreadPoolExecutor  # takes longer to import than a small bundle takes to hash

    with ThreadPoolExecutor(count_usable_cores()) as threads:
        return list(threads.map(function, items))


def count_usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use, at least 1: those of its affinity, or of its container's quota.

    The quota is the smallest of its cgroup and those above, of version 2 or 1; `root` is where /sys and /proc are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mount = root / "sys/fs/cgroup"
    groups = {mount}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):  # of version 2
                group = mount / line.removeprefix("0::/")
                groups |= {group, *(parent for parent in group.parents if parent.is_relative_to(mount))}
    for group in groups:
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or no quota ("max 100000")
            quota, period = (group / "cpu.max").read_text().split()
            cores = min(cores, -(-int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((mount / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)
