"""The runners: the native programs in front of a bundle, which the distribution torch-packager-runners carries.

packager knows the digests of each, from runners.json: of the one that this version makes executables with, and of those
that earlier releases made them with. Whatever else lies in that distribution's place is refused.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from packager.bundle.executable_layout import MACHINES
from packager.common.paths import PACKAGE
from packager.errors import RunnerUnavailable, StandaloneUnsupported

TARGETS = tuple(MACHINES)
"""What an executable can be made for."""

_PACKAGE = "torch_packager_runners"
_HOSTS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}


def find_host_target(bundle: Path) -> str:
    """Return the target that runs on this machine. Raises `StandaloneUnsupported` for `bundle` if there is none."""
    target = _HOSTS.get(platform.machine()) if sys.platform == "linux" else None
    if target is None:
        why = f"this machine is {sys.platform} on {platform.machine()}, for which there is no runner"
        raise StandaloneUnsupported(str(bundle), why, f"choose one with --target: {' or '.join(TARGETS)}")
    return target


@functools.cache
def read_digests() -> Mapping[str, list[str]]:
    """Return the SHA-256 in hex of the runners that this version of packager knows, by target, the newest first."""
    digests: dict[str, list[str]] = json.loads((PACKAGE / "standalone/runners.json").read_bytes())
    return digests


def read_runner(target: str) -> bytes:
    """Return the newest program for a target. Raises `RunnerUnavailable` if it is not the one that is installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise RunnerUnavailable(target, "torch-packager-runners is not installed")
    try:
        content = Path(spec.origin).with_name(target).read_bytes()
    except OSError as error:
        raise RunnerUnavailable(target, f"torch-packager-runners lacks it: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != read_digests()[target][0]:
        raise RunnerUnavailable(target, "the one in torch-packager-runners belongs to a different version of packager")
    return content
