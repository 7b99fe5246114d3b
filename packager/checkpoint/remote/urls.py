"""Take URLs apart: recognize them, redact them for display, and build the URLs of neighboring files.

A URL may contain secrets: a user name and password before the host, a signature or token in the query. They are needed
only to open it: `redact_url` returns the form that may be printed and stored.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from packager.errors import UrlUnsupported

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"  # two characters at least: a single one is a drive letter
_IS_URL = re.compile(rf"{_SCHEME}(::{_SCHEME})*://")
_CHAIN_SEPARATOR = re.compile(rf"::(?={_SCHEME}(?:::|://))")  # between the links of a chain: zip://best.pt::https://…
_URL_IN_TEXT = re.compile(rf"{_SCHEME}://[^\s'\"<>]*")
_PASSWORD = re.compile(r"[^/@:\[]*:(?!\d*(?:[/?#]|$)).*?@")  # even one with characters that a URL may not contain
_SAFE_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def is_url(text: str) -> bool:
    """Tell whether a checkpoint's path is a URL: it starts with a protocol of two characters or more."""
    return _IS_URL.match(text) is not None


def is_remote(text: str) -> bool:
    """Tell whether a checkpoint's path is a URL that must be downloaded."""
    return is_url(text) and not text.lower().startswith("file://")


def redact_url(url: str) -> str:
    """Return a URL without user name, password, query and fragment; `?…` marks a removed query or fragment."""
    return "::".join(_redact_link(link) for link in _CHAIN_SEPARATOR.split(url))


def redact_text(text: str) -> str:
    """Return a text with every URL in it redacted."""
    return _URL_IN_TEXT.sub(lambda match: redact_url(match[0]), text)


def local_file_path(url: str, where: str | None) -> Path | None:
    """Return the path of a file:// URL; None for other URLs. Raises `UrlUnsupported` if it names a different host."""
    if not url.lower().startswith("file://"):
        return None
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        why = f"a file:// URL names a file on this machine, and this one names the host {parts.netloc!r}"
        raise UrlUnsupported(redact_url(url), where, why, "write file:///absolute/path, or just the path")
    return Path(url2pathname(parts.path))


def is_http(url: str) -> bool:
    """Tell whether a URL is opened over HTTP or HTTPS."""
    return url.lower().startswith(("http://", "https://"))


def local_file_name(url: str) -> str:
    """Return the last part of a URL's path as a safe file name; empty if the path ends with a slash."""
    _, path, _, _ = _split_url(url)
    folder, _, name = path.rpartition("/")
    if is_http(url):
        name = unquote(name) if folder else ""  # only a host
    if not name or _SAFE_FILE_NAME.fullmatch(name):
        return name
    suffix = Path(name.replace("\0", "")).suffix
    return f"checkpoint{suffix}" if _SAFE_FILE_NAME.fullmatch(suffix[1:]) else "checkpoint"


def sibling_url(url: str, name: str) -> str:
    """Return the URL of the file `name` beside the file of a URL; the query, which may grant access, is kept."""
    before, path, query, rest = _split_url(url)
    name = quote(name) if is_http(url) else name
    return f"{before}{path[: path.rfind('/') + 1]}{name}{query}{rest}"


def child_url(url: str, name: str) -> str:
    """Return the URL of the file `name` in the folder of a URL."""
    before, path, query, rest = _split_url(url)
    return f"{before}{path.rstrip('/')}/{name}{query}{rest}"


def _split_url(url: str) -> tuple[str, str, str, str]:
    """Return what precedes the path, the path with its host, the query, and the links of a chain after that."""
    links = _CHAIN_SEPARATOR.split(url)
    position = next(number for number, link in enumerate(links) if "://" in link)
    protocol, _, address = links[position].partition("://")
    path = re.split(r"[?#]", address, maxsplit=1)[0]
    before = "::".join([*links[:position], f"{protocol}://"])
    rest = "".join(f"::{link}" for link in links[position + 1 :])
    return before, path, address[len(path) :], rest


def _redact_link(link: str) -> str:
    protocol, separator, address = link.partition("://")
    if not separator:
        return link
    password = _PASSWORD.match(address)
    path, *query = re.split(r"[?#]", address[password.end() :] if password else address, maxsplit=1)
    host, slash, rest = path.partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{rest}{'?…' if query else ''}"
