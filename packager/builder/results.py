"""Results of a build's stages as frozen values, which the cache stores and `assemble` writes down.

Nothing here needs torch or onnx, so a build whose stages are all cached imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from packager.bundle.records import ExportedProgramArtifact, FallbackName, OnnxArtifact, TorchScriptArtifact
from packager.export.control_flow import SpecializedControlFlow
from packager.export.graph.messages import StageRecord
from packager.parity.amendments import amend_reference
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.verdict import ParityResult
from packager.parity.results import Reference

FallbackArtifact = TorchScriptArtifact | ExportedProgramArtifact
ArtifactT = TypeVar("ArtifactT", OnnxArtifact, FallbackArtifact)


@dataclass(frozen=True)
class Provenance:
    """The sources of the eager module, and how the checkpoint matched it. Digests are SHA-256 in hex.

    `architecture` is the name in the manifest's entry, or the class of the module. `dtype` is what the module was
    converted to, None if it has its own dtypes; `description` says what the artifacts are compared with.
    """

    checkpoint_sha256: str
    code_sha256: str
    code_files: tuple[str, ...]
    weights_key: str
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    architecture: str
    parameters: int
    weight_bytes: int
    dtype: str | None
    description: str


@dataclass(frozen=True)
class MachineInfo:
    """The kind of machine that the evidence was measured on: torch's thread count and the CPU capability it uses."""

    threads: int
    capability: str


@dataclass(frozen=True)
class ReferenceResult:
    """PyTorch's outputs on all cases with their tolerances, the signature they show, and where they come from."""

    provenance: Provenance
    machine: MachineInfo
    outputs: tuple[TensorSpec, ...]
    reference: Reference


@dataclass(frozen=True)
class LeftOut:
    """A form of the fallback that was tried and does not ship: a trace, a script or an exported program.

    `verdict` is `fail` if it was compared and is wrong, and `not-checked` if it could not be made. `reason` is the
    cause as measured on this machine, `location` the line of the user's code at fault, and `frozen_lines` those whose
    branch on data a trace has fixed.
    """

    backend: FallbackName
    form: str
    verdict: Literal["fail", "not-checked"]
    reason: str
    location: str | None = None
    frozen_lines: tuple[str, ...] = ()


def describe_left_out(entries: Sequence[LeftOut], *, measured: bool = True) -> str:
    """Describe why no form ships, each cause once; without what was `measured`, the same on every machine."""
    forms_by_cause: dict[str, list[str]] = {}
    for entry in entries:
        cause = f": {entry.reason.rstrip(':')}" if measured or entry.verdict == "not-checked" else " the parity check"
        if entry.verdict == "fail":
            cause = f" does not pass{cause}"
        if entry.frozen_lines:
            lines = ", ".join(entry.frozen_lines)
            cause += f"; data-dependent control flow was fixed at trace time in {lines}: it may be the cause"
        forms_by_cause.setdefault(cause, []).append(entry.form if entry.verdict != "fail" else f"the {entry.form}")
    return "; ".join(" and ".join(forms) + cause for cause, forms in forms_by_cause.items())


@dataclass(frozen=True)
class ArtifactResult(Generic[ArtifactT]):
    """One kind of artifact, its parity, and the conversion stages that led to it.

    `artifact` is None if the bundle ships none; `parity` is None then, too, and for a cached artifact that has yet to
    be checked on this build's cases. `specialized` is the control flow that a trace has fixed. `outputs` is the
    signature whose dims the ONNX graph names (empty for TorchScript). `has_discrete_decisions` says whether the
    TorchScript program may decide something by comparing floats. `left_out` are the forms of the fallback that were
    tried before the one that ships, or all of them if none does.
    """

    artifact: ArtifactT | None
    parity: ParityResult | None
    stages: tuple[StageRecord, ...]
    specialized: SpecializedControlFlow = field(default_factory=SpecializedControlFlow)
    outputs: tuple[TensorSpec, ...] = ()
    has_discrete_decisions: bool = True
    left_out: tuple[LeftOut, ...] = ()

    @property
    def is_checked(self) -> bool:
        """Whether nothing is left to check."""
        return self.artifact is None or self.parity is not None

    @property
    def case_independent(self) -> bool:
        """Whether the artifact would be the same for any cases: no stage was rejected because it failed on one."""
        return self.artifact is not None and all(stage.verdict != "fail" for stage in self.stages)


OnnxResult = ArtifactResult[OnnxArtifact]
FallbackResult = ArtifactResult[FallbackArtifact]


@dataclass(frozen=True)
class StageResults:
    """Everything that a bundle is assembled from, beside the manifest and its assets.

    `torchscript` is the fallback: TorchScript, or an exported program where that cannot be had.
    """

    reference: ReferenceResult
    onnx: OnnxResult
    torchscript: FallbackResult

    @property
    def amended_reference(self) -> Reference:
        """The reference, amended by what was measured again for one of the artifacts."""
        amended = self.reference.reference
        for parity in (self.onnx.parity, self.torchscript.parity):
            if parity is not None:
                amended = amend_reference(amended, parity.remeasured)
        return amended


@dataclass(frozen=True)
class CachedResults:
    """Results of earlier builds that still hold; None for each stage that has to run.

    `files` are the artifacts' files in the cache, by their path in a bundle. `stages` names the entries found.
    """

    reference: ReferenceResult | None = None
    onnx: OnnxResult | None = None
    torchscript: FallbackResult | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    stages: frozenset[str] = frozenset()

    @property
    def has_artifacts(self) -> bool:
        """Whether both artifacts are here, checked or not, so that no program has to be traced."""
        return self.onnx is not None and self.torchscript is not None

    def is_complete(self, stage: str) -> bool:
        """Return whether the cache has the stage's result, checked on these cases where that applies."""
        return stage in self.stages and (stage == "reference" or f"{stage} parity" in self.stages)

    def to_results(self) -> StageResults | None:
        """Return the results if no stage has to run, else None."""
        if self.reference is None or self.onnx is None or self.torchscript is None:
            return None
        if not (self.onnx.is_checked and self.torchscript.is_checked):
            return None
        return StageResults(self.reference, self.onnx, self.torchscript)
