"""HTTP as the routes see it: a request with its body, an answer, and the exception that becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import orjson

Header = tuple[bytes, bytes]
JSON_HEADERS: tuple[Header, ...] = ((b"content-type", b"application/json"),)


class Request(NamedTuple):
    """A request with its whole body. `path` is decoded and lacks the query; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes | bytearray


class Response(NamedTuple):
    """An answer: `parts` are its body in order. The length of the body is not among the headers."""

    status: int
    headers: tuple[Header, ...]
    parts: Sequence[bytes | memoryview]


Respond = Callable[[Response], None]
"""Takes the answer to a request, once, in the thread of the event loop."""


class Rejected(Exception):
    """A request that is answered with an error: `{"error": message}` and an HTTP status."""

    def __init__(self, status: int, message: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def json_response(status: int, value: object) -> Response:
    """Return an answer with a value as JSON."""
    return Response(status, JSON_HEADERS, (orjson.dumps(value),))


def error_response(error: Rejected) -> Response:
    """Return the answer to a request that is rejected."""
    # A lone surrogate, which JSON can escape, has no UTF-8.
    message = error.message.encode(errors="replace").decode()
    return Response(error.status, JSON_HEADERS + error.headers, (orjson.dumps({"error": message}),))
