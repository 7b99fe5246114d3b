"""Open a file behind a URL as a stream, with fsspec, from the byte where the last download was interrupted.

HTTP takes a single request: for the rest of a file that has not changed (`Range`, `If-Range`), or for a file unless it
is the one that was downloaded before (`If-None-Match`, `If-Modified-Since`). A server without support for these
answers with the whole file, which works too. Other file systems are asked for the metadata of the file before and after
it is read.

Exceptions of the libraries are translated here: into `TransferInterrupted` if a retry may help, else into an error for
the user.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from packager.checkpoint.remote import urls
from packager.errors import (
    DownloadRefused,
    ExtraMissing,
    PackagerError,
    UrlNotAFile,
    UrlNotFound,
    UrlRefused,
    UrlUnreachable,
    UrlUnsupported,
)

STREAM_CHUNK_BYTES = 4 << 20
_READ_BUFFER_BYTES = 256 << 10  # small, as aiohttp drops what is still unread when a connection breaks
_CONNECT_TIMEOUT_SECONDS, _READ_TIMEOUT_SECONDS = 30, 60  # to reach a server, and between two reads
_TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # worth a retry
_VERSION_FIELDS = (
    "ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "modified", "created", "VersionId",
    "generation", "md5Hash", "content_md5",
)  # fmt: skip
_PROTOCOL_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs",
    "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip
_CREDENTIAL_HINTS = {
    "s3": "aws configure, AWS_PROFILE or AWS_ACCESS_KEY_ID are where s3fs looks",
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS",
    "http": "~/.netrc, or a signed URL that has not expired",
}


@dataclass(frozen=True)
class RemoteVersion:
    """The metadata of a remote file: its size in bytes, if the server knows it, and validators that change with it."""

    size: int | None
    marks: Mapping[str, str]

    def matches(self, other: RemoteVersion) -> bool:
        """Tell whether two versions have the same content: they share a validator, and all that they share agree."""
        shared = set(self.marks) & set(other.marks)
        return bool(shared) and self.size == other.size and all(self.marks[key] == other.marks[key] for key in shared)


@dataclass(frozen=True)
class ResumeOffset:
    """Where to resume: the first `offset` bytes of this version are present."""

    offset: int
    version: RemoteVersion


@dataclass(frozen=True)
class RemoteStream:
    """An open stream of a version of a file, starting at the byte `offset`.

    `read(size)` returns at most `size` bytes, and none at the end. `is_unchanged()`, called at the end, tells whether
    the file is still the one that was opened.
    """

    version: RemoteVersion
    offset: int
    read: Callable[[int], bytes]
    is_unchanged: Callable[[], bool]


class TransferInterrupted(Exception):
    """A transfer failed in a way that a retry may fix.

    `server_reached` says whether there was a connection at all; `restart` that the bytes so far belong to a different
    version of the file.
    """

    def __init__(self, why: str, *, server_reached: bool, restart: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.server_reached = server_reached
        self.restart = restart


@contextmanager
def open_remote(
    url: str, where: str | None, start: ResumeOffset | None, previous: RemoteVersion | None
) -> Iterator[RemoteStream | None]:
    """Open a file from `start`, or from its first byte; yield None if it is still the `previous` version.

    Raises `TransferInterrupted`, also from the stream's `read`, `UrlUnsupported`, `UrlNotFound`, `UrlRefused`,
    `UrlUnreachable`, `UrlNotAFile`, `DownloadRefused` or `ExtraMissing`.
    """
    with ExitStack() as stack:
        with _translate_errors(url, where):
            system, path = _open_filesystem(url, where)
            if urls.is_http(url):
                stream = _open_http_stream(system, path, start, previous)
                stack.callback(stream.close)
                body = _interpret_response(stream, url, where, start, previous)
            else:
                version = _read_version(system, path, url, where)
                body = None
                if previous is None or not previous.matches(version):
                    stream = stack.enter_context(system.open(path, "rb", block_size=STREAM_CHUNK_BYTES))
                    body = _open_plain_stream(system, path, url, where, stream, version, start)
        yield body


def list_remote_folder(url: str, where: str | None) -> list[str] | None:
    """Return the names of the files in the folder of a URL; None if the URL names a file.

    Raises whatever `open_remote` raises. HTTP has no folders: a URL that ends with a slash is refused.
    """
    if urls.is_http(url):
        if urls.local_file_name(url):
            return None
        hint = "name the file, or the NAME.index.json of a sharded checkpoint"
        raise UrlNotAFile(urls.redact_url(url), where, "a folder cannot be listed over HTTP", hint)
    with _translate_errors(url, where):
        system, path = _open_filesystem(url, where)
        if system.info(path)["type"] != "directory":
            return None
        entries = system.ls(path, detail=True)
    return sorted({str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries})


def _open_filesystem(url: str, where: str | None) -> tuple[Any, str]:
    """Return the file system of a URL, without cached listings, and the path in it."""
    protocol = re.split(r"::|://", url, maxsplit=1)[0].lower()
    purpose = f"reading {urls.redact_url(url)}"
    try:
        fsspec = importlib.import_module("fsspec")
    except ModuleNotFoundError:
        raise ExtraMissing("fsspec", purpose, "pip install 'torch-packager[remote]'") from None
    configured = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {}
    if urls.is_http(url):
        # Proxies and ~/.netrc are read from the environment; an escaped URL, such as a signed one, stays as it is.
        options["client_kwargs"] = {"trust_env": True, **configured.get("client_kwargs", {})}
        options["encoded"] = re.fullmatch(r"[!-~]+", url) is not None
    try:
        system, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        package = _PROTOCOL_PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else "pip install 'torch-packager[remote]'"
        raise ExtraMissing(package or error.name or "aiohttp", purpose, hint) from None
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise
        hint = "https, s3, gs and file are supported, and whatever else fsspec has a file system for"
        raise UrlUnsupported(urls.redact_url(url), where, str(error), hint) from None
    system.invalidate_cache()
    return system, path


# -- HTTP -------------------------------------------------------------------------------------


def _open_http_stream(system: Any, url: str, start: ResumeOffset | None, previous: RemoteVersion | None) -> Any:
    """Return fsspec's stream of a single request; its attribute `r` is aiohttp's response."""
    aiohttp = importlib.import_module("aiohttp")
    headers = {**system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start is not None and (validator := _validator(start.version)) is not None:
        headers |= {"Range": f"bytes={start.offset}-", "If-Range": validator}
    elif previous is not None and "ETag" in previous.marks:
        headers["If-None-Match"] = previous.marks["ETag"]
    elif previous is not None and "Last-Modified" in previous.marks:
        headers["If-Modified-Since"] = previous.marks["Last-Modified"]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_SECONDS, sock_read=_READ_TIMEOUT_SECONDS)
    # block_size=0 makes it a plain stream, which ignores the size; passing one saves the request that would ask for it.
    return system.open(
        url, "rb", block_size=0, size=1, headers=headers, timeout=timeout, read_bufsize=_READ_BUFFER_BYTES
    )


def _validator(version: RemoteVersion) -> str | None:
    """Return the validator for If-Range: a strong ETag, or the time of the last modification."""
    etag = version.marks.get("ETag")
    return etag if etag is not None and not etag.startswith("W/") else version.marks.get("Last-Modified")


def _interpret_response(
    stream: Any, url: str, where: str | None, start: ResumeOffset | None, previous: RemoteVersion | None
) -> RemoteStream | None:
    """Return the stream of an HTTP response; None if the file is still the `previous` version."""
    response = stream.r
    headers = response.headers
    if response.status == 304 and previous is not None:
        return None
    if response.status not in (200, 203, 206):
        raise UrlUnreachable(
            urls.redact_url(url), where, f"the server answers {response.status}", "is it the URL of a file?"
        )
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", ""):
        why = f"the server compresses it ({encoding}) without being asked: a pinned digest would not be the file's"
        raise DownloadRefused(urls.redact_url(url), where, why, "store it without Content-Encoding")
    length = headers.get("Content-Length", "")
    marks = {name: headers[name] for name in ("ETag", "Last-Modified") if headers.get(name)}
    offset, size = 0, int(length) if length.isdecimal() else None
    if response.status == 206:
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        if start is None or content_range is None or int(content_range[1]) != start.offset:
            raise TransferInterrupted(
                "the server answers with a part that was not asked for", server_reached=True, restart=True
            )
        offset, size = start.offset, int(content_range[2])
        if not RemoteVersion(size, marks).matches(start.version):
            raise TransferInterrupted("the file changed in the meantime", server_reached=True, restart=True)
    version = RemoteVersion(size, marks)
    if previous is not None and offset == 0 and version.matches(previous):
        return None  # the server ignores If-None-Match, but its validators show it

    def read(size: int) -> bytes:
        with _translate_errors(url, where):
            return bytes(stream.read(size))

    return RemoteStream(version, offset, read, lambda: True)


# -- other file systems -----------------------------------------------------------------------


def _read_version(system: Any, path: str, url: str, where: str | None) -> RemoteVersion:
    info = system.info(path)
    if info["type"] == "directory":
        raise UrlNotAFile(urls.redact_url(url), where, "it is a folder", "name a file in it")
    size = info.get("size")
    return RemoteVersion(size, {name: str(info[name]) for name in _VERSION_FIELDS if info.get(name) is not None})


def _open_plain_stream(
    system: Any, path: str, url: str, where: str | None, stream: Any, version: RemoteVersion, start: ResumeOffset | None
) -> RemoteStream:  # fmt: skip
    offset = 0
    if start is not None and start.version.matches(version):
        offset = start.offset
        stream.seek(offset)

    def read(size: int) -> bytes:
        with _translate_errors(url, where):
            return bytes(stream.read(size))

    def is_unchanged() -> bool:
        with _translate_errors(url, where):
            system.invalidate_cache()
            return _read_version(system, path, url, where) == version

    return RemoteStream(version, offset, read, is_unchanged)


# -- errors -----------------------------------------------------------------------------------


@contextmanager
def _translate_errors(url: str, where: str | None) -> Iterator[None]:
    try:
        yield
    except (PackagerError, TransferInterrupted):
        raise
    except Exception as error:  # noqa: BLE001 (each file system has its own exceptions)
        raise _translate_error(error, url, where) from None


def _translate_error(error: Exception, url: str, where: str | None) -> Exception:
    """Return a library's exception as an error for the user, or as `TransferInterrupted`."""
    status = getattr(error, "status", None)  # of aiohttp
    status = status if isinstance(status, int) else None
    text = urls.redact_text(str(error).strip().partition("\n")[0])
    description = f"{type(error).__name__}: {text}" if text else type(error).__name__
    shown = urls.redact_url(url)
    if status == 416:
        return TransferInterrupted("the file is shorter than before", server_reached=True, restart=True)
    if status in _TRANSIENT_STATUSES:
        return TransferInterrupted(f"the server answers {status}", server_reached=True)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return UrlNotFound(shown, where, f"the server answers {status or 404}" if urls.is_http(url) else "no such file")
    if isinstance(error, IsADirectoryError):
        return UrlNotAFile(shown, where, "it is a folder", "name a file in it")
    if isinstance(error, PermissionError) or status in (401, 403, 407) or "Credential" in type(error).__name__:
        kind = "http" if urls.is_http(url) else "gs" if url.lower().startswith("g") else "s3"
        why = f"the server answers {status}" if status else description
        return UrlRefused(shown, where, why, _CREDENTIAL_HINTS[kind])
    if status is not None:
        return UrlUnreachable(shown, where, f"the server answers {status}", "open the URL in a browser, or with curl")
    if getattr(error, "errno", None) == errno.EBUSY:  # s3fs: its ETag has changed
        return TransferInterrupted("the file changed in the meantime", server_reached=True, restart=True)
    if isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return UrlUnsupported(shown, where, description, "is it spelled correctly?")
    return TransferInterrupted(description, server_reached=_is_server_reached(error))


def _is_server_reached(error: Exception) -> bool:
    """Tell whether there was a connection: an unknown host or a closed port is rarely worth a retry."""
    names = {ancestor.__name__ for ancestor in type(error).__mro__}
    return not names & {"ClientConnectorError", "EndpointConnectionError", "gaierror", "ConnectionRefusedError"}
