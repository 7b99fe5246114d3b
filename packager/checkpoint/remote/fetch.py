"""A URL → a checkpoint on this machine: what it names is downloaded once, and kept by its digest.

    file:///absolute/path      no download: the path
    …/best.safetensors         one file
    …/NAME.index.json          the index, and the shards that it names, from its own folder
    s3://bucket/folder         where a folder can be listed: what `locate` would read of it

With a pin, what is here already is never asked for again, whatever its URL: no network is needed. Without one
the server is asked whether the file is still the one that was downloaded, which costs no download where it tells
(ETag, Last-Modified). One process downloads what others wait for. What has come of a download that failed waits
in the cache under a name of its own, and the next try goes on from there; under its digest appears only what is
complete, in one step.
"""

from __future__ import annotations

import contextlib
import errno
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
from packager.common.cache import Cache, CacheUnavailable, delete_quietly, open_cache, touch_entry
from packager.common.progress import StageName, StageReporter
from packager.errors import CheckpointDigestWrong, DownloadRefused, PackagerError, UrlNotAFile, UserError


@dataclass(frozen=True)
class RemoteCheckpoint:
    """What is wanted: the URL, the digest it must have, if it is pinned, and the fields that say so."""

    url: str
    sha256: str | None = None
    where: str | None = None
    where_sha256: str | None = None


@contextlib.contextmanager
def fetch_remote(wanted: RemoteCheckpoint, stages: StageReporter) -> Iterator[Path]:
    """Yields the path of what a URL names, which an error in the block calls by the URL.

    Raises `UrlUnsupported`, `UrlNotFound`, `UrlRefused`, `UrlUnreachable`, `UrlNotAFile`, `DownloadRefused`,
    `ExtraMissing`, `CheckpointDigestWrong` and `CheckpointUnreadable`.
    """
    local = urls.local_file_path(wanted.url, wanted.where)
    if local is not None:
        yield local
        return
    with _open_cache_or_temporary(stages) as cache:
        path = _fetch_to_cache(wanted, cache, stages)
        try:
            yield path
        except PackagerError as error:
            shown = urls.redact_url(wanted.url)
            error.replace_path(str(path), shown)
            if path.is_file():
                error.replace_path(str(path.parent), shown.rpartition("/")[0])
            raise


@contextlib.contextmanager
def _open_cache_or_temporary(stages: StageReporter) -> Iterator[Cache]:
    """The user's cache; or one for this time only, where that cannot be used."""
    try:
        cache = open_cache()
    except CacheUnavailable as why:
        stages.report_note(f"the download will not be kept: {why}")
    else:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="packager ", ignore_cleanup_errors=True) as folder:
        yield Cache(Path(folder))


def _fetch_to_cache(wanted: RemoteCheckpoint, cache: Cache, stages: StageReporter) -> Path:
    shown, name = urls.redact_url(wanted.url), urls.local_file_name(wanted.url)
    try:
        path, found = _find_downloaded(cache, wanted.sha256, name), wanted.sha256
        if path is not None:
            stages.report_cached(StageName.DOWNLOAD)
            return path
        with _lock_incoming_folder(cache, wanted.sha256 or wanted.url, stages) as folder:
            path = _find_downloaded(cache, wanted.sha256, name)  # whoever was waited for may have brought it
            if path is None:
                with stages.stage(StageName.DOWNLOAD):
                    path, found = _Download(wanted, cache, stages, folder).fetch()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = f"{'no space is left' if full else error.strerror or error}: {cache.folder}"
        hint = "make room, or point PACKAGER_CACHE to a folder that has it"
        raise DownloadRefused(shown, wanted.where, why, hint) from None
    if wanted.sha256 is None:
        stages.report_note(f"{shown} is not pinned, and may change: checkpoint.sha256: {found} pins what was read now")
    elif found != wanted.sha256:
        raise CheckpointDigestWrong(shown, wanted.where_sha256 or wanted.where, wanted.sha256, found or "")
    return path


# -- what is here -----------------------------------------------------------------------------


def _find_downloaded(cache: Cache, sha256: str | None, name: str) -> Path | None:
    """What `locate` takes, of the checkpoint with this digest; None where it is not here, or not whole."""
    if sha256 is None or not (folder := cache.download_folder(sha256)).is_dir():
        return None
    path = folder / name
    if not path.exists():  # it came under another name, which tells what kind of file it is, or as a folder
        path = folder
        same = [one for one in folder.iterdir() if one.is_file() and cache.file_digest(one) == sha256]
        if same and name.endswith(WEIGHT_SUFFIXES):
            path = folder / name
            _link_or_copy(same[0], path)
    try:
        whole = digest_checkpoint(locate_files(path), cache.file_digest) == sha256
    except UserError:
        whole = False
    if not whole:
        delete_quietly(folder)
        return None
    touch_entry(folder)
    return path


@contextlib.contextmanager
def _lock_incoming_folder(cache: Cache, key: str, stages: StageReporter) -> Iterator[Path]:
    """A folder for what is on its way, which no other process uses meanwhile."""
    alone = key if file_lock.LOCKS_SUPPORTED else f"{key} {os.getpid()}"  # without locks, nothing is shared
    folder = cache.incoming_folder(alone)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("ab") as stream:
            if not file_lock.lock_file(stream, shared=False, wait=False):
                stages.report_note("another process downloads the same: waiting for it")
                file_lock.lock_file(stream, shared=False)
            if file_lock.is_same_file(stream, folder / "lock"):
                yield folder
                return


def _link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# -- what is on its way -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Download:
    """One checkpoint that is being brought to a folder of its own; `came` are its files so far, by name."""

    wanted: RemoteCheckpoint
    cache: Cache
    stages: StageReporter
    folder: Path
    records: dict[str, DownloadRecord] = field(default_factory=dict)

    @property
    def files(self) -> Path:
        """Where its files are put, under their names."""
        return self.folder / "files"

    def fetch(self) -> tuple[Path, str]:
        """Bring what is not here; returns what `locate` takes, under its digest, and that digest."""
        url, shown, where = self.wanted.url, urls.redact_url(self.wanted.url), self.wanted.where
        names = retry_with_backoff(url, where, lambda: transport.list_remote_folder(url, where), lambda: 0)
        others: list[str] = []
        if names is None:
            head, at = urls.local_file_name(url), url
        else:
            if {run_folder.RUN_FILE, run_folder.RECORD_FILE} & set(names):
                hint = f"name one of its files, such as {shown.rstrip('/')}/step-00000001/{run_folder.MODEL_FILE}"
                raise UrlNotAFile(shown, where, "it is a run of CheckpointManager", hint)
            head, others = pick_head(names, shown, where)
            at = urls.child_url(url, head)
        last = self._previous_download()
        self._fetch_file(at, head, last)
        if head.endswith(SHARD_INDEX_SUFFIX):
            for shard in list_shards(self.files / head, shown, where):
                name = shard.relative_to(self.files).as_posix()
                self._fetch_file(urls.sibling_url(at, name), name, last)
        for name in others:
            self._fetch_file(urls.child_url(url, name), name, last)
        path = self.files / head if names is None else self.files
        found = digest_checkpoint(
            locate_files(path, shown, where), lambda one: self.records[one.relative_to(self.files).as_posix()].sha256
        )
        return self._publish(found, head if names is None else ""), found

    def _fetch_file(self, url: str, name: str, last: tuple[Path, Mapping[str, DownloadRecord]]) -> None:
        """Bring one file, unless it is here already: from a try that failed, or from the last download."""
        target, part = self.files / name, self.folder / hashlib.sha256(name.encode()).hexdigest()
        record = part.with_suffix(".done")
        target.parent.mkdir(parents=True, exist_ok=True)
        known, source = _read_finished(record, target), target
        if known is None and name in last[1]:
            known, source = last[1][name], last[0] / name
        came = download_file(
            url,
            self.wanted.where,
            part,
            known,
            lambda done, size: self.stages.report_progress(StageName.DOWNLOAD, done, size),
        )
        if came is not None:
            os.replace(part, target)
        else:
            assert known is not None
            came = known
            if source != target:
                target.unlink(missing_ok=True)
                _link_or_copy(source, target)
        record.write_text(json.dumps(asdict(came)), encoding="utf-8")
        self.records[name] = came

    def _previous_download(self) -> tuple[Path, Mapping[str, DownloadRecord]]:
        """What this URL gave the last time, as far as it is still here as it was."""
        known = self.cache.load_record(self._record_name) or {"sha256": "", "files": {}}
        folder = self.cache.download_folder(known["sha256"]) if known["sha256"] else self.folder
        found = {name: DownloadRecord.from_dict(one) for name, one in known["files"].items()}
        return folder, {
            name: one
            for name, one in found.items()
            if (folder / name).is_file() and self.cache.file_digest(folder / name) == one.sha256
        }

    def _publish(self, sha256: str, name: str) -> Path:
        """Put all of it under its digest in one step, and remember what the server said of it."""
        target = self.cache.download_folder(sha256)
        path = _find_downloaded(self.cache, sha256, name)
        if path is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.files, target)
            path = target / name
        content = {"sha256": sha256, "files": {one: asdict(held) for one, held in self.records.items()}}
        self.cache.save_record(self._record_name, content)
        delete_quietly(self.folder)
        return path

    @property
    def _record_name(self) -> str:
        return f"url {self.wanted.url}"


def _read_finished(record: Path, target: Path) -> DownloadRecord | None:
    """A file of a checkpoint of several, whose others did not come."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        held = DownloadRecord.from_dict(json.loads(record.read_text(encoding="utf-8")))
        if target.stat().st_size == held.bytes:
            return held
    return None
