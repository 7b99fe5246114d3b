"""Turn a URL into a checkpoint on this machine: downloaded once, and cached by its digest.

    file:///absolute/path      the path, without a download
    …/best.safetensors         one file
    …/NAME.index.json          the index, and the shards that it names, from the same folder
    s3://bucket/folder         if the folder can be listed: the files that `locate` would read

With a pinned digest, a checkpoint that is cached is never requested again, whatever its URL: no network is needed.
Without one the server is asked whether the file is still the one that was downloaded, which saves the download if the
server has validators (ETag, Last-Modified). If several processes want the same checkpoint, one downloads it while the
others wait. The bytes of a failed download stay in the cache, and the next attempt resumes there; only a complete
checkpoint appears under its digest, in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from packager.checkpoint import run_folder
from packager.checkpoint.locate import (
    SHARD_INDEX_SUFFIX,
    WEIGHT_SUFFIXES,
    digest_checkpoint,
    list_shards,
    locate_files,
    pick_head,
)
from packager.checkpoint.remote import transport, urls
from packager.checkpoint.remote.download import DownloadRecord, download_file, retry_with_backoff
from packager.common import file_lock
from packager.common.cache import Cache, CacheUnavailable, describe_write_error, open_cache, touch_entry
from packager.common.hashing import sha256_file
from packager.common.private_files import open_private
from packager.common.progress import StageName, StageReporter
from packager.errors import CheckpointDigestWrong, DownloadRefused, PackagerError, UrlNotAFile, UserError


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A URL, the digest that its checkpoint must have, if it is pinned, and the manifest's fields of both."""

    url: str
    sha256: str | None = None
    where: str | None = None
    where_sha256: str | None = None


@contextlib.contextmanager
def fetch_remote(checkpoint: RemoteCheckpoint, stages: StageReporter) -> Iterator[Path]:
    """Yield the local path of a checkpoint; a `PackagerError` raised in the block names its URL instead of the path.

    Raises `UrlUnsupported`, `UrlNotFound`, `UrlRefused`, `UrlUnreachable`, `UrlNotAFile`, `DownloadRefused`,
    `ExtraMissing`, `CheckpointDigestWrong` and `CheckpointUnreadable`.
    """
    local = urls.local_file_path(checkpoint.url, checkpoint.where)
    if local is not None:
        yield local
        return
    with _open_cache_or_temporary(stages) as cache:
        path = _fetch_to_cache(checkpoint, cache, stages)
        try:
            yield path
        except PackagerError as error:
            shown = urls.redact_url(checkpoint.url)
            error.replace_path(str(path), shown)
            if path.is_file():
                error.replace_path(str(path.parent), shown.rpartition("/")[0])
            raise


@contextlib.contextmanager
def _open_cache_or_temporary(stages: StageReporter) -> Iterator[Cache]:
    """Yield the user's cache, or a temporary one if that cannot be used."""
    try:
        cache = open_cache()
    except CacheUnavailable as why:
        stages.report_note(f"the download will not be kept: {why}")
    else:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="packager ", ignore_cleanup_errors=True) as folder:
        yield Cache(Path(folder))


def _fetch_to_cache(checkpoint: RemoteCheckpoint, cache: Cache, stages: StageReporter) -> Path:
    shown, name = urls.redact_url(checkpoint.url), urls.local_file_name(checkpoint.url)
    try:
        path, digest = _find_cached(cache, checkpoint.sha256, name), checkpoint.sha256
        if path is not None:
            stages.report_cached(StageName.DOWNLOAD)
            return path
        with _lock_incoming_folder(cache, checkpoint.sha256 or checkpoint.url, stages) as folder:
            path = _find_cached(cache, checkpoint.sha256, name)  # another process may have downloaded it meanwhile
            if path is None:
                with stages.stage(StageName.DOWNLOAD):
                    path, digest = _Download(checkpoint, cache, stages, folder).fetch()
    except OSError as error:
        why = f"{describe_write_error(error)}: {cache.folder}"
        hint = "make room, or point PACKAGER_CACHE to a folder that has it"
        raise DownloadRefused(shown, checkpoint.where, why, hint) from None
    if checkpoint.sha256 is None:
        stages.report_note(f"{shown} is not pinned and may change: checkpoint.sha256: {digest} pins this version")
    elif digest != checkpoint.sha256:
        where = checkpoint.where_sha256 or checkpoint.where
        raise CheckpointDigestWrong(shown, where, checkpoint.sha256, digest or "")
    return path


# -- cached checkpoints -----------------------------------------------------------------------


def _find_cached(cache: Cache, sha256: str | None, name: str) -> Path | None:
    """Return the path of the cached checkpoint with this digest; None if it is absent, or damaged and thus deleted.

    `name` is the name of its file, which the URL decides; empty for a folder.
    """
    if sha256 is None or not (folder := cache.download_folder(sha256)).is_dir():
        return None
    path = folder / name
    if not path.exists():  # it is a folder, or was downloaded under a different name, which decides how it is read
        path = folder
        same = [file for file in folder.iterdir() if file.is_file() and cache.file_digest(file) == sha256]
        if same and name.endswith(WEIGHT_SUFFIXES):
            path = folder / name
            _link_or_copy(same[0], path)
    try:
        intact = digest_checkpoint(locate_files(path), cache.file_digest) == sha256
    except UserError:
        intact = False
    if not intact:
        cache.delete(folder)
        return None
    touch_entry(folder)
    return path


@contextlib.contextmanager
def _lock_incoming_folder(cache: Cache, key: str, stages: StageReporter) -> Iterator[Path]:
    """Yield a folder for a download in progress, which no other process uses at the same time."""
    name = key if file_lock.LOCKS_SUPPORTED else f"{key} {os.getpid()}"  # without locks, nothing is shared
    folder = cache.incoming_folder(name)
    while True:
        cache.make_folder(folder)
        with open_private(folder / "lock", "ab") as stream:
            if not file_lock.lock_file(stream, shared=False, wait=False):
                stages.report_note("another process is downloading the same checkpoint: waiting for it")
                file_lock.lock_file(stream, shared=False)
            # The process that held the lock may have deleted the folder.
            if file_lock.is_same_file(stream, folder / "lock"):
                yield folder
                return


def _link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, or a copy if the file system has no links. Raises OSError."""
    try:
        target.hardlink_to(source)
    except OSError:
        with source.open("rb") as content, open_private(target, "wb") as copy:
            shutil.copyfileobj(content, copy)


# -- downloads --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Download:
    """The download of one checkpoint into a folder; `records` are those of its files so far, by name."""

    checkpoint: RemoteCheckpoint
    cache: Cache
    stages: StageReporter
    folder: Path
    records: dict[str, DownloadRecord] = field(default_factory=dict)

    @property
    def files(self) -> Path:
        """The folder of complete files, under their names."""
        return self.folder / "files"

    def fetch(self) -> tuple[Path, str]:
        """Download all files and move them to the folder of their digest; return the path to read, and the digest."""
        url, shown, where = self.checkpoint.url, urls.redact_url(self.checkpoint.url), self.checkpoint.where
        names = retry_with_backoff(url, where, lambda: transport.list_remote_folder(url, where), lambda: 0)
        others: list[str] = []
        if names is None:
            head, head_url = urls.local_file_name(url), url
        else:
            if {run_folder.RUN_FILE, run_folder.RECORD_FILE} & set(names):
                hint = f"name one of its files, such as {shown.rstrip('/')}/step-00000001/{run_folder.MODEL_FILE}"
                raise UrlNotAFile(shown, where, "it is a run of CheckpointManager", hint)
            head, others = pick_head(names, shown, where)
            head_url = urls.child_url(url, head)
        previous = self._previous_download()
        self._fetch_file(head_url, head, previous)
        if head.endswith(SHARD_INDEX_SUFFIX):
            for shard in list_shards(self.files / head, shown, where):
                name = shard.relative_to(self.files).as_posix()
                self._fetch_file(urls.sibling_url(head_url, name), name, previous)
        for name in others:
            self._fetch_file(urls.child_url(url, name), name, previous)
        located = locate_files(self.files / head if names is None else self.files, shown, where)
        digest = digest_checkpoint(located, lambda file: self.records[file.relative_to(self.files).as_posix()].sha256)
        return self._publish(digest, head if names is None else ""), digest

    def _fetch_file(self, url: str, name: str, previous: tuple[Path, Mapping[str, DownloadRecord]]) -> None:
        """Download a file, unless a failed attempt or the previous download left the current version."""
        target, partial_path = self.files / name, self.folder / hashlib.sha256(name.encode()).hexdigest()
        record_path = partial_path.with_suffix(".done")
        self.cache.make_folder(target.parent)
        present, source = _read_finished(record_path, target), target
        previous_folder, previous_records = previous
        if present is None and name in previous_records:
            present, source = previous_records[name], previous_folder / name
        record = download_file(
            url,
            self.checkpoint.where,
            partial_path,
            present,
            lambda done, size: self.stages.report_progress(StageName.DOWNLOAD, done, size),
        )
        if record is not None:
            partial_path.replace(target)
        else:
            assert present is not None
            record = present
            if source != target:
                target.unlink(missing_ok=True)
                _link_or_copy(source, target)
        with open_private(record_path, "wb") as stream:
            stream.write(json.dumps(asdict(record)).encode())
        self.records[name] = record

    def _previous_download(self) -> tuple[Path, Mapping[str, DownloadRecord]]:
        """Return the folder of this URL's last download, and the records of its files that are still intact."""
        content = self.cache.load_record(self._record_name) or {"sha256": "", "files": {}}
        folder = self.cache.download_folder(content["sha256"]) if content["sha256"] else self.folder
        records = {name: DownloadRecord.from_dict(record) for name, record in content["files"].items()}
        return folder, {
            name: record
            for name, record in records.items()
            if (folder / name).is_file() and self.cache.file_digest(folder / name) == record.sha256
        }

    def _publish(self, sha256: str, name: str) -> Path:
        """Move the files to the folder of their digest in one step, and remember the versions of the server."""
        path = _find_cached(self.cache, sha256, name)
        if path is None:
            target = self.cache.download_folder(sha256)
            self.cache.make_folder(target.parent)
            self.files.rename(target)
            path = target / name
        content = {"sha256": sha256, "files": {file: asdict(record) for file, record in self.records.items()}}
        self.cache.save_record(self._record_name, content)
        self.cache.delete(self.folder)
        return path

    @property
    def _record_name(self) -> str:
        return f"url {self.checkpoint.url}"


def _read_finished(record_path: Path, target: Path) -> DownloadRecord | None:
    """Return the record of a complete file that is left of an attempt whose other files failed."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = DownloadRecord.from_dict(json.loads(record_path.read_text(encoding="utf-8")))
        if target.stat().st_size == record.bytes and sha256_file(target) == record.sha256:
            return record
    return None
