"""What a run folder holds: one folder for each checkpoint, and run.json.

    runs/
      run.json                 name, version, and the metric that decides which checkpoint is best
      step-00000012/
        checkpoint.json        step, epoch, metrics, history, git revision, and the SHA-256 of each file beside it
        model.safetensors      the weights under the module's own names
        ema.safetensors        the averaged weights, where the run keeps them
        training.safetensors   optimizer, scheduler, scaler, random generators
        model.pieces.json      where a run on several ranks spreads its tensors, which file has which piece of each
        model.rank-00000.safetensors, …   the pieces, and likewise of ema and training

A checkpoint appears under its name in one step, complete, and disappears in one step: whatever begins with a dot is
on its way in or out. The latest is the one that was saved last; the best is the first that has the best value of
the metric. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from packager.common.hashing import sha256_file
from packager.errors import CheckpointDamaged, NoCheckpointYet, RunSchemaUnknown

try:
    import fcntl
except ImportError:  # Windows: nobody else is seen there
    fcntl = None  # type: ignore[assignment]  # the only way to say that a module is absent

RUN_FILE, RECORD_FILE = "run.json", "checkpoint.json"
MODEL_FILE, EMA_FILE, TRAINING_FILE = "model.safetensors", "ema.safetensors", "training.safetensors"
FILES_BY_KIND = {"model": MODEL_FILE, "ema": EMA_FILE, "training": TRAINING_FILE}
PIECES_SUFFIX = ".pieces.json"
_CHECKPOINT_NAME = re.compile(r"step-\d{8,}")
_REPLACED_NAME = re.compile(r"\.(step-\d{8,})\.old")
_log = logging.getLogger("packager.checkpoint")

FileDigest = Callable[[Path], str]


@dataclass(frozen=True)
class CheckpointEntry:
    """One checkpoint of a run, as its checkpoint.json tells it; `number` counts the saves of the run."""

    path: Path
    number: int
    step: int
    epoch: int | None
    metrics: Mapping[str, float]
    name: str
    version: str
    created: str
    revision: str | None
    parameters: int
    digests: Mapping[str, str]
    bytes: int
    history: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CheckpointRow:
    """One line of the table of a run."""

    step: int
    epoch: int | None
    metrics: Mapping[str, float]
    bytes: int
    age_seconds: float
    best: bool
    latest: bool
    path: str


@dataclass(frozen=True)
class ChosenCheckpoint:
    """The files that a manifest's `path: runs/` means, the head first, and the checkpoint they belong to.

    `passed_over` says which would have come before, and are damaged.
    """

    checkpoint: CheckpointEntry
    files: tuple[Path, ...]
    reason: str
    skipped_checkpoints: tuple[str, ...] = ()


# -- reading ----------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder, or was one before its run.json was lost."""
    return (folder / RUN_FILE).is_file() or any(_iterate_checkpoint_folders(folder))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint."""
    return (folder / RECORD_FILE).is_file()


def checkpoint_folder_name(step: int) -> str:
    """The folder of a step; such names sort as the steps do."""
    return f"step-{step:08d}"


def pieces_index_name(file: str) -> str:
    """The index of the pieces that belong to a file of a checkpoint."""
    return file.removesuffix(".safetensors") + PIECES_SUFFIX


def piece_file_name(file: str, rank: int) -> str:
    """Where a rank writes its pieces of what belongs to a file."""
    return f"{file.removesuffix('.safetensors')}.rank-{rank:05d}.safetensors"


def list_parts(one: CheckpointEntry, file: str) -> list[str]:
    """The file, or where it has pieces their index, it, and the files of the pieces."""
    index, stem = pieces_index_name(file), file.removesuffix(".safetensors")
    if index not in one.digests:
        return [file]
    return [index, file, *sorted(name for name in one.digests if name.startswith(f"{stem}.rank-"))]


def list_checkpoints(folder: Path) -> list[CheckpointEntry]:
    """The checkpoints of a run in the order they were saved; one that cannot be read is skipped with a warning."""
    found = []
    for path in _iterate_checkpoint_folders(folder):
        try:
            found.append(read_checkpoint(path))
        except CheckpointDamaged as error:
            _log.warning("skipped: %s: %s", error.message, error.why)
    return sorted(found, key=lambda one: (one.number, one.step))


def read_checkpoint(path: Path) -> CheckpointEntry:
    """One checkpoint's folder. Raises `CheckpointDamaged` or `RunSchemaUnknown`; digests are not looked at."""
    try:
        record = json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
        if record["schema"] != 1:
            raise RunSchemaUnknown(str(path / RECORD_FILE), record["schema"])
        if not {MODEL_FILE, TRAINING_FILE} <= set(record["files"]):
            raise ValueError(f"it lists no {MODEL_FILE} or no {TRAINING_FILE}")
        return CheckpointEntry(
            path=path,
            number=int(record["number"]),
            step=int(record["step"]),
            epoch=record["epoch"],
            metrics={name: float(one) for name, one in record["metrics"].items()},
            name=record["name"],
            version=record["version"],
            created=record["created"],
            revision=record["revision"],
            parameters=record["parameters"],
            digests={name: one["sha256"] for name, one in record["files"].items()},
            bytes=sum(one["bytes"] for one in record["files"].values()),
            history=tuple(record["history"]),
        )
    except OSError as error:
        raise CheckpointDamaged(str(path), f"{RECORD_FILE}: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(str(path), f"{RECORD_FILE}: {type(error).__name__}: {error}") from None


def find_latest(found: Sequence[CheckpointEntry]) -> CheckpointEntry | None:
    """The checkpoint that was saved last."""
    return max(found, key=lambda one: (one.number, one.step), default=None)


def find_best(found: Sequence[CheckpointEntry], metric: str | None, mode: str) -> CheckpointEntry | None:
    """The first checkpoint with the best value of the metric; None where there is no metric, or no number in it."""
    return next(iter(rank_by_metric(found, metric, mode)), None)


def rank_by_metric(found: Sequence[CheckpointEntry], metric: str | None, mode: str) -> list[CheckpointEntry]:
    """The checkpoints that have a number for the metric, the best first, and of equals the earlier."""
    if metric is None:
        return []
    sign = 1 if mode == "min" else -1
    measured = [one for one in found if not math.isnan(one.metrics.get(metric, math.nan))]
    return sorted(measured, key=lambda one: (sign * one.metrics[metric], one.number, one.step))


def read_run_settings(folder: Path) -> tuple[str | None, str]:
    """The metric of a run and whether its best value is the `min` or the `max`; no metric where run.json has none."""
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        schema, metric, mode = record["schema"], record["metric"], record["mode"]
    except FileNotFoundError:
        return None, "min"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(str(folder / RUN_FILE), f"{type(error).__name__}: {error}") from None
    if schema != 1:
        raise RunSchemaUnknown(str(folder / RUN_FILE), schema)
    return metric, mode


def tabulate_checkpoints(folder: Path, now: datetime | None = None) -> list[CheckpointRow]:
    """A line for each checkpoint, the last saved at the end. Raises `CheckpointDamaged`, `RunSchemaUnknown`."""
    found, (metric, mode) = list_checkpoints(folder), read_run_settings(folder)
    first, last = find_best(found, metric, mode), find_latest(found)
    now = now or datetime.now(timezone.utc)
    return [
        CheckpointRow(
            step=one.step,
            epoch=one.epoch,
            metrics=one.metrics,
            bytes=one.bytes,
            age_seconds=(now - datetime.fromisoformat(one.created)).total_seconds(),
            best=one is first,
            latest=one is last,
            path=one.path.name,
        )
        for one in found
    ]


def find_damage(one: CheckpointEntry, names: Sequence[str] = (), sha256: FileDigest = sha256_file) -> str | None:
    """Why a checkpoint, or these files of it, are not what was saved; None where they are."""
    for name in names or one.digests:
        path = one.path / name
        try:
            found = sha256(path)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != one.digests[name]:
            return f"{name}\nSHA-256 saved: {one.digests[name]}\nSHA-256 found: {found}"
    return None


def choose_checkpoint(folder: Path, weights: str = "auto", sha256: FileDigest = sha256_file) -> ChosenCheckpoint:
    """The weights that a run folder, or one checkpoint's folder, stands for.

    `auto` is the best checkpoint's model where the run has a metric, and else the latest's; `model` and `ema` are
    that checkpoint's file of the name. A damaged one is passed over, and that is said. Raises `NoCheckpointYet`,
    `CheckpointDamaged`.
    """
    file = EMA_FILE if weights == "ema" else MODEL_FILE
    if is_checkpoint(folder):
        ordered, why = [read_checkpoint(folder)], "the checkpoint that was named"
    else:
        found, (metric, mode) = list_checkpoints(folder), read_run_settings(folder)
        ordered = rank_by_metric(found, metric, mode)
        why = f"the best {metric}" if ordered else "the latest"
        ordered = ordered or sorted(found, key=lambda one: -one.number)
    passed_over: list[str] = []
    for one in ordered:
        if file not in one.digests:
            raise NoCheckpointYet(str(folder), f"{one.path.name} has no {file}")
        names = list_parts(one, file)
        broken = find_damage(one, names, sha256)
        if broken is None:
            return ChosenCheckpoint(one, tuple(one.path / name for name in names), why, tuple(passed_over))
        passed_over.append(f"{one.path.name} is not what was saved: {broken}")
    raise NoCheckpointYet(str(folder), "no checkpoint in it is whole" if ordered else "it holds no checkpoint")


def _iterate_checkpoint_folders(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        # One that was being replaced when the process was killed still stands aside, under its other name.
        aside = _REPLACED_NAME.fullmatch(name)
        there = _CHECKPOINT_NAME.fullmatch(name) or (aside and aside[1] not in names)
        if there and (folder / name).is_dir():
            yield folder / name


# -- one writer, and readers that are not disturbed -------------------------------------------


@contextlib.contextmanager
def lock_for_reading(path: Path) -> Iterator[None]:
    """While open, nobody deletes or replaces this checkpoint. Raises `CheckpointDamaged` where it is gone."""
    try:
        with (path / RECORD_FILE).open("rb") as stream:
            lock_file(stream, shared=True)
            if not is_same_file(stream, path / RECORD_FILE):
                raise FileNotFoundError(2, "it was deleted")
            yield
    except FileNotFoundError as error:
        raise CheckpointDamaged(str(path), error.strerror or "it is gone") from None


@contextlib.contextmanager
def lock_for_removal(path: Path, *, wait: bool) -> Iterator[bool]:
    """Yields whether nobody reads this checkpoint; while open, nobody begins to."""
    try:
        stream = (path / RECORD_FILE).open("r+b")
    except OSError:
        yield True  # nobody can read it
        return
    with stream:
        yield lock_file(stream, shared=False, wait=wait)


@contextlib.contextmanager
def lock_for_writing(folder: Path) -> Iterator[None]:
    """While open, this is the only one that changes which checkpoints there are."""
    with (folder / ".lock").open("ab") as stream:
        lock_file(stream, shared=False)
        yield


LOCKS_SUPPORTED = fcntl is not None
"""Whether `lock` locks anything here."""


def lock_file(stream: IO[bytes], *, shared: bool, wait: bool = True) -> bool:
    """Lock an open file; whether that was done. `shared` is for those that only read; it ends with the stream."""
    if fcntl is None:
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(stream, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        # A file system without locks: nobody else is seen there either.
    return True


def is_same_file(stream: IO[bytes], path: Path) -> bool:
    """Whether a path still leads to the file that was opened."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
