"""Tune the memory allocator and the garbage collector for builds, and measure the memory of a process.

A build copies a model as a handful of large blocks, and creates millions of small objects that live until its end.
The defaults suit neither: see each function.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

_MMAP_THRESHOLD_BYTES = 1 << 30
_TRIM_THRESHOLD_BYTES = (1 << 31) - 1
_M_ARENA_MAX = -8  # mallopt(3)

WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(_MMAP_THRESHOLD_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(_TRIM_THRESHOLD_BYTES),
}
"""Environment of a child process that copies models: keep freed blocks and reuse them.

By default, glibc maps large blocks from the system each time, and the kernel fills them with zeros page by page:
more than half of the time of the ONNX passes on ResNet-50 (3.5 s instead of 1.4 s). Other allocators ignore it."""


def use_single_arena() -> None:
    """Make all threads of this process allocate from one arena of glibc; call it before threads are started.

    By default, threads have separate arenas and do not reuse each other's freed memory: building ResNet-50 took
    7.1 s and 1,086 MB instead of 6.5 s and 1,031 MB.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Collect cycles only in `release_memory`: while torch and transformers are imported, it took 1.4 s of 3.9 s.

    Objects that the host froze before stay frozen; others are thawed at the end.
    """
    enabled, frozen_by_host = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    try:
        yield
    finally:
        if not frozen_by_host:
            gc.unfreeze()
        if enabled:
            gc.enable()


def freeze_garbage_collector() -> None:
    """Exempt all current objects from later collections, which then need not visit them."""
    gc.freeze()


def release_memory() -> None:
    """Collect the cycles created since `freeze_garbage_collector`, and with glibc return free memory to the system."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def read_private_bytes(process_id: int) -> int:
    """Return the resident memory of a process that no file backs, in bytes; 0 if it cannot be measured.

    On Linux, it is read from /proc. Elsewhere, it comes from `ps` and includes mapped files. Windows has neither.
    """
    with contextlib.suppress(OSError, ValueError):  # the process may have ended
        if platform.system() == "Linux":
            resident, shared = map(int, Path(f"/proc/{process_id}/statm").read_bytes().split()[1:3])
            return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
        if os.name == "posix":
            command = ["ps", "-o", "rss=", "-p", str(process_id)]
            return int(subprocess.run(command, capture_output=True, text=True).stdout) * 1024
    return 0


def get_transient_bytes() -> int:
    """Return by how much more memory this process had at its peak than it has now; 0 if the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    peak, now = (int(values.get(name, "0 kB").split()[0]) for name in ("VmHWM", "VmRSS"))
    return 1024 * max(0, peak - now)
