"""One file behind a URL → one file here, however often the connection breaks on the way.

What has come stays, with a record beside it: of which version of the file it is, how many bytes are good, and
their SHA-256. The next try, in this process or another, goes on from there, after it has read them once more:
bytes that do not have their digest, or are of another version, are dropped. Tries that bring nothing are
counted, with longer and longer pauses in between, and end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from packager.checkpoint.remote import transport, urls
from packager.checkpoint.remote.transport import (
    STREAM_CHUNK_BYTES,
    RemoteStream,
    RemoteVersion,
    ResumeOffset,
    TransferInterrupted,
)
from packager.errors import DownloadRefused, UrlUnreachable

RETRY_DELAYS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
MAX_UNSIZED_BYTES = 64 << 30  # of a file whose size the server does not tell
_MIN_PROGRESS_BYTES = 1 << 20  # a try that brought so much was none in vain
_RECORD_INTERVAL_BYTES = 64 << 20  # so much may be lost when the process is killed

T = TypeVar("T")
ProgressCallback = Callable[[int, int | None], None]
"""Hears how many bytes are here, and of how many, where that is known."""


@dataclass(frozen=True)
class DownloadRecord:
    """A file, or its beginning, that is here: bytes, their SHA-256, and the version that they are of."""

    bytes: int
    sha256: str
    version: RemoteVersion

    @staticmethod
    def from_dict(plain: Any) -> DownloadRecord:
        """From what `asdict` made of one."""
        return DownloadRecord(plain["bytes"], plain["sha256"], RemoteVersion(**plain["version"]))


def download_file(
    url: str, where: str | None, partial_path: Path, previous: DownloadRecord | None, report: ProgressCallback
) -> DownloadRecord | None:
    """Bring a file to `part`; None where it is still the `known` one. What `part` has already is gone on from.

    Raises what `transport.opened` raises, `UrlUnreachable` for a connection that stays broken, and
    OSError where it cannot be written. What has come then stays in `part`.
    """

    def attempt() -> DownloadRecord | None:
        good = _read_resume_point(partial_path)
        start = ResumeOffset(good.record.bytes, good.record.version) if good is not None else None
        try:
            with transport.open_remote(url, where, start, previous.version if previous else None) as body:
                return None if body is None else _append_stream(body, partial_path, good, url, where, report)
        except TransferInterrupted as broken:
            if broken.restart:
                discard_partial(partial_path)
            raise

    return retry_with_backoff(url, where, attempt, lambda: _file_size(partial_path))


def retry_with_backoff(url: str, where: str | None, attempt: Callable[[], T], bytes_present: Callable[[], int]) -> T:
    """Attempt it until it is done, or was `Broken` too often without having more. Raises `UrlUnreachable`."""
    furthest, tries, reached = bytes_present(), 0, False
    while True:
        try:
            return attempt()
        except TransferInterrupted as broken:
            failure = broken
        reached = reached or failure.server_reached
        tries = tries + 1
        if bytes_present() >= furthest + _MIN_PROGRESS_BYTES:
            furthest, tries = bytes_present(), 1
        if not reached or tries > len(RETRY_DELAYS_SECONDS):
            raise _gave_up_error(url, where, failure, tries, bytes_present())
        time.sleep(RETRY_DELAYS_SECONDS[tries - 1])


def discard_partial(part: Path) -> None:
    """Drop what has come."""
    part.unlink(missing_ok=True)
    _record_path(part).unlink(missing_ok=True)


def _append_stream(
    body: RemoteStream, part: Path, good: _ResumePoint | None, url: str, where: str | None, report: ProgressCallback
) -> DownloadRecord:
    """Append what the stream brings, up to the size that was announced. Raises as `download` does, and `Broken`."""
    size = body.version.size
    limit = MAX_UNSIZED_BYTES if size is None else size
    done, found = (body.offset, good.hasher) if good is not None and body.offset else (0, hashlib.sha256())
    held = DownloadRecord(done, found.hexdigest(), body.version)
    with part.open("r+b" if done else "wb") as stream:
        if size is not None and shutil.disk_usage(part.parent).free < size - done:
            raise OSError(errno.ENOSPC, "no space is left")
        stream.seek(done)
        stream.truncate()
        try:
            report(done, size)
            while done <= limit and (chunk := body.read(min(STREAM_CHUNK_BYTES, limit - done + 1))):
                stream.write(chunk)
                found.update(chunk)
                done += len(chunk)
                if done - held.bytes >= _RECORD_INTERVAL_BYTES:
                    held = _write_record(part, stream, DownloadRecord(done, found.hexdigest(), body.version))
                report(done, size)
        finally:
            held = _write_record(part, stream, DownloadRecord(done, found.hexdigest(), body.version))
        os.fsync(stream.fileno())
    if done > limit:
        discard_partial(part)
        raise _too_long_error(url, where, size)
    if size is not None and done < size:
        raise TransferInterrupted(f"the connection ended after {done} of {size} bytes", reached=True)
    if not body.is_unchanged():
        raise TransferInterrupted("the file changed meanwhile", reached=True, anew=True)
    return held


def _too_long_error(url: str, where: str | None, size: int | None) -> DownloadRefused:
    if size is None:
        why = f"the server does not say how long it is, and sends more than {MAX_UNSIZED_BYTES} bytes"
        return DownloadRefused(urls.redact_url(url), where, why, "is it a file? download it by hand, and name its path")
    why = f"the server announced {size} bytes, and sends more"
    return DownloadRefused(
        urls.redact_url(url), where, why, "the server is at fault: download it by hand, and look at it"
    )


def _gave_up_error(url: str, where: str | None, failure: TransferInterrupted, tries: int, have: int) -> UrlUnreachable:
    why = failure.why if tries < 2 else f"tried {tries} times: {failure.why}"
    kept = f"{have} bytes of it are kept: run it again, and it goes on from there"
    hint = kept if have else "check the network, the host's name and the proxy; what is pinned and here needs none"
    return UrlUnreachable(urls.redact_url(url), where, why, hint)


# -- what has come already ----------------------------------------------------------------------


def _record_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_record(part: Path, stream: IO[bytes], held: DownloadRecord) -> DownloadRecord:
    """Write down what of `part` is good."""
    stream.flush()
    new = _record_path(part).with_name(f"{part.name}.json.new")
    new.write_text(json.dumps(asdict(held)), encoding="utf-8")
    os.replace(new, _record_path(part))
    return held


@dataclass(frozen=True)
class _ResumePoint:
    """What of a file's beginning is good, and the SHA-256 that goes on from there."""

    record: DownloadRecord
    hasher: Any


def _read_resume_point(part: Path) -> _ResumePoint | None:
    """What of `part` can be gone on from; whatever else is there goes."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        held = DownloadRecord.from_dict(json.loads(_record_path(part).read_text(encoding="utf-8")))
        if held.bytes and _file_size(part) >= held.bytes:
            found = hashlib.sha256()
            with part.open("rb") as stream:
                left = held.bytes
                while left and (chunk := stream.read(min(STREAM_CHUNK_BYTES, left))):
                    found.update(chunk)
                    left -= len(chunk)
            if found.hexdigest() == held.sha256:
                return _ResumePoint(held, found)
    discard_partial(part)
    return None


def _file_size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0
