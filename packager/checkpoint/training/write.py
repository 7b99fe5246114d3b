"""Write one checkpoint of a run, so that a kill or a power cut at any moment leaves the checkpoints before it.

A checkpoint is written into a hidden folder, `.step-….new-…`, forced to the disk, and renamed. A checkpoint of the same
step is first renamed to `.step-….old`; if the process is killed between the two renames, the next save puts it back.
On several ranks, each writes its own shards, and rank 0 does everything else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.checkpoint import run_folder, state_tree_file
from packager.checkpoint.ranks import RankGroup
from packager.checkpoint.run_folder import RECORD_FILE, RUN_FILE, CheckpointEntry
from packager.checkpoint.sharded_index import part_of_metadata
from packager.checkpoint.training.retention import Retention, select_deletions
from packager.checkpoint.training.staging_memory import FileToWrite
from packager.errors import CheckpointDamaged, CheckpointNotSaved, RankFailed

_log = logging.getLogger("packager.checkpoint")


@dataclass(frozen=True)
class RunSettings:
    """The folder of a run, which of its checkpoints to keep, and the name and version that its run.json states."""

    folder: Path
    keep: Retention
    name: str
    version: str


def write_checkpoint(
    run: RunSettings,
    path: Path,
    files: Mapping[str, FileToWrite],
    record: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    ranks: RankGroup,
) -> None:
    """Write `files`, by their names, and the record as the checkpoint `path`; all ranks together.

    `history` has a line for each checkpoint that led to this one, itself included. Afterwards, the checkpoints that
    `run.keep` does not want are deleted. Raises `CheckpointNotSaved` on every rank if one of them fails.
    """
    with contextlib.ExitStack() as cleanup:
        try:
            temporary = ranks.run_on_first(lambda: _start_write(run, path, cleanup))
            digests: dict[str, str] = {}
            sharded = ranks.run_on_first(lambda: [name for name, file in files.items() if file.sharded])
            for name in sharded:
                from packager.checkpoint.training import sharded_io  # torch.distributed.checkpoint takes a second

                digests |= sharded_io.save_sharded(temporary, name, files[name].sharded, files[name].local, ranks)
            ranks.run_on_first(lambda: _finish_write(run, path, temporary, files, digests, record, history))
        except RankFailed as error:
            raise CheckpointNotSaved(str(path), f"{error.message}: {error.why}") from error


def _start_write(run: RunSettings, path: Path, cleanup: contextlib.ExitStack) -> Path:
    """Lock the run against other writers, clear leftovers, and return the folder to write the checkpoint into.

    `cleanup` releases the lock, and deletes the folder if it is still there.
    """
    with _translate_os_errors(path):
        run.folder.mkdir(parents=True, exist_ok=True)
        cleanup.enter_context(run_folder.lock_for_writing(run.folder))
        _clear_leftovers(run.folder)
        _write_run_file(run)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=run.folder))
        cleanup.callback(shutil.rmtree, temporary, ignore_errors=True)
        return temporary


def _finish_write(
    run: RunSettings,
    path: Path,
    temporary: Path,
    files: Mapping[str, FileToWrite],
    digests: Mapping[str, str],
    record: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write what only rank 0 writes, and rename the checkpoint into place once it is complete on the disk."""
    with _translate_os_errors(path):
        for name, file in files.items():
            strings = part_of_metadata(run_folder.pieces_index_name(name)) if file.sharded else {}
            digests = {name: state_tree_file.write_tree(temporary / name, file.unsharded, strings), **digests}
        facts = {
            name: {"sha256": digest, "bytes": (temporary / name).stat().st_size} for name, digest in digests.items()
        }
        number = 1 + max((entry.number for entry in run_folder.list_checkpoints(run.folder)), default=0)
        document = {**record, "number": number, "files": facts, "history": history}
        state_tree_file.write_text_durably(temporary / RECORD_FILE, json.dumps(document, indent=1))
        temporary.chmod(0o755)
        _sync_folder(temporary)
        replaced = run.folder / f".{path.name}.old"
        with run_folder.lock_for_removal(path, wait=True):
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
        _sync_folder(run.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        _apply_retention(run)


def _clear_leftovers(folder: Path) -> None:
    """Clear what a killed process left. The lock is held, so no other process is working on any of it."""
    for leftover in folder.glob(".step-*"):
        path = folder / leftover.name[1:].partition(".")[0]
        if leftover.suffix == ".old" and not path.exists():
            leftover.rename(path)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _apply_retention(run: RunSettings) -> None:
    entries = run_folder.list_checkpoints(run.folder)
    in_use = set()
    for entry in entries:
        with run_folder.lock_for_removal(entry.path, wait=False) as is_free:
            in_use |= set() if is_free else {entry.step}
    for entry in select_deletions(entries, run.keep, in_use):
        with run_folder.lock_for_removal(entry.path, wait=False) as is_free:
            if is_free:
                _delete_checkpoint(entry)


def _delete_checkpoint(entry: CheckpointEntry) -> None:
    """Delete a checkpoint, renamed first so that it disappears at once. A failure is logged: the new one is saved."""
    try:
        shutil.rmtree(entry.path.rename(entry.path.with_name(f".{entry.path.name}.gone")))
    except OSError as error:
        _log.warning("cannot delete %s: %s", entry.path, error.strerror)


def _write_run_file(run: RunSettings) -> None:
    metric, mode = _run_metric(run)
    document = {"schema": 1, "name": run.name, "version": run.version, "metric": metric, "mode": mode}
    path, text = run.folder / RUN_FILE, json.dumps(document, indent=1)
    with contextlib.suppress(OSError, ValueError):  # missing or unreadable: it is written below
        if path.read_text(encoding="utf-8") == text + "\n":
            return
    temporary = run.folder / f".{RUN_FILE}.new"
    state_tree_file.write_text_durably(temporary, text)
    temporary.replace(path)


def _run_metric(run: RunSettings) -> tuple[str | None, str]:
    """Return what makes a checkpoint the best one: without a metric in `keep`, what run.json already states.

    A build of the run goes by it, so a manager that does not name a metric must not erase it.
    """
    if run.keep.metric is None:
        with contextlib.suppress(CheckpointDamaged):  # run.json is written again
            metric, mode = run_folder.read_run_settings(run.folder)
            if metric is not None:
                return metric, mode
    return run.keep.metric, run.keep.mode


@contextlib.contextmanager
def _translate_os_errors(path: Path) -> Iterator[None]:
    """Raise `CheckpointNotSaved` for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise CheckpointNotSaved(str(path), error.strerror or str(error)) from error


def _sync_folder(folder: Path) -> None:
    """Force the folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
