"""Decide which checkpoints of a run to delete: a pure function of the checkpoints, the rules, and which are being read.

A checkpoint stays as long as one rule wants it. The one saved last and the best one always stay, whatever the rules
say, and so does one that is being read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from packager.checkpoint.run_folder import CheckpointEntry, find_latest, rank_by_metric
from packager.errors import RunSettingsWrong


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `latest` n, the `best` n by `metric`, and one in every n epochs and n steps.

    `mode` says whether a lower or a higher metric is better. `top_k` is an alias of `best`; the larger of the two
    counts. Without any of `latest`, `best`, `top_k`, `every_epochs` and `every_steps`, everything stays.
    Raises `RunSettingsWrong`.
    """

    latest: int | None = None
    best: int | None = None
    metric: str | None = None
    mode: Literal["min", "max"] = "min"
    top_k: int | None = None
    every_epochs: int | None = None
    every_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("latest", "best", "top_k", "every_epochs", "every_steps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise RunSettingsWrong(f"{name} must be a whole number from 1 or None, not {value!r}")
        if self.mode not in ("min", "max"):
            raise RunSettingsWrong(f"mode must be 'min' or 'max', not {self.mode!r}")
        if (self.best or self.top_k) and self.metric is None:
            raise RunSettingsWrong(f"{'best' if self.best else 'top_k'} needs a metric")


def select_deletions(
    checkpoints: Sequence[CheckpointEntry], rules: Retention, in_use: Collection[int] = ()
) -> list[CheckpointEntry]:
    """Return the checkpoints that no rule wants, in the order they were saved. `in_use` are the steps being read."""
    counts = (rules.latest, rules.best, rules.top_k, rules.every_epochs, rules.every_steps)
    if all(count is None for count in counts):
        return []
    entries = sorted(checkpoints, key=lambda entry: (entry.number, entry.step))
    ranked = rank_by_metric(entries, rules.metric, rules.mode)
    latest = find_latest(entries)
    kept = set(in_use) | ({latest.step} if latest else set())
    kept |= {entry.step for entry in entries[-rules.latest :]} if rules.latest else set()
    kept |= {entry.step for entry in ranked[: max(1, rules.best or 0, rules.top_k or 0)]}
    if rules.every_steps:
        kept |= {entry.step for entry in entries if entry.step % rules.every_steps == 0}
    if rules.every_epochs:  # the last checkpoint of each such epoch
        step_by_epoch = {entry.epoch: entry.step for entry in entries if entry.epoch is not None}
        kept |= {step for epoch, step in step_by_epoch.items() if epoch % rules.every_epochs == 0}
    return [entry for entry in entries if entry.step not in kept]
