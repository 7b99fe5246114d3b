"""What training left beside the weights, in plain values: how far it was, how good, and with which settings.

Every script names these things in its own way; the usual names are looked for, Lightning's among them. Nothing
is guessed: what is not there under one of them is not said. No tensor library is imported for it.
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
_MAX_VALUES = 1000  # values that are shown
_MAX_TEXT_LENGTH = 300

PlainValue = Any
"""None, bool, int, float, str, or lists and dicts of these: what JSON has."""


@dataclass(frozen=True)
class About:
    """What lay beside a state dict. `metrics` are single numbers; a setting that is no plain value shows its type.

    `name`, `version` and the git `revision` are those that a run of CheckpointManager writes down.
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
        """The object that `package inspect --json` prints under `about`."""
        return asdict(self)

    def rows(self) -> dict[str, str]:
        """What there is to show, by title."""
        found = {
            "run": " ".join(one for one in (self.name, self.version) if one),
            "epoch": None if self.epoch is None else str(self.epoch),
            "step": None if self.step is None else str(self.step),
            "metrics": ", ".join(f"{name} {_format_number(value)}" for name, value in self.metrics.items()),
            "hyperparameters": ", ".join(f"{name}: {value}" for name, value in self.hyperparameters.items()),
            "also there": ", ".join(
                name for name in ("optimizer", "scheduler", "ema") if getattr(self, name)
            ),
            "revision": self.revision,
        }  # fmt: skip
        return {title: text for title, text in found.items() if text}


def describe_contents(found: Mapping[Any, Any], strings: Mapping[str, str]) -> About:
    """Describe what a file held; `strings` are those of a safetensors file."""
    whole: dict[str, Any] = {**strings, **{str(key): value for key, value in found.items()}}
    names = [name.lower() for name in whole]
    epoch, step = _find_count(whole, _EPOCH_KEYS), _find_count(whole, _STEP_KEYS)
    return About(
        epoch=epoch,
        step=step,
        metrics=_collect_metrics(whole),
        hyperparameters=_collect_hyperparameters(whole),
        optimizer=any("optim" in name for name in names) or any(_is_optimizer(value) for value in whole.values()),
        scheduler=any("sched" in name for name in names),
        ema=any(name in EMA_KEYS or name == AVERAGED_COUNTER_KEY for name in names),
    )


def describe_run_checkpoint(folder: Path) -> About:
    """What the record of one checkpoint of a run says. Raises `CheckpointDamaged` or `RunSchemaUnknown`."""
    record = read_checkpoint(folder)
    try:
        training = json.loads(get_metadata(read_header(folder / TRAINING_FILE))["tree"])["dict"]
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise CheckpointDamaged(str(folder), f"{TRAINING_FILE}: {type(error).__name__}: {error}") from None
    return About(
        epoch=record.epoch,
        step=record.step,
        metrics={name: one if math.isfinite(one) else str(one) for name, one in record.metrics.items()},
        optimizer="optimizer" in training,
        scheduler="scheduler" in training,
        ema=EMA_FILE in record.digests,
        name=record.name,
        version=record.version,
        revision=record.revision,
    )


def _find_count(whole: Mapping[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        value = whole.get(name)
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 19 else _to_number(value)
        if isinstance(number, (int, float)) and math.isfinite(number) and number == int(number):
            return int(number)
    return None


def _collect_metrics(whole: Mapping[str, Any]) -> dict[str, float | str]:
    """Single numbers at the top, in a dict of metrics, and the best score that Lightning's callbacks keep."""
    given = {
        name: value for name, value in whole.items() if name not in (*_EPOCH_KEYS, *_STEP_KEYS, AVERAGED_COUNTER_KEY)
    }
    for name in _METRIC_KEYS:
        inner = whole.get(name)
        given.update({str(key): value for key, value in inner.items()} if isinstance(inner, Mapping) else {})
    callbacks = whole.get("callbacks")
    for one in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(one, Mapping) and "best_model_score" in one:
            given["best_model_score"] = one["best_model_score"]
    found = {name: _to_number(value) for name, value in list(given.items())[:_MAX_VALUES]}
    return {name: one if math.isfinite(one) else str(one) for name, one in found.items() if one is not None}


def _to_number(value: Any) -> float | None:
    """A single number of any library."""
    if isinstance(value, bool):
        return None
    dense = str(getattr(value, "layout", "torch.strided")) == "torch.strided" and not getattr(value, "is_meta", False)
    if getattr(value, "shape", None) == () and hasattr(value, "item") and dense:
        value = value.item()  # a tensor's, or a scalar of numpy's
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if isinstance(value, float) or abs(value) < 1 << 63 else None


def _collect_hyperparameters(whole: Mapping[str, Any]) -> dict[str, PlainValue]:
    found: dict[str, PlainValue] = {}
    left = [_MAX_VALUES]
    for name in _HYPERPARAMETER_KEYS:
        value = whole.get(name)
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, Mapping) and not _is_optimizer(value):
            found.update(
                {str(key): _to_plain_value(one, left, _MAX_DEPTH) for key, one in list(value.items())[:_MAX_VALUES]}
            )
    return found


def _is_optimizer(value: Any) -> bool:
    """Whether it is what an optimizer of torch keeps."""
    return isinstance(value, Mapping) and {"state", "param_groups"} <= set(value)


def _to_plain_value(value: Any, left: list[int], depth: int) -> PlainValue:
    """A value as JSON has it; `left` counts down how many more are shown."""
    left[0] -= 1
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
    if depth and left[0] > 0 and isinstance(value, Mapping):
        return {str(key): _to_plain_value(one, left, depth - 1) for key, one in list(value.items())[: left[0]]}
    if depth and left[0] > 0 and isinstance(value, (list, tuple, set)):
        return [_to_plain_value(one, left, depth - 1) for one in list(value)[: left[0]]]
    return f"<{type(value).__name__}>"


def _format_number(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
