"""Keep the bodies of all requests within a budget of memory."""

from __future__ import annotations

from packager.serving.messages import Rejected
from packager.serving.settings import Settings

_CLOSE = (b"connection", b"close")


class BodyBudget:
    """Count the bytes of the bodies that are received, waiting or run."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_request_bytes
        self._total_limit = settings.max_buffered_bytes
        self._total = 0

    def check_length(self, content_length: bytes | None) -> None:
        """Check a Content-Length before the body arrives. Raises `Rejected`, 413."""
        if content_length is not None and content_length.isdigit() and int(content_length[:20]) > self._limit:
            raise self._too_large()

    def reserve(self, size: int, before: int) -> int:
        """Add bytes of a body of which `before` were reserved, and return them. Raises `Rejected`: 413 or 503."""
        if before + size > self._limit:
            raise self._too_large()
        if self._total + size > self._total_limit:
            raise Rejected(503, "too many requests are being received; try again", ((b"retry-after", b"1"), _CLOSE))
        self._total += size
        return size

    def release(self, size: int) -> None:
        """Take back bytes that were reserved."""
        self._total -= size

    def _too_large(self) -> Rejected:
        return Rejected(413, f"the body of the request has more than {self._limit} bytes", (_CLOSE,))
