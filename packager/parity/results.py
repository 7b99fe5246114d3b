"""Frozen results of the parity stages: reference outputs, noise and coverage. Needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packager.parity.cases.sample_grid import InputCase
from packager.parity.numerics.verdict import ReferenceCase


@dataclass(frozen=True)
class OutputNoise:
    """The noise floor of one output: the largest of all cases, the `typical` one, and the largest by evaluation.

    All are relative to |output| + what counts as small in it (`packager.parity.numerics.tolerances`). `note` says what
    could not be measured, or why in another way.
    """

    relative: float
    typical: float
    parts: Mapping[str, float]
    note: str = ""

    @property
    def description(self) -> str:
        """How it was found, in words."""
        parts = ", ".join(f"{name} ({part:.2g})" for name, part in self.parts.items())
        words = f"against {parts}" if parts else "not measured"
        return f"{words}, as {self.note}" if self.note else words


@dataclass(frozen=True)
class UnexercisedChannels:
    """Channels of one parameter that no sample shows: how many, of how many, and the first of them."""

    count: int
    of: int
    first: tuple[int, ...]


@dataclass(frozen=True)
class ChannelCoverage:
    """How many channels of the weights there are, how many some sample shows, and which none does; and how it is known.

    `still` counts the channels of an output that have one value in all cases.
    """

    channels: int
    exercised: int
    silent: Mapping[str, UnexercisedChannels]
    measured: str
    still: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes on every case, and how far an artifact may be from it.

    `cases` belong to the expectations, one each. `undecided` says in words what was not compared: where a tie decides
    what comes out, so that nothing can be held to it, and what could not be looked for. `early` is what was known
    before the other cases ran.
    """

    reference_cases: tuple[ReferenceCase, ...]
    noise: Mapping[str, OutputNoise]
    names: tuple[str, ...]
    cases: tuple[InputCase, ...]
    uncompared: tuple[str, ...] = ()
    probe: tuple[ReferenceCase, ...] = ()
    coverage: ChannelCoverage | None = None
