"""What the stages of a build give, as plain values: made by torch and onnx, kept by the cache, read by `assemble`.

Nothing here needs torch or onnx, so that a build whose stages are all in the cache needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from packager.bundle.records import OnnxArtifact, TorchScriptArtifact
from packager.export.control_flow import SpecializedControlFlow
from packager.export.graph.messages import StageRecord
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.verdict import ParityResult
from packager.parity.results import Reference

ArtifactT = TypeVar("ArtifactT", OnnxArtifact, TorchScriptArtifact)


@dataclass(frozen=True)
class Provenance:
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
class MachineInfo:
    """The kind of machine that the evidence was measured on: torch's threads, and the CPU's capability."""

    threads: int
    capability: str


@dataclass(frozen=True)
class ReferenceResult:
    """The reference with the signature that it shows, and where all that comes from."""

    provenance: Provenance
    machine: MachineInfo
    outputs: tuple[TensorSpec, ...]
    reference: Reference


@dataclass(frozen=True)
class ArtifactResult(Generic[ArtifactT]):
    """One kind of artifact and the stages on the way; `frozen` are the branches and numbers that a trace keeps.

    `artifact` is None where the bundle has none. `judgement` is None there too, and where an artifact
    that an earlier build made is still to be judged on the cases of this one.
    """

    artifact: ArtifactT | None
    parity: ParityResult | None
    stages: tuple[StageRecord, ...]
    specialized: SpecializedControlFlow = field(default_factory=SpecializedControlFlow)
    outputs: tuple[TensorSpec, ...] = ()  # the signature whose dims a graph names; of no use to TorchScript
    has_discrete_decisions: bool = True  # TorchScript's: whether the program may take a decision on floats

    @property
    def is_checked(self) -> bool:
        """Whether nothing is left to be judged."""
        return self.artifact is None or self.parity is not None

    @property
    def case_independent(self) -> bool:
        """Whether no case had a say in what was made: other cases would lead to the same."""
        return self.artifact is not None and all(stage.verdict != "fail" for stage in self.stages)


OnnxResult = ArtifactResult[OnnxArtifact]
TorchScriptResult = ArtifactResult[TorchScriptArtifact]


@dataclass(frozen=True)
class StageResults:
    """Everything that a bundle is assembled from, beside the manifest."""

    reference: ReferenceResult
    onnx: OnnxResult
    torchscript: TorchScriptResult


@dataclass(frozen=True)
class CachedResults:
    """What earlier builds found out: None where it is to be found out anew."""

    reference: ReferenceResult | None = None
    onnx: OnnxResult | None = None
    torchscript: TorchScriptResult | None = None

    def to_results(self) -> StageResults | None:
        """The results, where all of them are known."""
        if self.reference is None or self.onnx is None or self.torchscript is None:
            return None
        if not (self.onnx.is_checked and self.torchscript.is_checked):
            return None
        return StageResults(self.reference, self.onnx, self.torchscript)
