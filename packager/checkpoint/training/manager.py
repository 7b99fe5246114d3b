"""Checkpoints of a training loop: saved, kept and thinned, restored.

    manager = CheckpointManager("runs", keep=Retention(latest=3, metric="val_loss"))
    manager.save(step=step, epoch=epoch, model=model, optimizer=optimizer, metrics={"val_loss": loss})
    done = manager.restore("latest", model=model, optimizer=optimizer)   # done.step, done.epoch, done.extra

A checkpoint is written into a folder beside its place, forced to the disk, and renamed: at every moment, a kill
or a power cut leaves the checkpoints that were complete. With `blocking=False` a save returns once the
state is copied; one thread writes it, one save at a time, and what goes wrong there is raised by the next call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from packager.checkpoint import run_folder, state_tree_file
from packager.checkpoint.ranks import RankGroup, create_rank_group, local_shard
from packager.checkpoint.run_folder import FILES_BY_KIND, RECORD_FILE, RUN_FILE, CheckpointEntry, checkpoint_folder_name
from packager.checkpoint.sharded_index import part_of_metadata
from packager.checkpoint.state_tree import EncodedTree, encode_tree
from packager.checkpoint.training.loop_state import Generator, Stateful, TrainingLoop, capture_state, count_parameters
from packager.checkpoint.training.restore import restore_checkpoint
from packager.checkpoint.training.retention import Retention, select_deletions
from packager.errors import (
    CheckpointDamaged,
    CheckpointNotFound,
    CheckpointNotSaved,
    NoCheckpointYet,
    PackagerError,
    RankFailed,
    RunSettingsWrong,
    StateNotExpressible,
)

_ERROR_PREFIXES = {"model": "model", "ema": "ema", "training": ""}
_KEEP_ALL = Retention()
_NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*")
_VERSION_PATTERN = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)([-+][0-9A-Za-z.+-]+)?")
_log = logging.getLogger("packager.checkpoint")
T = TypeVar("T")


@dataclass(frozen=True)
class RestoredState:
    """Where the run goes on: what was restored, and what `save` was given beside the state."""

    path: Path
    step: int
    epoch: int | None
    metrics: Mapping[str, float]
    extra: Any


class CheckpointManager:
    """Saves and restores the checkpoints of one run folder; see the module for the guarantees.

    `name` and `version` (a semantic version) are written into each checkpoint. As a context manager it waits, at
    the end, for what is still being written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: Retention = _KEEP_ALL,
        name: str = "model",
        version: str = "0.1.0",
    ) -> None:
        if not _NAME_PATTERN.fullmatch(name):
            raise RunSettingsWrong(f"name is {name!r}, and is lower case letters, digits, '.', '_' and '-'")
        if not _VERSION_PATTERN.fullmatch(version):
            raise RunSettingsWrong(f"version is {version!r}, and is a semantic version, such as 1.0.0")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.name, self.version = name, version
        self._history: list[Mapping[str, Any]] = []
        self._pending: Future[None] | None = None
        self._ranks: RankGroup | None = None
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._staging: dict[tuple[str, str], torch.Tensor] = {}
        self._revision: str | None = None
        self._asked_for_revision = False

    # -- what there is ----------------------------------------------------------------------

    def list(self) -> list[CheckpointEntry]:
        """The checkpoints in the order they were saved. Raises what went wrong in a background save."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return run_folder.list_checkpoints(self.folder)

    def latest(self) -> CheckpointEntry | None:
        """The checkpoint saved last."""
        return run_folder.find_latest(self.list())

    def best(self) -> CheckpointEntry | None:
        """The checkpoint with the best value of `keep.metric`; None where there is no such metric."""
        return run_folder.find_best(self.list(), self.keep.metric, self.keep.mode)

    # -- saving -----------------------------------------------------------------------------

    def save(
        self,
        *,
        step: int,
        model: torch.nn.Module,
        epoch: int | None = None,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        ema: Stateful | None = None,
        scaler: Stateful | None = None,
        generators: Mapping[str, Generator] | None = None,
        metrics: Mapping[str, Any] | None = None,
        extra: Any = None,
        blocking: bool = True,
    ) -> Path:
        """Save the state of a loop as `step-…/`, in place of one of the same step; returns its folder.

        `generators` are those that a DataLoader or an augmentation was given; the global ones of Python,
        numpy, torch and CUDA are saved anyway. `metrics` are numbers by name. `extra` is any tree of tensors
        and plain values that `restore` is to give back. With `blocking=False` the folder is there once
        `wait()`, or the next call, has returned.

        Raises `StateNotExpressible`, `CheckpointNotSaved`, also for the save before in the background.
        """
        self.wait()
        if type(step) is not int or step < 0:
            raise RunSettingsWrong(f"step is {step!r}, and is a whole number from 0")
        if epoch is not None and (type(epoch) is not int or epoch < 0):
            raise RunSettingsWrong(f"epoch is {epoch!r}, and is a whole number from 0, or None")
        path, ranks = self.folder / checkpoint_folder_name(step), self._current_ranks()
        loop = TrainingLoop(model, optimizer, scheduler, ema, scaler, generators)
        trees = capture_state(loop, extra, ranks)

        def prepared() -> tuple[dict[str, _FileToWrite], dict[str, Any]]:
            record = {
                "schema": 1,
                "name": self.name,
                "version": self.version,
                "step": step,
                "epoch": epoch,
                "metrics": {name: _metric_value(name, one) for name, one in (metrics or {}).items()},
                "created": datetime.now(timezone.utc).isoformat(),
                "revision": self._git_revision(),
                "parameters": count_parameters(model, trees["model"]),
            }
            files = {FILES_BY_KIND[kind]: encode_tree(tree, _ERROR_PREFIXES[kind]) for kind, tree in trees.items()}
            return {
                file: self._select_local(file, one, ranks, copied=not blocking) for file, one in files.items()
            }, record

        saving, record = ranks.run_on_all(prepared)
        if blocking:
            self._write_checkpoint(path, saving, record, ranks)
        else:
            self._pending = self._background.submit(self._write_checkpoint, path, saving, record, ranks)
        return path

    def wait(self) -> None:
        """Return when nothing is being written; raises what went wrong in the background."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait for what is being written, and give up the thread, the memory for copies and the group of ranks."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._staging.clear()
            self._ranks = None

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except PackagerError as own:  # the error of the loop is the one to be seen
            _log.error("%s: %s", own.message, own.why)

    def _current_ranks(self) -> RankGroup:
        if self._ranks is None or self._ranks.has_ended:
            self._ranks = create_rank_group()
        return self._ranks

    def _select_local(self, file: str, encoded: EncodedTree, ranks: RankGroup, *, copied: bool) -> _FileToWrite:
        """What of a file's tensors this rank is to write; with `copied`, in memory that training does not change."""
        pieces = encoded.sharded
        mine = {name: local_shard(one).detach().contiguous() for name, one in pieces.items()}
        whole = encoded.unsharded if ranks.is_first else EncodedTree({}, None)
        if not copied:
            return _FileToWrite(whole, pieces, mine)
        everything = self._copy_to_staging(file, {**whole.tensors, **mine})
        whole = EncodedTree({name: everything[name] for name in whole.tensors}, whole.document)
        return _FileToWrite(whole, pieces, {name: everything[name] for name in mine})

    def _copy_to_staging(self, file: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors copied to memory of the manager's own, which the next save uses again."""
        copies, on_device = {}, False
        for name, tensor in tensors.items():
            copy = self._staging.get((file, name))
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._staging[file, name] = copy
            copies[name] = copy.copy_(tensor, non_blocking=True)
            on_device |= tensor.is_cuda
        if on_device:
            torch.cuda.synchronize()
        return copies

    def _write_checkpoint(
        self, path: Path, saving: Mapping[str, _FileToWrite], record: dict[str, Any], ranks: RankGroup
    ) -> None:
        """Every rank writes what it holds; rank 0 begins and ends it."""
        with contextlib.ExitStack() as until_done:
            try:
                temporary = ranks.run_on_first(
                    lambda: _translate_os_errors(path, lambda: self._start_write(path, until_done))
                )
                digests: dict[str, str] = {}
                for file in ranks.run_on_first(lambda: [name for name, one in saving.items() if one.sharded]):
                    from packager.checkpoint.training import sharded_io  # torch.distributed.checkpoint takes a second

                    digests |= sharded_io.save_sharded(temporary, file, saving[file].sharded, saving[file].local, ranks)
                ranks.run_on_first(
                    lambda: _translate_os_errors(
                        path, lambda: self._finish_write(path, temporary, saving, digests, record)
                    )
                )
            except RankFailed as error:
                raise CheckpointNotSaved(str(path), f"{error.message}: {error.why}") from error
            self._history = [*self._history, _history_line(record)]

    def _start_write(self, path: Path, until_done: contextlib.ExitStack) -> Path:
        """Be the only one who writes, clear up, and give the folder in which the checkpoint is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        until_done.enter_context(run_folder.lock_for_writing(self.folder))
        self._clear_leftovers()
        self._write_run_file()
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=self.folder))
        until_done.callback(shutil.rmtree, temporary, ignore_errors=True)
        return temporary

    def _finish_write(
        self,
        path: Path,
        temporary: Path,
        saving: Mapping[str, _FileToWrite],
        digests: Mapping[str, str],
        record: dict[str, Any],
    ) -> None:
        """Write what is there once, and put the checkpoint, complete, where it belongs."""
        for file, one in saving.items():
            strings = part_of_metadata(run_folder.pieces_index_name(file)) if one.sharded else {}
            digests = {file: state_tree_file.write_tree(temporary / file, one.unsharded, strings), **digests}
        files = {
            file: {"sha256": digest, "bytes": (temporary / file).stat().st_size} for file, digest in digests.items()
        }
        number = 1 + max((one.number for one in self.list()), default=0)
        history = [*self._history, _history_line(record)]
        text = json.dumps({**record, "number": number, "files": files, "history": history}, indent=1)
        state_tree_file.write_text_durably(temporary / RECORD_FILE, text)
        os.chmod(temporary, 0o755)
        _sync_folder(temporary)
        with run_folder.lock_for_removal(path, wait=True):
            # Between these two renames a kill leaves the old one aside, and `_clear_leftovers` puts it back.
            if path.exists():
                os.rename(path, self.folder / f".{path.name}.old")
            os.rename(temporary, path)
        _sync_folder(self.folder)
        shutil.rmtree(self.folder / f".{path.name}.old", ignore_errors=True)
        self._apply_retention()

    def _clear_leftovers(self) -> None:
        """What a killed process left: since we hold the lock, nobody is at work on any of it."""
        for one in self.folder.glob(".step-*"):
            place = self.folder / one.name[1:].partition(".")[0]
            if one.suffix == ".old" and not place.exists():
                os.rename(one, place)
            else:
                shutil.rmtree(one, ignore_errors=True)

    def _apply_retention(self) -> None:
        found = self.list()
        in_use = set()
        for one in found:
            with run_folder.lock_for_removal(one.path, wait=False) as free:
                in_use |= set() if free else {one.step}
        for one in select_deletions(found, self.keep, in_use):
            with run_folder.lock_for_removal(one.path, wait=False) as free:
                if free:
                    self._delete(one)

    def _delete(self, one: CheckpointEntry) -> None:
        gone = self.folder / f".{one.path.name}.gone"
        try:
            os.rename(one.path, gone)
            shutil.rmtree(gone)
        except OSError as error:
            _log.warning("cannot be deleted: %s: %s", one.path, error.strerror)

    def _write_run_file(self) -> None:
        path = self.folder / RUN_FILE
        metric, mode = self._run_metric()
        settings = {"name": self.name, "version": self.version, "metric": metric, "mode": mode}
        text = json.dumps({"schema": 1, **settings}, indent=1)
        try:
            if path.read_text(encoding="utf-8") == text + "\n":
                return
        except (OSError, ValueError):
            pass  # not there, or not readable: written anew below
        temporary = self.folder / f".{RUN_FILE}.new"
        state_tree_file.write_text_durably(temporary, text)
        os.replace(temporary, path)

    def _run_metric(self) -> tuple[str | None, str]:
        """What is best; who does not say leaves it as it was, since a build of the run goes by it."""
        if self.keep.metric is None:
            with contextlib.suppress(CheckpointDamaged):  # written anew
                metric, mode = run_folder.read_run_settings(self.folder)
                if metric is not None:
                    return metric, mode
        return self.keep.metric, self.keep.mode

    def _git_revision(self) -> str | None:
        """The revision of the folder that the process runs in, asked for once."""
        if not self._asked_for_revision:
            self._asked_for_revision = True
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                command = ["git", "rev-parse", "HEAD"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
                self._revision = done.stdout.strip()
        return self._revision

    # -- restoring --------------------------------------------------------------------------

    def restore(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        model: torch.nn.Module,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        ema: Stateful | None = None,
        scaler: Stateful | None = None,
        generators: Mapping[str, Generator] | None = None,
        random: bool = True,
    ) -> RestoredState:
        """Put a checkpoint back: the `latest` (or None), the `best`, or the one at a path.

        Each tensor goes to the device that its place in the model is on. A damaged checkpoint is passed over with
        a warning in favour of the one before, unless it was named by its path. `random=False` leaves the
        global generators as they are. Nothing is changed where the checkpoint does not fit.

        Raises `NoCheckpointYet`, `CheckpointNotFound`, `CheckpointDamaged`, `TrainingStateDiffers`.
        """
        ranks = self._current_ranks()
        ranks.run_on_all(self.wait)  # for every rank, what was being written is there now
        loop = TrainingLoop(model, optimizer, scheduler, ema, scaler, generators)
        if checkpoint not in (None, "latest", "best"):
            named = Path(checkpoint).absolute()
            if not ranks.run_on_first(named.is_dir):
                why = "expected: 'latest', 'best', or the folder of a checkpoint"
                raise CheckpointNotFound(str(named), None, why)
            return self._restore_from(named, loop, random, ranks)
        in_order = ranks.run_on_first(lambda: self._restore_candidates(best=checkpoint == "best"))
        for path in in_order:
            try:
                return self._restore_from(path, loop, random, ranks)
            except CheckpointDamaged as error:
                _log.warning("passed over: %s: %s", error.message, error.why)
        metric = f"has a number for {self.keep.metric!r}" if self.keep.metric else "is best: keep=Retention(metric=…)"
        why = f"none {metric}" if checkpoint == "best" else "it holds no checkpoint"
        raise NoCheckpointYet(str(self.folder), "no checkpoint in it is whole" if in_order else why)

    def _restore_candidates(self, *, best: bool) -> Sequence[Path]:
        """The checkpoints as `restore` tries them."""
        found = self.list()
        ranked = run_folder.rank_by_metric(found, self.keep.metric, self.keep.mode)
        return [one.path for one in (ranked if best else found[::-1])]

    def _restore_from(self, path: Path, loop: TrainingLoop, random: bool, ranks: RankGroup) -> RestoredState:
        one = ranks.run_on_all(lambda: run_folder.read_checkpoint(path))
        extra = restore_checkpoint(one, loop, ranks, random_states=random)
        self._history = [*one.history]
        return RestoredState(one.path, one.step, one.epoch, one.metrics, extra)


@dataclass(frozen=True)
class _FileToWrite:
    """One file on its way: what rank 0 writes whole, the tensors that are spread, and what of them lies here."""

    unsharded: EncodedTree
    sharded: Mapping[str, torch.Tensor]
    local: Mapping[str, torch.Tensor]


def _translate_os_errors(path: Path, work: Callable[[], T]) -> T:
    """What the work gives. Raises `CheckpointNotSaved` for an OSError."""
    try:
        return work()
    except OSError as error:
        raise CheckpointNotSaved(str(path), error.strerror or str(error)) from error


def _history_line(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the history says of a checkpoint."""
    return {name: record[name] for name in ("step", "epoch", "metrics")}


def _metric_value(name: str, metric: Any) -> float | str:
    """A metric for JSON, which has no NaN and no infinities: they are written as Python spells them."""
    try:
        value = float(metric)
    except (TypeError, ValueError, RuntimeError):
        raise StateNotExpressible(f"metrics.{name}", f"no number, but a {type(metric).__qualname__}") from None
    return value if math.isfinite(value) else str(value)


def _sync_folder(folder: Path) -> None:
    """Have the disk keep which names a folder has."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
