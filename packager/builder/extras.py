"""The `build` extra: torch, onnx and whatever else only a build imports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from packager.errors import ExtraMissing


@contextmanager
def build_extra(command: str) -> Iterator[None]:
    """Wrap the imports that `command` needs. Raises `ExtraMissing` for a module that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "packager":
            raise
        raise ExtraMissing(error.name or str(error), command) from None
