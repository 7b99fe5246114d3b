"""One file behind a URL, as a stream that starts where the last one broke: fsspec does the talking.

HTTP is asked with one request: for what follows the bytes that are here already, if the file is still the
one they are of (`Range`, `If-Range`), or for the file, unless it is the one that is known (`If-None-Match`,
`If-Modified-Since`). A server that knows nothing of this answers with the whole file, and that is taken.
Other file systems are asked for what they know of the file before and after it is read.

Here every library's exception becomes one of ours: `Broken` where another try may help, else an error.
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
_READ_BUFFER_BYTES = 256 << 10  # aiohttp drops what nobody has read yet when a connection breaks
_CONNECT_TIMEOUT_SECONDS, _READ_TIMEOUT_SECONDS = 30, 60  # to reach a server, and between two pieces of an answer
_TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # HTTP: not now
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
    """What a server says of a file without its content: bytes, where it knows them, and marks that change with it."""

    size: int | None
    marks: Mapping[str, str]

    def matches(self, other: RemoteVersion) -> bool:
        """Whether two answers speak of the same content: the marks that both have agree, and there is one."""
        shared = set(self.marks) & set(other.marks)
        return bool(shared) and self.size == other.size and all(self.marks[one] == other.marks[one] for one in shared)


@dataclass(frozen=True)
class ResumeOffset:
    """Where to go on: so many bytes of this version are here."""

    offset: int
    version: RemoteVersion


@dataclass(frozen=True)
class RemoteStream:
    """An open stream, whose first byte is that at `offset`; `read` gives at most so many bytes, and none at its end."""

    version: RemoteVersion
    offset: int
    read: Callable[[int], bytes]
    is_unchanged: Callable[[], bool]  # asked at the end: whether the file is still the one that was opened


class TransferInterrupted(Exception):
    """It did not work this time. `reached` is whether a server was there; `anew` that the rest is of another file."""

    def __init__(self, why: str, *, reached: bool, anew: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.server_reached = reached
        self.restart = anew


@contextmanager
def open_remote(
    url: str, where: str | None, start: ResumeOffset | None, known: RemoteVersion | None
) -> Iterator[RemoteStream | None]:
    """Yields the file's stream; None where the file is still the `known` one.

    Raises `Broken`, from the stream's `read` too, `UrlUnsupported`, `UrlNotFound`, `UrlRefused`,
    `UrlUnreachable`, `UrlNotAFile`, `DownloadRefused` or `ExtraMissing`.
    """
    with ExitStack() as stack:
        with _translate_errors(url, where):
            system, path = _open_filesystem(url, where)
            if urls.is_http(url):
                stream = _open_http_stream(system, path, start, known)
                stack.callback(stream.close)
                body = _interpret_response(stream, url, where, start, known)
            else:
                version = _read_version(system, path, url, where)
                body = None
                if known is None or not known.matches(version):
                    stream = stack.enter_context(system.open(path, "rb", block_size=STREAM_CHUNK_BYTES))
                    body = _open_plain_stream(system, path, url, where, stream, version, start)
        yield body


def list_remote_folder(url: str, where: str | None) -> list[str] | None:
    """The names of the files in the folder that a URL names; None where it names a file.

    Raises what `opened` raises. HTTP has no folders: a URL that ends with a slash is refused.
    """
    if urls.is_http(url):
        if urls.local_file_name(url):
            return None
        hint = "name the file, or the NAME.index.json of a sharded checkpoint"
        raise UrlNotAFile(urls.redact_url(url), where, "what a folder holds cannot be told over HTTP", hint)
    with _translate_errors(url, where):
        system, path = _open_filesystem(url, where)
        if system.info(path)["type"] != "directory":
            return None
        found = system.ls(path, detail=True)
    return sorted({str(one["name"]).rstrip("/").rpartition("/")[2] for one in found})


def _open_filesystem(url: str, where: str | None) -> tuple[Any, str]:
    """The file system, with nothing in its memory of earlier answers, and the path in it."""
    protocol = re.split(r"::|://", url, maxsplit=1)[0].lower()
    what = f"reading {urls.redact_url(url)}"
    try:
        fsspec = importlib.import_module("fsspec")
    except ModuleNotFoundError:
        raise ExtraMissing("fsspec", what, "pip install 'torch-packager[remote]'") from None
    configured = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {}
    if urls.is_http(url):
        # Proxies and ~/.netrc are the environment's to say; what is escaped already, as signatures are, stays as it is.
        options["client_kwargs"] = {"trust_env": True, **configured.get("client_kwargs", {})}
        options["encoded"] = re.fullmatch(r"[!-~]+", url) is not None
    try:
        system, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        package = _PROTOCOL_PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else "pip install 'torch-packager[remote]'"
        raise ExtraMissing(package or error.name or "aiohttp", what, hint) from None
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise
        known = "https, s3, gs and file are, and all that fsspec has a file system for"
        raise UrlUnsupported(urls.redact_url(url), where, str(error), known) from None
    system.invalidate_cache()
    return system, path


# -- HTTP -------------------------------------------------------------------------------------


def _open_http_stream(system: Any, url: str, start: ResumeOffset | None, known: RemoteVersion | None) -> Any:
    """Fsspec's stream of one request; its `r` is aiohttp's response."""
    aiohttp = importlib.import_module("aiohttp")
    headers = {**system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start is not None and (validator := _validator(start.version)) is not None:
        headers |= {"Range": f"bytes={start.offset}-", "If-Range": validator}
    elif known is not None and "ETag" in known.marks:
        headers["If-None-Match"] = known.marks["ETag"]
    elif known is not None and "Last-Modified" in known.marks:
        headers["If-Modified-Since"] = known.marks["Last-Modified"]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_SECONDS, sock_read=_READ_TIMEOUT_SECONDS)
    # Without blocks it is a plain stream; the size, which is of no use to that, spares a question for it.
    return system.open(
        url, "rb", block_size=0, size=1, headers=headers, timeout=timeout, read_bufsize=_READ_BUFFER_BYTES
    )


def _validator(version: RemoteVersion) -> str | None:
    """What tells two versions apart to the byte: a strong ETag, or the date of the last change."""
    etag = version.marks.get("ETag")
    return etag if etag is not None and not etag.startswith("W/") else version.marks.get("Last-Modified")


def _interpret_response(
    stream: Any, url: str, where: str | None, start: ResumeOffset | None, known: RemoteVersion | None
) -> RemoteStream | None:
    response = stream.r
    headers = response.headers
    if response.status == 304 and known is not None:
        return None
    if response.status not in (200, 203, 206):
        raise UrlUnreachable(
            urls.redact_url(url), where, f"the server answers {response.status}", "is it a file's URL?"
        )
    packed = headers.get("Content-Encoding", "identity").lower()
    if packed not in ("identity", ""):
        why = f"the server sends it compressed ({packed}), unasked: a pinned digest would not be that of the file"
        raise DownloadRefused(urls.redact_url(url), where, why, "store it without Content-Encoding")
    length = headers.get("Content-Length", "")
    marks = {name: headers[name] for name in ("ETag", "Last-Modified") if headers.get(name)}
    offset, size = 0, int(length) if length.isdecimal() else None
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        if start is None or found is None or int(found[1]) != start.offset:
            raise TransferInterrupted(
                "the server answers with another part than was asked for", reached=True, anew=True
            )
        offset, size = start.offset, int(found[2])
        if not RemoteVersion(size, marks).matches(start.version):
            raise TransferInterrupted("the file changed meanwhile", reached=True, anew=True)
    version = RemoteVersion(size, marks)
    if known is not None and offset == 0 and version.matches(known):
        return None  # a server that ignores the question, and tells all the same

    def read(most: int) -> bytes:
        with _translate_errors(url, where):
            return bytes(stream.read(most))

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

    def read(most: int) -> bytes:
        with _translate_errors(url, where):
            return bytes(stream.read(most))

    def unchanged() -> bool:
        with _translate_errors(url, where):
            system.invalidate_cache()
            now = _read_version(system, path, url, where)
        return now == version

    return RemoteStream(version, offset, read, unchanged)


# -- what goes wrong --------------------------------------------------------------------------


@contextmanager
def _translate_errors(url: str, where: str | None) -> Iterator[None]:
    try:
        yield
    except (PackagerError, TransferInterrupted):
        raise
    except Exception as error:  # noqa: BLE001 (every file system has exceptions of its own)
        raise _translate_error(error, url, where) from None


def _translate_error(error: Exception, url: str, where: str | None) -> Exception:
    """What a library's exception means: for the user, or for another try."""
    status = getattr(error, "status", None)  # aiohttp's
    status = status if isinstance(status, int) else None
    text = urls.redact_text(str(error).strip().partition("\n")[0])
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    named = urls.redact_url(url)
    if status == 416:
        return TransferInterrupted("the file is shorter than it was", reached=True, anew=True)
    if status in _TRANSIENT_STATUSES:
        return TransferInterrupted(f"the server answers {status}", reached=True)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return UrlNotFound(named, where, f"the server answers {status or 404}" if urls.is_http(url) else "no such file")
    if isinstance(error, IsADirectoryError):
        return UrlNotAFile(named, where, "it is a folder", "name a file in it")
    if isinstance(error, PermissionError) or status in (401, 403, 407) or "Credential" in type(error).__name__:
        kind = "http" if urls.is_http(url) else "gs" if url.lower().startswith("g") else "s3"
        why = f"the server answers {status}" if status else said
        return UrlRefused(named, where, why, _CREDENTIAL_HINTS[kind])
    if status is not None:
        return UrlUnreachable(named, where, f"the server answers {status}", "open the URL in a browser, or with curl")
    if getattr(error, "errno", None) == errno.EBUSY:  # s3fs: its ETag is another one
        return TransferInterrupted("the file changed meanwhile", reached=True, anew=True)
    if isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return UrlUnsupported(named, where, said, "is it spelled right?")
    return TransferInterrupted(said, reached=_is_server_reached(error))


def _is_server_reached(error: Exception) -> bool:
    """Whether there was a connection that broke: a name that nobody knows or a closed port mend themselves rarely."""
    names = {one.__name__ for one in type(error).__mro__}
    return not names & {"ClientConnectorError", "EndpointConnectionError", "gaierror", "ConnectionRefusedError"}
