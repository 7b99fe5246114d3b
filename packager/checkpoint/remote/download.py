"""Download the file behind a URL, however often the connection breaks on the way.

The bytes received so far stay in a file, with a record beside it: the version of the remote file, the number of good
bytes, and their SHA-256. The next attempt, in this process or a later one, resumes there after it has hashed them
again; bytes with a different digest, or of a different version, are discarded. Attempts that make no progress are
counted, wait longer and longer between each other, and finally fail.
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
from packager.common.private_files import open_private
from packager.errors import DownloadRefused, UrlUnreachable

RETRY_DELAYS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
MAX_UNSIZED_BYTES = 64 << 30  # of a file whose size the server does not announce
_MIN_PROGRESS_BYTES = 1 << 20  # an attempt that brought this much resets the count
_RECORD_INTERVAL_BYTES = 64 << 20  # at most this much is lost if the process is killed

T = TypeVar("T")
ProgressCallback = Callable[[int, int | None], None]
"""Called with the bytes present and the total, or None if the total is unknown."""


@dataclass(frozen=True)
class DownloadRecord:
    """A downloaded file, or the beginning of one: its bytes, their SHA-256, and the version they belong to."""

    bytes: int
    sha256: str
    version: RemoteVersion

    @staticmethod
    def from_dict(content: Any) -> DownloadRecord:
        """Return the record that `dataclasses.asdict` converted. Raises KeyError or TypeError."""
        return DownloadRecord(content["bytes"], content["sha256"], RemoteVersion(**content["version"]))


def download_file(
    url: str, where: str | None, partial_path: Path, previous: DownloadRecord | None, report: ProgressCallback
) -> DownloadRecord | None:
    """Download a file to `partial_path`, resuming what is there; return None if it is still the `previous` one.

    Raises whatever `transport.open_remote` raises, `UrlUnreachable` for a connection that stays broken, and OSError if
    the file cannot be written. In each case the bytes received so far stay in `partial_path`.
    """

    def attempt() -> DownloadRecord | None:
        resume = _read_resume_point(partial_path)
        start = ResumeOffset(resume.record.bytes, resume.record.version) if resume is not None else None
        try:
            with transport.open_remote(url, where, start, previous.version if previous else None) as stream:
                return None if stream is None else _append_stream(stream, partial_path, resume, url, where, report)
        except TransferInterrupted as interruption:
            if interruption.restart:
                discard_partial(partial_path)
            raise

    return retry_with_backoff(url, where, attempt, lambda: _file_size(partial_path))


def retry_with_backoff(url: str, where: str | None, attempt: Callable[[], T], bytes_present: Callable[[], int]) -> T:
    """Call `attempt` until it returns, or was interrupted too often without progress in `bytes_present`.

    Raises `UrlUnreachable`, and at once if no attempt reached the server.
    """
    furthest, tries, reached = bytes_present(), 0, False
    while True:
        try:
            return attempt()
        except TransferInterrupted as interruption:
            failure = interruption
        reached = reached or failure.server_reached
        tries = tries + 1
        if bytes_present() >= furthest + _MIN_PROGRESS_BYTES:
            furthest, tries = bytes_present(), 1
        if not reached or tries > len(RETRY_DELAYS_SECONDS):
            raise _unreachable(url, where, failure, tries, bytes_present())
        time.sleep(RETRY_DELAYS_SECONDS[tries - 1])


def discard_partial(partial_path: Path) -> None:
    """Delete a partial download and its record."""
    partial_path.unlink(missing_ok=True)
    _record_path(partial_path).unlink(missing_ok=True)


def _append_stream(
    stream: RemoteStream, path: Path, resume: _ResumePoint | None, url: str, where: str | None, report: ProgressCallback
) -> DownloadRecord:
    """Append what the stream brings, up to the announced size.

    Raises what `download_file` raises, and `TransferInterrupted`.
    """
    version = stream.version
    limit = MAX_UNSIZED_BYTES if version.size is None else version.size
    done, hasher = (stream.offset, resume.hasher) if resume is not None and stream.offset else (0, hashlib.sha256())
    record = DownloadRecord(done, hasher.hexdigest(), version)
    with open_private(path, "r+b" if done else "wb") as file:
        if version.size is not None and shutil.disk_usage(path.parent).free < version.size - done:
            raise OSError(errno.ENOSPC, "no space is left")
        file.seek(done)
        file.truncate()
        try:
            report(done, version.size)
            # One byte more than the limit is read, to notice a server that sends too much.
            while done <= limit and (chunk := stream.read(min(STREAM_CHUNK_BYTES, limit - done + 1))):
                file.write(chunk)
                hasher.update(chunk)
                done += len(chunk)
                if done - record.bytes >= _RECORD_INTERVAL_BYTES:
                    record = _write_record(path, file, DownloadRecord(done, hasher.hexdigest(), version))
                report(done, version.size)
        finally:
            record = _write_record(path, file, DownloadRecord(done, hasher.hexdigest(), version))
        os.fsync(file.fileno())
    if done > limit:
        discard_partial(path)
        raise _too_long(url, where, version.size)
    if version.size is not None and done < version.size:
        why = f"the connection ended after {done} of {version.size} bytes"
        raise TransferInterrupted(why, server_reached=True)
    if not stream.is_unchanged():
        raise TransferInterrupted("the file changed in the meantime", server_reached=True, restart=True)
    return record


def _too_long(url: str, where: str | None, size: int | None) -> DownloadRefused:
    if size is None:
        why = f"the server does not announce its size, and sends more than {MAX_UNSIZED_BYTES} bytes"
        hint = "is it a file? download it by hand, and name its path"
    else:
        why = f"the server announced {size} bytes, and sends more"
        hint = "the server is at fault: download the file by hand, and look at it"
    return DownloadRefused(urls.redact_url(url), where, why, hint)


def _unreachable(
    url: str, where: str | None, failure: TransferInterrupted, tries: int, bytes_present: int
) -> UrlUnreachable:  # fmt: skip
    why = failure.why if tries < 2 else f"tried {tries} times: {failure.why}"
    if bytes_present:
        hint = f"{bytes_present} bytes of it are kept: run the command again to resume there"
    else:
        hint = "check the network, the host's name and the proxy; a pinned checkpoint that is cached needs no network"
    return UrlUnreachable(urls.redact_url(url), where, why, hint)


# -- partial downloads ------------------------------------------------------------------------


def _record_path(partial_path: Path) -> Path:
    return partial_path.with_name(f"{partial_path.name}.json")


def _write_record(partial_path: Path, file: IO[bytes], record: DownloadRecord) -> DownloadRecord:
    """Flush the open partial file, and record how much of it is good."""
    file.flush()
    temporary = partial_path.with_name(f"{partial_path.name}.json.new")
    with open_private(temporary, "wb") as stream:
        stream.write(json.dumps(asdict(record)).encode())
    temporary.replace(_record_path(partial_path))
    return record


@dataclass(frozen=True)
class _ResumePoint:
    """The record of the beginning of a file, and the SHA-256 state to continue from."""

    record: DownloadRecord
    hasher: Any


def _read_resume_point(partial_path: Path) -> _ResumePoint | None:
    """Return where to resume; a partial file without a matching record is deleted."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = DownloadRecord.from_dict(json.loads(_record_path(partial_path).read_text(encoding="utf-8")))
        if record.bytes and _file_size(partial_path) >= record.bytes:
            hasher = hashlib.sha256()
            with partial_path.open("rb") as file:
                remaining = record.bytes
                while remaining and (chunk := file.read(min(STREAM_CHUNK_BYTES, remaining))):
                    hasher.update(chunk)
                    remaining -= len(chunk)
            if hasher.hexdigest() == record.sha256:
                return _ResumePoint(record, hasher)
    discard_partial(partial_path)
    return None


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
