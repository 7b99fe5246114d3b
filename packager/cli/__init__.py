"""The command `package`."""

from packager.cli.main import main

__all__ = ["main"]
