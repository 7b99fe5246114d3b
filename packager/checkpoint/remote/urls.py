"""What a URL says by itself: whether a text is one, how it may be shown, and which URL lies beside it.

A URL may hold secrets: a name and a password before the host, a signature or a token in the query. They are
needed to open it, and nothing else: `shown` is what is printed and stored.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from packager.errors import UrlUnsupported

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"  # of two letters at least: one is a drive
_IS_URL = re.compile(rf"{_SCHEME}(::{_SCHEME})*://")
_CHAIN_SEPARATOR = re.compile(rf"::(?={_SCHEME}(?:::|://))")  # between the links of a chain: zip://best.pt::https://…
_URL_IN_TEXT = re.compile(rf"{_SCHEME}://[^\s'\"<>]*")
_PASSWORD = re.compile(r"[^/@:\[]*:(?!\d*(?:[/?#]|$)).*?@")  # also one with a character that it may not hold
_SAFE_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def is_url(text: str) -> bool:
    """Whether a checkpoint's path is a URL: it has a protocol, of two letters or more."""
    return _IS_URL.match(text) is not None


def is_remote(text: str) -> bool:
    """Whether it is a URL that has to be downloaded."""
    return is_url(text) and not text.lower().startswith("file://")


def redact_url(url: str) -> str:
    """A URL without name, password, query and fragment; `?…` stands where there was a query."""
    return "::".join(_redact_link(one) for one in _CHAIN_SEPARATOR.split(url))


def redact_text(text: str) -> str:
    """A text in which every URL is as it may be shown."""
    return _URL_IN_TEXT.sub(lambda found: redact_url(found[0]), text)


def local_file_path(url: str, where: str | None) -> Path | None:
    """The path of a file:// URL; None for others. Raises `UrlUnsupported` where it names another machine."""
    if not url.lower().startswith("file://"):
        return None
    found = urlsplit(url)
    if found.netloc not in ("", "localhost") or not found.path:
        why = f"a file:// URL names a file of this machine, and this one names the host {found.netloc!r}"
        raise UrlUnsupported(redact_url(url), where, why, "write file:///absolute/path, or the path alone")
    return Path(url2pathname(found.path))


def is_http(url: str) -> bool:
    """Whether HTTP is what the URL is opened by."""
    return url.lower().startswith(("http://", "https://"))


def local_file_name(url: str) -> str:
    """The last part of a URL's path, as a file may be called here; empty for one that ends with a slash."""
    _, path, _, _ = _split_url(url)
    folder, _, name = path.rpartition("/")
    if is_http(url):
        name = unquote(name) if folder else ""  # the host alone
    if not name or _SAFE_FILE_NAME.fullmatch(name):
        return name
    suffix = Path(name.replace("\0", "")).suffix
    return f"checkpoint{suffix}" if _SAFE_FILE_NAME.fullmatch(suffix[1:]) else "checkpoint"


def sibling_url(url: str, name: str) -> str:
    """The URL of `name` in the folder of the file that `url` names; the query, which may give access, stays."""
    before, path, query, rest = _split_url(url)
    name = quote(name) if is_http(url) else name
    return f"{before}{path[: path.rfind('/') + 1]}{name}{query}{rest}"


def child_url(url: str, name: str) -> str:
    """The URL of `name` in the folder that `url` names."""
    before, path, query, rest = _split_url(url)
    return f"{before}{path.rstrip('/')}/{name}{query}{rest}"


def _split_url(url: str) -> tuple[str, str, str, str]:
    """The protocol, the path with its host, the query, and what a chain has after that."""
    links = _CHAIN_SEPARATOR.split(url)
    at = next(number for number, link in enumerate(links) if "://" in link)
    protocol, _, address = links[at].partition("://")
    path = re.split(r"[?#]", address, maxsplit=1)[0]
    before = "::".join([*links[:at], f"{protocol}://"])
    rest = "".join(f"::{link}" for link in links[at + 1 :])
    return before, path, address[len(path) :], rest


def _redact_link(link: str) -> str:
    protocol, found, address = link.partition("://")
    if not found:
        return link
    secret = _PASSWORD.match(address)
    address = address[secret.end() :] if secret else address
    path, marks, _ = re.split(r"([?#])", address, maxsplit=1) if re.search(r"[?#]", address) else (address, "", "")
    host, slash, rest = path.partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{rest}{'?…' if marks else ''}"
