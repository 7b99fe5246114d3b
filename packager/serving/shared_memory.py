"""System shared memory: regions that clients of this machine register, to pass tensors without sending them.

A client names a POSIX shared memory object, which Linux keeps in /dev/shm, and then refers to it in its requests
(Triton's shared memory extension). Any client can name any object of this user, so a server does it only when asked to.
Inputs are copied before they are checked, because the client can change them at any time.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.serving.messages import Rejected

_FOLDER = Path("/dev/shm")
_MAX_REGIONS = 1000


@dataclass(frozen=True)
class Region:
    """A registered region: `byte_size` bytes of the object `key`, from `offset` on."""

    name: str
    key: str
    offset: int
    byte_size: int
    memory: memoryview

    def describe(self) -> dict[str, object]:
        """Return the region as the status route shows it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}


class SharedMemory:
    """The regions that clients have registered, by name; with `enabled` false they can register none."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._regions: dict[str, Region] = {}

    def register(self, name: str, document: object) -> None:
        """Register a region: `key`, `byte_size` and perhaps `offset`. Raises `Rejected`, 400 or 403."""
        if not self._enabled:
            raise Rejected(403, "shared memory is not enabled; the server's option --shared-memory enables it")
        if name in self._regions:
            raise Rejected(400, f"shared memory region '{name}' already in manager")
        if len(self._regions) >= _MAX_REGIONS:
            raise Rejected(400, f"more than {_MAX_REGIONS} shared memory regions")
        if not isinstance(document, dict):
            raise Rejected(400, "the request JSON is not an object")
        key = document.get("key")
        if not isinstance(key, str) or "/" in key.removeprefix("/") or key.strip("/.") == "" or "\0" in key:
            raise Rejected(400, "'key' is not the name of a shared memory object")
        offset, byte_size = _read_count(document, "offset", 0), _read_count(document, "byte_size", None)
        memory = _map(key, offset + byte_size)[offset:]
        self._regions[name] = Region(name, key, offset, byte_size, memory)

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all of them. One that a request still uses is unmapped after it."""
        if name is None:
            self._regions.clear()
        else:
            self._regions.pop(name, None)

    def describe(self, name: str | None) -> list[dict[str, object]]:
        """Return all regions or one. Raises `Rejected`, 400, for an unknown one."""
        if name is not None and name not in self._regions:
            raise Rejected(400, f"Unable to find system shared memory region: '{name}'")
        return [region.describe() for region in self._regions.values() if name in (None, region.name)]

    def locate(self, parameters: Mapping[str, Any]) -> memoryview:
        """Return the memory that the parameters of a tensor name. Raises `Rejected`, 400."""
        if not self._enabled:
            raise Rejected(400, "shared memory is not enabled; the server's option --shared-memory enables it")
        name = parameters.get("shared_memory_region")
        region = self._regions.get(name) if isinstance(name, str) else None
        if region is None:
            raise Rejected(400, f"Unable to find shared memory region: {str(name)[:100]!r}")
        offset = _read_count(parameters, "shared_memory_offset", 0)
        byte_size = _read_count(parameters, "shared_memory_byte_size", None)
        if offset + byte_size > region.byte_size:
            raise Rejected(400, f"Invalid offset + byte size for shared memory region: '{region.name}'")
        return region.memory[offset : offset + byte_size]


def _read_count(document: Mapping[str, Any], key: str, default: int | None) -> int:
    value = document.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise Rejected(400, f"'{key}' is not a number of bytes")
    return value


def _map(key: str, size: int) -> memoryview:
    """Map the first bytes of a shared memory object, to read and write. Raises `Rejected`, 400."""
    path = _FOLDER / key.removeprefix("/")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Rejected(400, f"Unable to open shared memory region: '{key}': {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size < size or size == 0:
            raise Rejected(400, f"the shared memory object '{key}' has fewer than {size} bytes")
        return memoryview(mmap.mmap(descriptor, size))[:size]
    finally:
        os.close(descriptor)
