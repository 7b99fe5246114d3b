"""Describe the machine and the versions of the libraries: figures of one say little about another."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from packager.common.hashing import count_usable_cores
from packager.common.installed_distributions import tool_version

_LIBRARIES = ("packager", "onnxruntime", "numpy", "torch")


@dataclass(frozen=True)
class Machine:
    """The machine: its processor, the cores that this process may use, and its memory in bytes (0 if unknown).

    `load` is the number of processes that wanted a core in the last minute, before anything was measured; None if the
    system does not say. `versions` are those of the libraries that are installed.
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    load: float | None
    versions: dict[str, str]

    @property
    def is_busy(self) -> bool:
        """Return whether other processes take a good part of the cores."""
        return self.load is not None and self.load > max(0.5, self.cores / 4)


def describe_machine() -> Machine:
    """Describe this machine."""
    versions = {name: tool_version(name) for name in _LIBRARIES}
    return Machine(
        processor=_find_processor(),
        cores=count_usable_cores(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions={name: version for name, version in versions.items() if version},
    )


def _find_processor() -> str:
    """Return the name of the processor, or at least its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
