"""Describe what training saved beside the weights, in plain values: progress, metrics and hyperparameters.

Every script has its own names for these; the usual ones, Lightning's among them, are looked up, and nothing is guessed
from other names. No tensor library is imported.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from packager.checkpoint.run_folder import EMA_FILE, TRAINING_FILE, read_checkpoint
from packager.checkpoint.safetensors_header import get_metadata, read_header
from packager.errors import CheckpointDamaged

EMA_KEYS = (
    "ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema_state", "shadow", "averaged_model",
    "swa_model", "swa_state_dict",
)  # fmt: skip
AVERAGED_COUNTER_KEY = "n_averaged"  # torch.optim.swa_utils.AveragedModel counts in it
_EPOCH_KEYS = ("epoch", "current_epoch", "last_epoch")
_STEP_KEYS = ("global_step", "step", "iteration", "iter", "num_updates")
_METRIC_KEYS = ("metrics", "best_metrics", "metric", "scores", "results", "logs", "best")
_HYPERPARAMETER_KEYS = (
    "hyper_parameters", "hparams", "hyperparameters", "args", "config", "cfg", "opt", "options", "model_args",
    "training_args", "datamodule_hyper_parameters",
)  # fmt: skip
_MAX_DEPTH = 6
_MAX_VALUES = 1000  # shown of all hyperparameters together
_MAX_TEXT_LENGTH = 300

PlainValue = Any
"""A value of JSON: None, bool, int, float, str, or lists and dicts of these."""


@dataclass(frozen=True)
class About:
    """What was saved beside a state dict.

    `metrics` are single numbers; a hyperparameter that is not a plain value is replaced by its type. `optimizer`,
    `scheduler` and `ema` say whether their states were saved. `name`, `version` and the git `revision` come from the
    record of a run of CheckpointManager.
    """

    epoch: int | None = None
    step: int | None = None
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    hyperparameters: Mapping[str, PlainValue] = field(default_factory=dict)
    optimizer: bool = False
    scheduler: bool = False
    ema: bool = False
    name: str | None = None
    version: str | None = None
    revision: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object that `package inspect --json` prints under `about`."""
        return asdict(self)

    def rows(self) -> dict[str, str]:
        """Return the texts to show, by title, without those that are empty."""
        rows = {
            "run": " ".join(filter(None, (self.name, self.version))),
            "epoch": None if self.epoch is None else str(self.epoch),
            "step": None if self.step is None else str(self.step),
            "metrics": ", ".join(f"{name} {_format_number(value)}" for name, value in self.metrics.items()),
            "hyperparameters": ", ".join(f"{name}: {value}" for name, value in self.hyperparameters.items()),
            "also there": ", ".join(
                name for name in ("optimizer", "scheduler", "ema") if getattr(self, name)
            ),
            "revision": self.revision,
        }  # fmt: skip
        return {title: text for title, text in rows.items() if text}


def describe_contents(content: Mapping[Any, Any], strings: Mapping[str, str]) -> About:
    """Describe the content of a file; `strings` is the metadata of a safetensors file."""
    values: dict[str, Any] = {**strings, **{str(key): value for key, value in content.items()}}
    names = [name.lower() for name in values]
    return About(
        epoch=_find_count(values, _EPOCH_KEYS),
        step=_find_count(values, _STEP_KEYS),
        metrics=_collect_metrics(values),
        hyperparameters=_collect_hyperparameters(values),
        optimizer=any("optim" in name for name in names) or any(map(_is_optimizer, values.values())),
        scheduler=any("sched" in name for name in names),
        ema=any(name in EMA_KEYS or name == AVERAGED_COUNTER_KEY for name in names),
    )


def describe_run_checkpoint(folder: Path) -> About:
    """Describe the checkpoint of a run in this folder. Raises `CheckpointDamaged` or `RunSchemaUnknown`."""
    record = read_checkpoint(folder)
    try:
        training = json.loads(get_metadata(read_header(folder / TRAINING_FILE))["tree"])["dict"]
        optimizer, scheduler = "optimizer" in training, "scheduler" in training
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointDamaged(str(folder), f"{TRAINING_FILE}: {type(error).__name__}: {error}") from None
    return About(
        epoch=record.epoch,
        step=record.step,
        metrics=_as_finite_or_text(record.metrics),
        optimizer=optimizer,
        scheduler=scheduler,
        ema=EMA_FILE in record.digests,
        name=record.name,
        version=record.version,
        revision=record.revision,
    )


def _find_count(values: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """Return the first whole number under one of these names."""
    for name in names:
        value = values.get(name)
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 19 else _to_number(value)
        if isinstance(number, (int, float)) and math.isfinite(number) and number == int(number):
            return int(number)
    return None


def _collect_metrics(values: Mapping[str, Any]) -> dict[str, float | str]:
    """Return single numbers at the top level, in a dict of metrics, and the best score of Lightning's callbacks."""
    counters = (*_EPOCH_KEYS, *_STEP_KEYS, AVERAGED_COUNTER_KEY)
    candidates = {name: value for name, value in values.items() if name not in counters}
    for name in _METRIC_KEYS:
        metrics = values.get(name)
        candidates.update({str(key): value for key, value in metrics.items()} if isinstance(metrics, Mapping) else {})
    callbacks = values.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and "best_model_score" in state:
            candidates["best_model_score"] = state["best_model_score"]
    numbers = {name: _to_number(value) for name, value in list(candidates.items())[:_MAX_VALUES]}
    return _as_finite_or_text({name: number for name, number in numbers.items() if number is not None})


def _as_finite_or_text(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Return the numbers with `nan` and infinities as text, which JSON lacks."""
    return {name: number if math.isfinite(number) else str(number) for name, number in numbers.items()}


def _to_number(value: Any) -> float | None:
    """Return a single number of any library as one of Python's; None for anything else."""
    if isinstance(value, bool):
        return None
    dense = str(getattr(value, "layout", "torch.strided")) == "torch.strided" and not getattr(value, "is_meta", False)
    if getattr(value, "shape", None) == () and hasattr(value, "item") and dense:
        value = value.item()  # of a tensor or a numpy scalar
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if isinstance(value, float) or abs(value) < 1 << 63 else None


def _collect_hyperparameters(values: Mapping[str, Any]) -> dict[str, PlainValue]:
    result: dict[str, PlainValue] = {}
    remaining = [_MAX_VALUES]
    for name in _HYPERPARAMETER_KEYS:
        group = values.get(name)
        if isinstance(group, argparse.Namespace):
            group = vars(group)
        if isinstance(group, Mapping) and not _is_optimizer(group):
            for key, value in list(group.items())[:_MAX_VALUES]:
                result[str(key)] = _to_plain_value(value, remaining, _MAX_DEPTH)
    return result


def _is_optimizer(value: Any) -> bool:
    """Tell whether a value is the state dict of an optimizer of torch."""
    return isinstance(value, Mapping) and {"state", "param_groups"} <= set(value)


def _to_plain_value(value: Any, remaining: list[int], depth: int) -> PlainValue:
    """Return a value as JSON can express it; `remaining` counts down the values that may still be shown."""
    remaining[0] -= 1
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else "a very large int"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (str, PurePath)):
        text = str(value)
        return text if len(text) <= _MAX_TEXT_LENGTH else f"{text[:_MAX_TEXT_LENGTH]}…"
    if depth and remaining[0] > 0 and isinstance(value, Mapping):
        items = list(value.items())[: remaining[0]]
        return {str(key): _to_plain_value(item, remaining, depth - 1) for key, item in items}
    if depth and remaining[0] > 0 and isinstance(value, (list, tuple, set)):
        return [_to_plain_value(item, remaining, depth - 1) for item in list(value)[: remaining[0]]]
    return f"<{type(value).__name__}>"


def _format_number(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
