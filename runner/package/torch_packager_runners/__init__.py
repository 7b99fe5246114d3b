"""The native programs that `package standalone` puts in front of a bundle."""

from pathlib import Path


def path(target: str) -> Path:
    """Return the path of the runner for a target, such as linux-x64; there is no file for an unknown target."""
    return Path(__file__).with_name(target)
