"""Which checkpoints of a run go: one pure function of what there is, what the rules say, and what is being read.

A checkpoint stays as long as one rule wants it. The one saved last and the best one always stay, whatever the
rules say, and so does one that somebody is reading.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from packager.checkpoint.run_folder import CheckpointEntry, find_latest, rank_by_metric
from packager.errors import RunSettingsWrong


@dataclass(frozen=True)
class Retention:
    """What stays: the `latest` so many, the `best` so many by `metric`, one every so many epochs and steps.

    `top_k` is another name for `best`, and the larger holds. Without any of `latest`, `best`, `top_k`,
    `every_epochs` and `every_steps`, everything stays.
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
                raise RunSettingsWrong(f"{name} is {value!r}, and is a whole number from 1, or None")
        if self.mode not in ("min", "max"):
            raise RunSettingsWrong(f"mode is {self.mode!r}, and is 'min' or 'max'")
        if (self.best or self.top_k) and self.metric is None:
            raise RunSettingsWrong(f"{'best' if self.best else 'top_k'} needs a metric")


def select_deletions(
    checkpoints: Sequence[CheckpointEntry], rules: Retention, in_use: Collection[int] = ()
) -> list[CheckpointEntry]:
    """The checkpoints that no rule wants, in the order they were saved; `in_use` are the steps being read."""
    counted = (rules.latest, rules.best, rules.top_k, rules.every_epochs, rules.every_steps)
    if all(one is None for one in counted):
        return []
    ordered = sorted(checkpoints, key=lambda one: (one.number, one.step))
    order = rank_by_metric(ordered, rules.metric, rules.mode)
    last = find_latest(ordered)
    wanted = set(in_use) | ({last.step} if last else set())
    wanted |= {one.step for one in ordered[-rules.latest :]} if rules.latest else set()
    wanted |= {one.step for one in order[: max(1, rules.best or 0, rules.top_k or 0)]}
    if rules.every_steps:
        wanted |= {one.step for one in ordered if one.step % rules.every_steps == 0}
    if rules.every_epochs:  # of an epoch, the checkpoint saved last
        epochs = {one.epoch: one.step for one in ordered if one.epoch is not None}
        wanted |= {step for epoch, step in epochs.items() if epoch % rules.every_epochs == 0}
    return [one for one in ordered if one.step not in wanted]
