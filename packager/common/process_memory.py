"""How a build's processes treat memory.

A model passes through a build as a handful of large blocks, and a build's objects are millions of
small ones that live to its end. Neither is what the defaults are made for: see each function.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
from collections.abc import Iterator

_MMAP_THRESHOLD_BYTES = 1 << 30
_TRIM_THRESHOLD_BYTES = (1 << 31) - 1
_M_ARENA_MAX = -8  # mallopt(3)

WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(_MMAP_THRESHOLD_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(_TRIM_THRESHOLD_BYTES),
}
"""For a child process whose work is copying models: keep freed blocks and use them again. glibc maps
large blocks anew each time, and the kernel fills them with zeros page by page, which was more than
half of the time of the ONNX passes on ResNet-50 (3.5 s against 1.4 s). Other allocators take no notice."""


def use_single_arena() -> None:
    """Let all threads of this process allocate from one arena, before there are any threads.

    By default each thread frees into an arena of its own, where no other finds it again: ResNet-50 took
    7.1 s and 1,086 MB instead of 6.5 s and 1,031 MB.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """No collection of cycles but in `give_back`: on importing torch and transformers it takes 1.4 s of 3.9 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def freeze_garbage_collector() -> None:
    """What is there now stays: later collections need not look at it."""
    gc.freeze()


def release_memory() -> None:
    """Collect the cycles made since `settle`, and hand what is free back to the system, where glibc allocates."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
