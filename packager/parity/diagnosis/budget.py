"""The time that a search for the node at fault may take, and how it reports its progress.

The search takes as many runs as it needs to be sure, and one run of a large model takes seconds. So it stops when its
time is over, and what it knows by then is reported. The clock decides nothing that a bundle contains: a graph that is
diagnosed does not ship.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

DEFAULT_SECONDS = 30.0
"""How long the search takes unless `package build --diagnose` lets it take what it needs."""

STEPS = ("failing case", "module", "module in float64", "graph", "comparison 1", "comparison 2", "comparison 3")
"""The steps of a search, in order; it ends with the first comparison that is sure."""

StepListener = Callable[[int, int, str], None]
"""Called with the number of a step, the number of steps, and what is done."""


class OutOfTime(Exception):
    """The search has taken its time. `suspects` are the graph's values of which one is the first wrong one, by index.

    They are empty as long as the values are not known.
    """

    def __init__(self, suspects: tuple[int, ...] = ()) -> None:
        super().__init__("out of time")
        self.suspects = suspects


def _ignore_step(number: int, steps: int, description: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Budget:
    """The seconds that a search may take from now on; None if it may take what it needs."""

    seconds: float | None = None
    listener: StepListener = _ignore_step
    started: float = field(default_factory=lambda: monotonic())

    def get_remaining(self) -> float | None:
        """Return the seconds that are left, at least 0.0; None if there is no limit."""
        return None if self.seconds is None else max(0.0, self.started + self.seconds - monotonic())

    def is_over(self) -> bool:
        """Tell whether the time is over."""
        return self.get_remaining() == 0.0

    def check(self) -> None:
        """Raise `OutOfTime` if the time is over."""
        if self.is_over():
            raise OutOfTime

    def affords(self, seconds: float) -> bool:
        """Tell whether something that takes this many seconds would leave most of the remaining time."""
        remaining = self.get_remaining()
        return remaining is None or 4 * seconds < remaining

    def report(self, step: str, detail: str = "") -> None:
        """Report that one of the `STEPS` is under way. Raises `OutOfTime`."""
        self.check()
        self.listener(STEPS.index(step) + 1, len(STEPS), f"{step}{detail and ': '}{detail}")


UNLIMITED = Budget()
