"""The results of measuring a module: reference outputs, noise and coverage. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packager.parity.cases.sample_grid import InputCase
from packager.parity.numerics.verdict import ReferenceCase


@dataclass(frozen=True)
class OutputNoise:
    """The noise floor of one output, in the unit of `tolerances`: relative to |expected| + scale.

    `relative` is the largest of all test cases, and `typical` the smallest, the median of those measured. `parts` are
    the largest relative differences by evaluation (`packager.parity.noise_variants`). `note` says why an evaluation was
    replaced or missing.
    """

    relative: float
    typical: float
    parts: Mapping[str, float]
    note: str = ""

    @property
    def description(self) -> str:
        """How the noise was measured, in words that follow `measured`."""
        parts = ", ".join(f"{name} ({part:.2g})" for name, part in self.parts.items())
        words = f"against {parts or 'the rounding of its dtype alone'}"
        return f"{words}, because {self.note}" if self.note else words


@dataclass(frozen=True)
class UnexercisedChannels:
    """The channels of one parameter that no test case exercises: `count` of `of`, and the indices of the `first`."""

    count: int
    of: int
    first: tuple[int, ...]


@dataclass(frozen=True)
class ChannelCoverage:
    """How many channels of the weights the test cases exercise: `exercised` of `channels`.

    A channel is an index of a parameter's first axis. `silent` are the others, by parameter. `measured` says on which
    cases, or why not at all. `still` counts, by output, the channels that have the same value in all test cases.
    """

    channels: int
    exercised: int
    silent: Mapping[str, UnexercisedChannels]
    measured: str
    still: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What PyTorch returns for every test case, and how far an artifact may be from it.

    `reference_cases` and `cases` belong together, one to one. `noise` is by output name, for the outputs whose
    tolerance was measured. `names` are those of the outputs. `uncompared` describes what was not compared, one phrase
    each. `probe` is the case (or none) whose tolerances were known before the other cases ran.
    """

    reference_cases: tuple[ReferenceCase, ...]
    noise: Mapping[str, OutputNoise]
    names: tuple[str, ...]
    cases: tuple[InputCase, ...]
    uncompared: tuple[str, ...] = ()
    probe: tuple[ReferenceCase, ...] = ()
    coverage: ChannelCoverage | None = None
