"""The surroundings of a build that its cache keys name: packager's own code, Python, and the kind of machine."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from pathlib import Path

from packager.common.paths import PACKAGE, is_own_file

_CPU_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


@functools.cache
def digest_own_code() -> dict[str, str]:
    """Return a digest of packager's code as a key's input: any change of it runs every stage again."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if is_own_file(path.name)):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return {"packager": digest.hexdigest()[:16]}


def digest_own_mtimes() -> str:
    """Return a digest of the sizes and modification times of packager's code.

    It takes a fraction of the time of `digest_own_code`, and while it is the same, so is that.
    """
    files = [
        (os.path.relpath(entry.path, PACKAGE), entry.stat().st_size, entry.stat().st_mtime_ns)
        for folder, _, _ in os.walk(PACKAGE)
        for entry in os.scandir(folder)
        if is_own_file(entry.name)
    ]
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()


def collect_python_version() -> dict[str, str]:
    """Return the interpreter's version as a key's input."""
    return {"python": ".".join(str(number) for number in sys.version_info[:3])}


@functools.cache
def collect_machine() -> dict[str, str]:
    """Return the kind of machine as a key's inputs: processor, cores, and settings that choose its kernels.

    Only measured errors depend on it; everything else in a bundle is the same on every machine.
    """
    lines: tuple[str, ...] = ()
    if sys.platform == "linux":
        text = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
        lines = tuple(line for line in text.splitlines() if line.startswith(("model name", "flags", "Features")))
    name = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    description = "\n".join((sys.platform, name, *lines))
    settings = {f"environment:{name}": os.environ[name] for name in _CPU_SETTINGS if name in os.environ}
    return {
        **settings,
        "machine": f"{name} {hashlib.sha256(description.encode()).hexdigest()[:12]}",
        "cores": str(count_cores()),
    }


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
