"""Save and restore the checkpoints of a training loop, and keep only the ones worth keeping.

    manager = CheckpointManager("runs", keep=Retention(latest=3, metric="val_loss"))
    manager.save(step=step, epoch=epoch, model=model, optimizer=optimizer, metrics={"val_loss": loss})
    done = manager.restore("latest", model=model, optimizer=optimizer)   # done.step, done.epoch, done.extra

A kill or a power cut leaves every checkpoint that was complete: see `packager.checkpoint.training.write`. With
`blocking=False` a save returns once the state has been copied. One background thread writes it, one save at a time,
and the next call raises any error it had.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from packager.checkpoint import run_folder
from packager.checkpoint.ranks import RankGroup, create_rank_group
from packager.checkpoint.run_folder import FILES_BY_KIND, CheckpointEntry, checkpoint_folder_name
from packager.checkpoint.state_tree import encode_tree
from packager.checkpoint.training.loop_state import Stateful, TrainingLoop, capture_state
from packager.checkpoint.training.module_weights import count_parameters
from packager.checkpoint.training.random_states import Generator
from packager.checkpoint.training.record import build_record, history_line, read_git_revision
from packager.checkpoint.training.restore import restore_checkpoint
from packager.checkpoint.training.retention import Retention
from packager.checkpoint.training.staging_memory import FileToWrite, StagingMemory, select_local
from packager.checkpoint.training.write import RunSettings, write_checkpoint
from packager.errors import (
    CheckpointDamaged,
    CheckpointNotFound,
    NoCheckpointYet,
    PackagerError,
    RunSettingsWrong,
    escape_unprintable,
)

_ERROR_PREFIXES = {"model": "model", "ema": "ema", "training": ""}
_KEEP_ALL = Retention()
_NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*")
_VERSION_PATTERN = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)([-+][0-9A-Za-z.+-]+)?")
_log = logging.getLogger("packager.checkpoint")


@dataclass(frozen=True)
class RestoredState:
    """The checkpoint that was restored, and what `save` was given with it: where the run continues."""

    path: Path
    step: int
    epoch: int | None
    metrics: Mapping[str, float]
    extra: Any


class CheckpointManager:
    """Saves and restores the checkpoints of one run folder; the module describes what it guarantees.

    `keep` says which checkpoints stay, `name` and `version` (a semantic version) are written into each of them. As a
    context manager, it waits at the end for what is still being written.
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
            raise RunSettingsWrong(f"name {name!r} must consist of lower-case letters, digits, '.', '_' and '-'")
        if not _VERSION_PATTERN.fullmatch(version):
            raise RunSettingsWrong(f"version {version!r} must be a semantic version, such as 1.0.0")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.name, self.version = name, version
        self._history: list[Mapping[str, Any]] = []
        self._pending: Future[None] | None = None
        self._ranks: RankGroup | None = None
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._staging = StagingMemory()

    def list(self) -> list[CheckpointEntry]:
        """Return the checkpoints in the order they were saved. Raises the error of a finished background save."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return run_folder.list_checkpoints(self.folder)

    def latest(self) -> CheckpointEntry | None:
        """Return the checkpoint that was saved last."""
        return run_folder.find_latest(self.list())

    def best(self) -> CheckpointEntry | None:
        """Return the checkpoint with the best value of `keep.metric`; None without such a metric."""
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
        """Save the state of a loop as `step-…/`, replacing one of the same step, and return that folder.

        `generators` are those that a DataLoader or an augmentation was given; the global ones of Python, numpy, torch
        and CUDA are always saved. `metrics` are numbers by name. `extra` is any tree of tensors and plain values, for
        `restore` to return. With `blocking=False`, the folder exists once `wait()` or the next call has returned.

        Raises `RunSettingsWrong`, `StateNotExpressible` or `CheckpointNotSaved`, also for an earlier background save.
        """
        self.wait()
        _check_count("step", step)
        if epoch is not None:
            _check_count("epoch", epoch, " or None")
        path, ranks = self.folder / checkpoint_folder_name(step), self._current_ranks()
        trees = capture_state(TrainingLoop(model, optimizer, scheduler, ema, scaler, generators), extra, ranks)

        def prepare() -> tuple[dict[str, FileToWrite], dict[str, Any]]:
            record = build_record(
                name=self.name, version=self.version, step=step, epoch=epoch, metrics=metrics or {},
                revision=self._revision, parameters=count_parameters(model, trees["model"]),
            )  # fmt: skip
            encoded = {FILES_BY_KIND[kind]: encode_tree(tree, _ERROR_PREFIXES[kind]) for kind, tree in trees.items()}
            files = {name: select_local(tree, ranks) for name, tree in encoded.items()}
            if not blocking:
                files = {name: self._staging.copy(name, file) for name, file in files.items()}
            return files, record

        files, record = ranks.run_on_all(prepare)
        if blocking:
            self._write(path, files, record, ranks)
        else:
            self._pending = self._background.submit(self._write, path, files, record, ranks)
        return path

    def _write(self, path: Path, files: Mapping[str, FileToWrite], record: Mapping[str, Any], ranks: RankGroup) -> None:
        run = RunSettings(self.folder, self.keep, self.name, self.version)
        history = [*self._history, history_line(record)]
        write_checkpoint(run, path, files, record, history, ranks)
        self._history = history

    def wait(self) -> None:
        """Return when nothing is being written any more. Raises the error of a background save."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait for what is being written, and release the thread, the memory for copies and the group of ranks."""
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
        except PackagerError as save_error:  # the error of the loop must not be hidden
            _log.error("%s: %s", save_error.message, save_error.why)

    def _current_ranks(self) -> RankGroup:
        if self._ranks is None or self._ranks.has_ended:
            self._ranks = create_rank_group()
        return self._ranks

    @cached_property
    def _revision(self) -> str | None:
        return read_git_revision()

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
        """Restore a checkpoint: the `latest` (also for None), the `best`, or the one at a path.

        Each tensor goes to the device that its counterpart in the model is on. A damaged checkpoint is skipped with a
        warning, and the one before it is used, unless it was named by its path. `random=False` leaves the global
        generators as they are. If the checkpoint does not fit, nothing is changed.

        Raises `NoCheckpointYet`, `CheckpointNotFound`, `CheckpointDamaged`, `TrainingStateDiffers`.
        """
        ranks = self._current_ranks()
        ranks.run_on_all(self.wait)  # afterwards, every rank sees what was being written
        loop = TrainingLoop(model, optimizer, scheduler, ema, scaler, generators)
        if checkpoint not in (None, "latest", "best"):
            path = Path(checkpoint).absolute()
            if not ranks.run_on_first(path.is_dir):
                why = "expected: 'latest', 'best', or the folder of a checkpoint"
                raise CheckpointNotFound(str(path), None, why)
            return self._restore_from(path, loop, random, ranks)
        candidates = ranks.run_on_first(lambda: self._restore_candidates(best=checkpoint == "best"))
        for path in candidates:
            try:
                return self._restore_from(path, loop, random, ranks)
            except CheckpointDamaged as error:
                _log.warning("skipped: %s", escape_unprintable(f"{error.message}: {error.why}", keep_line_breaks=True))
        why = "it holds no checkpoint"
        if candidates:
            why = "every checkpoint in it is damaged"
        elif checkpoint == "best":
            metric = self.keep.metric
            why = f"no checkpoint has a number for {metric!r}" if metric else "'best' needs keep=Retention(metric=…)"
        raise NoCheckpointYet(str(self.folder), why)

    def _restore_candidates(self, *, best: bool) -> Sequence[Path]:
        """Return the checkpoints in the order in which `restore` tries them."""
        entries = self.list()
        ranked = run_folder.rank_by_metric(entries, self.keep.metric, self.keep.mode)
        return [entry.path for entry in (ranked if best else entries[::-1])]

    def _restore_from(self, path: Path, loop: TrainingLoop, random: bool, ranks: RankGroup) -> RestoredState:
        entry = ranks.run_on_all(lambda: run_folder.read_checkpoint(path))
        extra = restore_checkpoint(entry, loop, ranks, random_states=random)
        self._history = [*entry.history]
        return RestoredState(entry.path, entry.step, entry.epoch, entry.metrics, extra)


def _check_count(name: str, value: object, alternative: str = "") -> None:
    if type(value) is not int or value < 0:
        raise RunSettingsWrong(f"{name} must be a whole number from 0{alternative}, not {value!r}")
