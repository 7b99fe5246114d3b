"""The log of requests: one line of JSON each, with the ids of the trace that a request belongs to.

What clients send is escaped by JSON, and cut off where it is long.
"""

from __future__ import annotations

import logging
import re
import time

import orjson

from packager.serving.messages import Request

_log = logging.getLogger("packager.serving")
_MAX_TEXT = 200
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


def is_traceparent(value: bytes) -> bool:
    """Return whether a header is a valid `traceparent` (https://www.w3.org/TR/trace-context/)."""
    return len(value) <= 512 and _TRACEPARENT.fullmatch(value) is not None


def log_request(request: Request, status: int, seconds: float, level: int, message: str | None = None) -> None:
    """Log an answered request at a level of `logging`; `message` is the error that it was answered with."""
    if not _log.isEnabledFor(level):
        return
    record: dict[str, object] = {
        "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}Z",
        "level": logging.getLevelName(level).lower(),
        "method": request.method[:_MAX_TEXT],
        "path": request.path[:_MAX_TEXT],
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
        "request_bytes": len(request.body),
    }
    match = _TRACEPARENT.fullmatch(request.headers.get(b"traceparent", b"")[:512])
    if match is not None:
        record["trace_id"], record["span_id"] = match[1].decode(), match[2].decode()
    if message is not None:
        record["error"] = message[:1000]
    _log.log(level, "%s", orjson.dumps(_printable(record)).decode())


def _printable(record: dict[str, object]) -> dict[str, object]:
    """Replace what UTF-8 cannot express, so that JSON can be written whatever a client sent."""
    return {
        key: value.encode(errors="replace").decode() if isinstance(value, str) else value
        for key, value in record.items()
    }
