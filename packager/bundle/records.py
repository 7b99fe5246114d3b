"""The JSON records of a bundle: config.json, evidence/parity.json and evidence/build.json.

These models define the files: a build writes them through the models, `package verify` reads them back
through the same models, and `schemas/` is generated from them. A record is JSON indented by two spaces, with
keys in the order of the model and a line break at the end. NaN and infinities, which JSON lacks, are the
strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from packager.export.graph.messages import JsonFloat, StageRecord, Verdict
from packager.parity.numerics.decisions import RULE_PATTERN as RULE

BackendName = Literal["onnx", "torchscript", "torch-export"]
FallbackName = Literal["torchscript", "torch-export"]
Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", populate_by_name=True)

    written_if_set: ClassVar[frozenset[str]] = frozenset()
    """The names of fields that are left out of the file where they are null or empty.

    They were added to the schema later, and earlier versions of packager read no field that they do not know.
    """

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value or name not in self.written_if_set}

    def to_bytes(self) -> bytes:
        """Return the record as the bytes of its file, UTF-8 JSON."""
        plain = json.loads(self.model_dump_json(by_alias=True))
        return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()


# -- config.json ----------------------------------------------------------------------------


class TensorRecord(_Record):
    """One input or output. A dim is a size, the name of a dynamic dim, or null if it depends on something else."""

    name: str
    dtype: str
    shape: list[int | str | None]


class InputRecord(TensorRecord):
    """One input; its values lie in `range`, low ≤ x < high, in every test case. It is left out if there is none."""

    written_if_set = frozenset({"range"})

    range: Annotated[list[int | float], Field(min_length=2, max_length=2)] | None = None


class DimRecord(_Record):
    """The sizes that a dynamic dim may have; without max there is no upper limit."""

    min: int
    max: int | None


class OnnxData(_Record):
    """The file with the weights, if they are external to the model.

    `pieces` are the SHA-256 of every 8 MiB of it, in order, so that loading a bundle hashes it on all cores.
    """

    written_if_set = frozenset({"pieces"})

    path: str
    sha256: Sha256Hex
    pieces: list[Sha256Hex] = Field(default_factory=list)


class OnnxArtifact(_Record):
    """The ONNX model; `nodes` includes the nodes of subgraphs and excludes constants."""

    path: str
    sha256: Sha256Hex
    data: OnnxData | None = None
    opset: int
    ir_version: int
    domains: dict[str, int]
    nodes: int


class TorchScriptArtifact(_Record):
    """The TorchScript fallback; the loader may apply torch.jit.optimize_for_inference if the field says so."""

    path: str
    sha256: Sha256Hex
    method: Literal["trace", "script"]
    optimize_for_inference: bool


class ExportedProgramArtifact(_Record):
    """The exported program, a file of torch.export.save: the fallback where there is no TorchScript."""

    path: str
    sha256: Sha256Hex


class Artifacts(_Record):
    """The models that can be loaded, the preferred one first."""

    written_if_set = frozenset({"torch-export"})

    onnx: OnnxArtifact | None
    torchscript: TorchScriptArtifact | None
    torch_export: ExportedProgramArtifact | None = Field(default=None, alias="torch-export")

    def list_files(self) -> list[tuple[str, str]]:
        """Return path and SHA-256 of every model, and of external weights after the model that they belong to."""
        onnx = self.onnx
        files = (onnx, None if onnx is None else onnx.data, self.torchscript, self.torch_export)
        return [(file.path, file.sha256) for file in files if file is not None]


class LeftOutRecord(_Record):
    """A fallback that was tried and does not ship: `fail` if it computes something else, else why there is none."""

    verdict: Literal["fail", "not-checked"]
    reason: str


class SourceRecord(_Record):
    """The inputs of the build: digests of manifest, checkpoint and code, and the versions of the tools.

    `dtype` is what the module was converted to; null if it is packaged in its own dtypes. `architecture` is the name in
    the manifest's entry, or without an entry the class of the module. `parameters` counts values.
    """

    manifest_sha256: Sha256Hex
    checkpoint_sha256: Sha256Hex
    code_sha256: Sha256Hex
    dtype: str | None = None
    architecture: str
    parameters: int
    toolchain: dict[str, str]


class ParityVerdicts(_Record):
    """The parity verdict of each backend; an artifact that fails is not shipped."""

    written_if_set = frozenset({"torch-export"})

    onnx: Literal["pass", "not-checked"]
    torchscript: Literal["pass", "not-checked"]
    torch_export: Literal["pass", "not-checked"] | None = Field(default=None, alias="torch-export")


class BundleConfig(_Record):
    """config.json: what the bundle contains and how to load it.

    `left_out` says why a fallback that the build tried is not in the bundle.
    """

    written_if_set = frozenset({"left_out"})

    schema_: Literal[1] = Field(alias="schema")
    name: str
    version: str
    description: str
    license: str | None
    authors: list[str]
    inputs: list[InputRecord]
    outputs: list[TensorRecord]
    dims: dict[str, DimRecord]
    artifacts: Artifacts
    left_out: dict[FallbackName, LeftOutRecord] = {}
    providers: list[str]
    assets: list[str]
    source: SourceRecord
    parity: ParityVerdicts
    metadata: dict[str, JsonValue]


# -- evidence/parity.json -------------------------------------------------------------------


class CaseOutput(_Record):
    """One output of one case; the tolerance is |actual - expected| ≤ atol + rtol·|expected|."""

    dtype: str
    shape: list[int]
    atol: float
    rtol: float


class CaseRecord(_Record):
    """One test case; if `golden`, its tensors are stored in golden.safetensors."""

    name: str
    sizes: dict[str, int]
    fill: str
    golden: bool
    outputs: dict[str, CaseOutput]


class ToleranceRecord(_Record):
    """The tolerance of one output, and the reason for it; `parts` are the measurements that the noise consists of."""

    kind: Literal["measured", "explicit", "exact"]
    noise: float | None
    parts: dict[str, float]
    multiple: int | None
    atol: float | None
    rtol: float
    why: str


class OutputErrorsRecord(_Record):
    """The largest errors and the smallest cosine of one output over all cases.

    `of_limit` is the largest ratio of error to tolerance. `of_limit_float64` is the same against the module in
    float64, over the cases that were run in float64; null if there are none.
    """

    max_abs: JsonFloat
    max_rel: JsonFloat
    rms: JsonFloat
    cosine: JsonFloat
    mismatched_nonfinite: int
    of_limit: JsonFloat
    of_limit_float64: JsonFloat | None


class DecisionRecord(_Record):
    """The decision that users take on an output; `tie` is the share of the tolerance within which scores are tied."""

    rule: str = Field(pattern=RULE)
    axis: int
    tie: float


class AgreementRecord(_Record):
    """Counts of decisions: compared, in agreement, and in disagreement only because of a tie within the noise."""

    rule: str
    compared: int
    agreed: int
    ties: int


class UnexercisedChannelsRecord(_Record):
    """The channels of one parameter that affect no case: how many, out of how many, and the first indices."""

    count: int
    of: int
    first: list[int]


class CoverageRecord(_Record):
    """How many channels of the weights (indices of a parameter's first axis) the test cases exercise.

    `silent` lists the channels on which no output of any case depends; `still` counts the channels of each output
    that have the same value in all cases.
    """

    measured: str
    channels: int
    exercised: int
    silent: dict[str, UnexercisedChannelsRecord]
    still: dict[str, int]


class WorstElementRecord(_Record):
    """The element with the largest ratio of error to tolerance."""

    case: str
    output: str
    index: list[int]
    expected: JsonFloat | int | bool
    actual: JsonFloat | int | bool
    of_limit: JsonFloat


class BackendVerdict(_Record):
    """The verdict on one artifact, with its errors by output."""

    verdict: Verdict
    reason: str
    outputs: dict[str, OutputErrorsRecord]
    decisions: dict[str, AgreementRecord]
    worst: WorstElementRecord | None


class ParityRecord(_Record):
    """evidence/parity.json: what was compared with the reference, the errors, and the tolerances."""

    schema_: Literal[1] = Field(alias="schema")
    verdict: Literal["pass"]
    reference: str
    cases: list[CaseRecord]
    not_checked: list[str]
    tolerance: dict[str, ToleranceRecord]
    decisions: dict[str, DecisionRecord]
    coverage: CoverageRecord
    backends: dict[BackendName, BackendVerdict]
    stages: list[StageRecord]


# -- evidence/build.json --------------------------------------------------------------------


class BuildStepRecord(_Record):
    """One step of the build and its outcome."""

    name: str
    outcome: str


class BuildRecord(_Record):
    """evidence/build.json: the kind of machine that measured the errors, and the outcome of each step.

    `toolchain_digests` has a digest of each tool's files, in hex: Go's Hash1 over the wheel without its `.dist-info`.
    """

    schema_: Literal[1] = Field(alias="schema")
    machine: str
    system: str
    python: str
    threads: int
    capability: str
    toolchain_digests: dict[str, Sha256Hex]
    steps: list[BuildStepRecord]
