"""A run folder: one folder for each checkpoint, and run.json.

    runs/
      run.json                 name, version, and the metric that decides which checkpoint is best
      step-00000012/
        checkpoint.json        step, epoch, metrics, history, git revision, and the SHA-256 of each file beside it
        model.safetensors      the weights under the module's own names
        ema.safetensors        the averaged weights, if the run keeps them
        training.safetensors   optimizer, scheduler, scaler, random generators
        model.pieces.json      if a run on several ranks shards its tensors: which file has which piece of each
        model.rank-00000.safetensors, …   the pieces, and likewise of ema and training

A checkpoint appears under its name in one step, complete, and disappears in one step: a name that begins with a dot is
on its way in or out. The latest checkpoint is the one that was saved last; the best is the first that has the best
value of the metric. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from packager.common.file_lock import is_same_file, lock_file
from packager.common.hashing import sha256_file
from packager.common.strict_json import read_strict_json
from packager.errors import CheckpointDamaged, NoCheckpointYet, RunSchemaUnknown, escape_unprintable

RUN_FILE, RECORD_FILE = "run.json", "checkpoint.json"
MODEL_FILE, EMA_FILE, TRAINING_FILE = "model.safetensors", "ema.safetensors", "training.safetensors"
FILES_BY_KIND = {"model": MODEL_FILE, "ema": EMA_FILE, "training": TRAINING_FILE}
PIECES_SUFFIX = ".pieces.json"
_CHECKPOINT_NAME = re.compile(r"step-\d{8,}")
_REPLACED_NAME = re.compile(r"\.(step-\d{8,})\.old")
_FIELD_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "name": str, "version": str, "created": str, "revision": (str, type(None)), "epoch": (int, type(None)),
    "parameters": int, "history": list,
}  # fmt: skip
_log = logging.getLogger("packager.checkpoint")

FileDigest = Callable[[Path], str]


@dataclass(frozen=True)
class CheckpointEntry:
    """One checkpoint of a run, as its checkpoint.json records it.

    `number` counts the saves of the run; `created` is an ISO 8601 time; `revision` is that of git; `digests` are the
    SHA-256 of its files by name, and `bytes` is their total size; `history` has the metrics of the saves up to here.
    """

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
    """One row of the table of a run's checkpoints; `path` is the name of the folder."""

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
    """The checkpoint that a manifest's `path: runs/` stands for, and the files to read, the head first.

    `reason` says why this one was chosen, and `skipped_checkpoints` which better ones are damaged, and how.
    """

    checkpoint: CheckpointEntry
    files: tuple[Path, ...]
    reason: str
    skipped_checkpoints: tuple[str, ...] = ()


# -- names ------------------------------------------------------------------------------------


def checkpoint_folder_name(step: int) -> str:
    """Return the name of a step's folder; such names sort as the steps do."""
    return f"step-{step:08d}"


def pieces_index_name(file: str) -> str:
    """Return the name of the index of the pieces that belong to a file of a checkpoint."""
    return file.removesuffix(".safetensors") + PIECES_SUFFIX


def piece_file_name(file: str, rank: int) -> str:
    """Return the name of the file that a rank writes its pieces of `file` to."""
    return f"{file.removesuffix('.safetensors')}.rank-{rank:05d}.safetensors"


# -- reading ----------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a run folder, even if its run.json is lost."""
    return (folder / RUN_FILE).is_file() or any(_iterate_checkpoint_folders(folder))


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint of a run."""
    return (folder / RECORD_FILE).is_file()


def list_parts(entry: CheckpointEntry, file: str) -> list[str]:
    """Return the names of the files that hold the tensors of `file`: itself, or its index, itself and its pieces."""
    index, stem = pieces_index_name(file), file.removesuffix(".safetensors")
    if index not in entry.digests:
        return [file]
    return [index, file, *sorted(name for name in entry.digests if name.startswith(f"{stem}.rank-"))]


def list_checkpoints(folder: Path) -> list[CheckpointEntry]:
    """Return the checkpoints of a run in the order they were saved; an unreadable one is skipped with a warning.

    Raises `RunSchemaUnknown`.
    """
    entries = []
    for path in _iterate_checkpoint_folders(folder):
        try:
            entries.append(read_checkpoint(path))
        except CheckpointDamaged as error:
            _log.warning("skipped: %s", escape_unprintable(f"{error.message}: {error.why}", keep_line_breaks=True))
    return sorted(entries, key=_save_order)


def _check_types(record: Mapping[str, Any]) -> None:
    """Refuse a record with a field of the wrong type, or a file outside its folder. Raises TypeError or ValueError."""
    for field, kinds in _FIELD_TYPES.items():
        if not isinstance(record[field], kinds):
            raise TypeError(f"{field} is a {type(record[field]).__name__}")
    if datetime.fromisoformat(record["created"]).tzinfo is None:
        raise ValueError("created is a time without a zone")
    for name, file in record["files"].items():
        if name != Path(name).name or "\\" in name:
            raise ValueError(f"it names a path outside its folder: {name!r}")
        if not (isinstance(file["sha256"], str) and isinstance(file["bytes"], int)):
            raise TypeError(f"sha256 or bytes of {name} is something else")


def read_checkpoint(path: Path) -> CheckpointEntry:
    """Read the record of a checkpoint's folder, and no other file. Raises `CheckpointDamaged` or `RunSchemaUnknown`."""
    try:
        record = read_strict_json(path / RECORD_FILE)
        if record["schema"] != 1:
            raise RunSchemaUnknown(str(path / RECORD_FILE), record["schema"])
        if not {MODEL_FILE, TRAINING_FILE} <= set(record["files"]):
            raise ValueError(f"it does not list {MODEL_FILE} and {TRAINING_FILE}")
        _check_types(record)
        return CheckpointEntry(
            path=path,
            number=int(record["number"]),
            step=int(record["step"]),
            epoch=record["epoch"],
            metrics={name: float(value) for name, value in record["metrics"].items()},
            name=record["name"],
            version=record["version"],
            created=record["created"],
            revision=record["revision"],
            parameters=record["parameters"],
            digests={name: file["sha256"] for name, file in record["files"].items()},
            bytes=sum(file["bytes"] for file in record["files"].values()),
            history=tuple(record["history"]),
        )
    except OSError as error:
        raise CheckpointDamaged(str(path), f"{RECORD_FILE}: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointDamaged(str(path), f"{RECORD_FILE}: {type(error).__name__}: {error}") from None


def find_latest(entries: Sequence[CheckpointEntry]) -> CheckpointEntry | None:
    """Return the checkpoint that was saved last; None if there are none."""
    return max(entries, key=_save_order, default=None)


def find_best(entries: Sequence[CheckpointEntry], metric: str | None, mode: str) -> CheckpointEntry | None:
    """Return the first checkpoint with the best value of the metric; None without a metric, or if none has a value."""
    return next(iter(rank_by_metric(entries, metric, mode)), None)


def rank_by_metric(entries: Sequence[CheckpointEntry], metric: str | None, mode: str) -> list[CheckpointEntry]:
    """Return the checkpoints that have a number for the metric, the best first, and among equals the earlier.

    `mode` is `min` if a smaller value is better, else `max`.
    """
    if metric is None:
        return []
    sign = 1 if mode == "min" else -1
    measured = [entry for entry in entries if not math.isnan(entry.metrics.get(metric, math.nan))]
    return sorted(measured, key=lambda entry: (sign * entry.metrics[metric], *_save_order(entry)))


def read_run_settings(folder: Path) -> tuple[str | None, str]:
    """Return a run's metric, if it has one, and its mode: whether the best value is the `min` or the `max`.

    Raises `CheckpointDamaged` or `RunSchemaUnknown`.
    """
    try:
        record = read_strict_json(folder / RUN_FILE)
        schema, metric, mode = record["schema"], record["metric"], record["mode"]
    except FileNotFoundError:
        return None, "min"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(str(folder / RUN_FILE), f"{type(error).__name__}: {error}") from None
    if schema != 1:
        raise RunSchemaUnknown(str(folder / RUN_FILE), schema)
    if not (metric is None or isinstance(metric, str)) or mode not in ("min", "max"):
        raise CheckpointDamaged(str(folder / RUN_FILE), "metric or mode has the wrong type")
    return metric, mode


def tabulate_checkpoints(folder: Path, now: datetime | None = None) -> list[CheckpointRow]:
    """Return a row for each checkpoint, in the order they were saved.

    Ages count to `now`, by default the current time. Raises `CheckpointDamaged` or `RunSchemaUnknown`.
    """
    entries, (metric, mode) = list_checkpoints(folder), read_run_settings(folder)
    best, latest = find_best(entries, metric, mode), find_latest(entries)
    now = now or datetime.now(timezone.utc)
    return [
        CheckpointRow(
            step=entry.step,
            epoch=entry.epoch,
            metrics=entry.metrics,
            bytes=entry.bytes,
            age_seconds=(now - datetime.fromisoformat(entry.created)).total_seconds(),
            best=entry is best,
            latest=entry is latest,
            path=entry.path.name,
        )
        for entry in entries
    ]


def find_damage(entry: CheckpointEntry, names: Sequence[str] = (), sha256: FileDigest = sha256_file) -> str | None:
    """Return how a checkpoint, or these files of it, differ from what was saved; None if they are intact."""
    for name in names or entry.digests:
        try:
            digest = sha256(entry.path / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if digest != entry.digests[name]:
            return f"{name}\nSHA-256 saved: {entry.digests[name]}\nSHA-256 found: {digest}"
    return None


def choose_checkpoint(folder: Path, weights: str = "auto", sha256: FileDigest = sha256_file) -> ChosenCheckpoint:
    """Choose the weights that a run folder, or one checkpoint's folder, stands for.

    That is the best checkpoint if the run has a metric, and else the latest; damaged ones are skipped. `weights="ema"`
    means its averaged weights, and anything else its model. Raises `NoCheckpointYet`, `CheckpointDamaged` or
    `RunSchemaUnknown`.
    """
    file = EMA_FILE if weights == "ema" else MODEL_FILE
    if is_checkpoint(folder):
        candidates, reason = [read_checkpoint(folder)], "the checkpoint that was named"
    else:
        entries, (metric, mode) = list_checkpoints(folder), read_run_settings(folder)
        candidates = rank_by_metric(entries, metric, mode)
        reason = f"the best {metric}" if candidates else "the latest"
        candidates = candidates or sorted(entries, key=lambda entry: -entry.number)
    skipped: list[str] = []
    for entry in candidates:
        if file not in entry.digests:
            raise NoCheckpointYet(str(folder), f"{entry.path.name} has no {file}")
        names = list_parts(entry, file)
        damage = find_damage(entry, names, sha256)
        if damage is None:
            return ChosenCheckpoint(entry, tuple(entry.path / name for name in names), reason, tuple(skipped))
        skipped.append(f"{entry.path.name} is not what was saved: {damage}")
    raise NoCheckpointYet(str(folder), "every checkpoint in it is damaged" if candidates else "it holds no checkpoint")


def _save_order(entry: CheckpointEntry) -> tuple[int, int]:
    return entry.number, entry.step


def _iterate_checkpoint_folders(folder: Path) -> Iterator[Path]:
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    names = {path.name for path in paths}
    for path in paths:
        # If the process was killed while it replaced a checkpoint, the old one is still there under its other name.
        replaced = _REPLACED_NAME.fullmatch(path.name)
        complete = _CHECKPOINT_NAME.fullmatch(path.name) or (replaced and replaced[1] not in names)
        if complete and path.is_dir():
            yield path


# -- one writer, and readers that are not disturbed -------------------------------------------


@contextlib.contextmanager
def lock_for_reading(path: Path) -> Iterator[None]:
    """Keep a checkpoint from being deleted or replaced. Raises `CheckpointDamaged` if it is gone."""
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
    """Keep a checkpoint from being read; yields False if somebody reads it, which happens without `wait` alone."""
    try:
        stream = (path / RECORD_FILE).open("r+b")
    except OSError:
        yield True  # nobody can read it
        return
    with stream:
        yield lock_file(stream, shared=False, wait=wait)


@contextlib.contextmanager
def lock_for_writing(folder: Path) -> Iterator[None]:
    """Be the only process that adds or removes checkpoints of a run."""
    with (folder / ".lock").open("ab") as stream:
        lock_file(stream, shared=False)
        yield
