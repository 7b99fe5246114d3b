"""The `serve` extra: the packages that only a server imports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from packager.errors import ExtraMissing


@contextmanager
def serve_extra(what: str) -> Iterator[None]:
    """Wrap the imports of a server. Raises `ExtraMissing` for a module that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "packager":
            raise
        raise ExtraMissing(error.name or str(error), what, "pip install 'torch-packager[serve]'") from None
