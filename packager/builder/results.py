"""What the stages of a build give, as plain values: made by torch and onnx, kept by the cache, read by `assemble`.

Nothing here needs torch or onnx, so that a build whose stages are all in the cache needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from packager.bundle.records import OnnxArtifact, TorchScriptArtifact
from packager.export.control_flow import Branches
from packager.export.graph.messages import Stage
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.verdict import Judgement
from packager.parity.results import Reference

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
