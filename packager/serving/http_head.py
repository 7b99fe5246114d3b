"""The head of an HTTP/1.1 request: the bytes up to the empty line, parsed by httptools.

Clients repeat their heads: all requests of one client to one model, of one size, have the same bytes there. So parsed
heads are remembered by their bytes, which makes a lookup of what would be most of the work of a small request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

import httptools

from packager.serving.messages import Rejected

MAX_HEAD_BYTES = 32 << 10
_MAX_REMEMBERED = 512
_MAX_REMEMBERED_BYTES = 2048


class Head(NamedTuple):
    """A parsed head. `length` is that of the body, -1 if it comes in chunks."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    length: int
    keep_alive: bool


HEADS: dict[bytes, Head] = {}
"""Parsed heads by their bytes; the heads of one process, whatever the connection."""


def parse_head(content: bytes) -> Head:
    """Parse a head that ends with its empty line, and remember it. Raises `Rejected`, 400, 501 or 505."""
    head = _Parser().parse(content)
    if len(content) <= _MAX_REMEMBERED_BYTES:
        if len(HEADS) >= _MAX_REMEMBERED:
            HEADS.clear()
        HEADS[content] = head
    return head


class _Parser:
    """Collects what httptools finds in one head."""

    def __init__(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._is_complete = False
        self._keep_alive = False
        self._parser: httptools.HttpRequestParser | None = None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding", b"host") and name in self._headers:
            raise ValueError(name)
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._is_complete = True
        if self._parser is not None:  # which forgets this at the end of a message: here, if it has no body
            self._keep_alive = self._parser.should_keep_alive()

    def parse(self, content: bytes) -> Head:
        parser = self._parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(content[:-1])
            ended_early = self._is_complete
            parser.feed_data(content[-1:])
            path = httptools.parse_url(self._url).path
        except httptools.HttpParserUpgrade:
            raise Rejected(501, "protocols other than HTTP/1.1 are not supported") from None
        except httptools.HttpParserError:
            raise Rejected(400, "the request is not valid HTTP") from None
        finally:
            self._parser = None  # they refer to each other
        # Where this parser sees the end of a head, and where one in front of this server does, must not differ.
        if ended_early or not self._is_complete or path is None:
            raise Rejected(400, "the request is not valid HTTP")
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Rejected(505, "only HTTP/1.1 and 1.0 are supported")
        text = path.decode("latin-1")
        keep_alive = version == "1.1" and self._keep_alive
        method = parser.get_method().decode("latin-1")
        return Head(method, unquote(text) if "%" in text else text, self._headers, self._body_length(), keep_alive)

    def _body_length(self) -> int:
        coding = self._headers.get(b"transfer-encoding")
        length = self._headers.get(b"content-length")
        if coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise Rejected(400, "Transfer-Encoding is not chunked alone")
            return -1
        if length is None:
            return 0
        if not length.isdigit() or len(length) > 18:
            raise Rejected(400, "Content-Length is not a number")
        return int(length)
