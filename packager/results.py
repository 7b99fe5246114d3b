"""What the stages of a build give, as plain values: made by torch and onnx, kept by the cache, read by `assemble`.

Nothing here needs torch or onnx, so that a build whose stages are all in the cache needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from packager.branches import Branches
from packager.bundle.records import OnnxArtifact, TorchScriptArtifact
from packager.jobs import Stage
from packager.parity.gate import Expectation, Judgement
from packager.samples import Case
from packager.signature import TensorSpec

Artifact = TypeVar("Artifact", OnnxArtifact, TorchScriptArtifact)


@dataclass(frozen=True)
class Origin:
    """What the eager module was made from, and how the checkpoint fitted it."""

    checkpoint_sha256: str
    code_sha256: str
    code_files: tuple[str, ...]
    weights_key: str
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    parameters: int
    weight_bytes: int


@dataclass(frozen=True)
class Machine:
    """The kind of machine that the evidence was measured on: torch's threads, and the CPU's capability."""

    threads: int
    capability: str


@dataclass(frozen=True)
class Noise:
    """The noise floor of one output: the largest of all cases, the `typical` one, and the largest by evaluation.

    All are relative to |output| + what counts as small in it (`packager.parity.limits`). `note` says what
    could not be measured, or why in another way.
    """

    relative: float
    typical: float
    parts: Mapping[str, float]
    note: str = ""

    @property
    def measured(self) -> str:
        """How it was found, in words."""
        parts = ", ".join(f"{name} ({part:.2g})" for name, part in self.parts.items())
        words = f"against {parts}" if parts else "not measured"
        return f"{words}, as {self.note}" if self.note else words


@dataclass(frozen=True)
class Silent:
    """Channels of one parameter that no sample shows: how many, of how many, and the first of them."""

    count: int
    of: int
    first: tuple[int, ...]


@dataclass(frozen=True)
class Coverage:
    """How many channels of the weights there are, how many some sample shows, and which none does; and how it is known.

    `still` counts the channels of an output that have one value in all cases.
    """

    channels: int
    exercised: int
    silent: Mapping[str, Silent]
    measured: str
    still: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes on every case, and how far an artifact may be from it.

    `cases` belong to the expectations, one each. `undecided` says in words what was not compared: where a tie decides
    what comes out, so that nothing can be held to it, and what could not be looked for. `early` is what was known
    before the other cases ran.
    """

    expectations: tuple[Expectation, ...]
    noise: Mapping[str, Noise]
    names: tuple[str, ...]
    cases: tuple[Case, ...]
    undecided: tuple[str, ...] = ()
    early: tuple[Expectation, ...] = ()
    coverage: Coverage | None = None


@dataclass(frozen=True)
class Measured:
    """The reference with the signature that it shows, and where all that comes from."""

    origin: Origin
    machine: Machine
    outputs: tuple[TensorSpec, ...]
    reference: Reference


@dataclass(frozen=True)
class Made(Generic[Artifact]):
    """One kind of artifact and the stages on the way; `frozen` are the branches and numbers that a trace keeps.

    `artifact` is None where the bundle has none. `judgement` is None there too, and where an artifact
    that an earlier build made is still to be judged on the cases of this one.
    """

    artifact: Artifact | None
    judgement: Judgement | None
    stages: tuple[Stage, ...]
    frozen: Branches = field(default_factory=Branches)
    outputs: tuple[TensorSpec, ...] = ()  # the signature whose dims a graph names; of no use to TorchScript
    decides: bool = True  # TorchScript's: whether the program may take a decision on floats

    @property
    def proven(self) -> bool:
        """Whether nothing is left to be judged."""
        return self.artifact is None or self.judgement is not None

    @property
    def undisputed(self) -> bool:
        """Whether no case had a say in what was made: other cases would lead to the same."""
        return self.artifact is not None and all(stage.verdict != "fail" for stage in self.stages)


MadeOnnx = Made[OnnxArtifact]
MadeTorchScript = Made[TorchScriptArtifact]


@dataclass(frozen=True)
class Results:
    """Everything that a bundle is assembled from, beside the manifest."""

    measured: Measured
    onnx: MadeOnnx
    torchscript: MadeTorchScript


@dataclass(frozen=True)
class Known:
    """What earlier builds found out: None where it is to be found out anew."""

    measured: Measured | None = None
    onnx: MadeOnnx | None = None
    torchscript: MadeTorchScript | None = None

    def results(self) -> Results | None:
        """The results, where all of them are known."""
        if self.measured is None or self.onnx is None or self.torchscript is None:
            return None
        if not (self.onnx.proven and self.torchscript.proven):
            return None
        return Results(self.measured, self.onnx, self.torchscript)
