"""What a bundle says about itself: config.json, evidence/parity.json and evidence/build.json.

The models are the definition of those files: they write them, `package verify` reads them back
through the same models, and `schemas/` is generated from them. A record is written as JSON with
two spaces, keys in the order of the model, and a line break at the end; NaN and infinities, which
JSON has not, are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from packager.export.graph.messages import JsonFloat, StageRecord, Verdict
from packager.parity.numerics.decisions import RULE_PATTERN as RULE

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", populate_by_name=True)

    def to_bytes(self) -> bytes:
        """The record as the bytes of its file."""
        plain = json.loads(self.model_dump_json(by_alias=True))
        return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()


# -- config.json ----------------------------------------------------------------------------


class TensorRecord(_Record):
    """One input or output. A dim is a size, the name of a dynamic dim, or null where it depends on more."""

    name: str
    dtype: str
    shape: list[int | str | None]


class DimRecord(_Record):
    """The sizes a dynamic dim may take; no max: any."""

    min: int
    max: int | None


class OnnxData(_Record):
    """The weights beside the model, where they are external."""

    path: str
    sha256: Sha256Hex


class OnnxArtifact(_Record):
    """The ONNX model; `nodes` counts those of subgraphs too, constants not."""

    path: str
    sha256: Sha256Hex
    data: OnnxData | None = None
    opset: int
    ir_version: int
    domains: dict[str, int]
    nodes: int


class TorchScriptArtifact(_Record):
    """The TorchScript fallback; `optimize_for_inference` says whether the loader may apply it."""

    path: str
    sha256: Sha256Hex
    method: Literal["trace", "script"]
    optimize_for_inference: bool


class Artifacts(_Record):
    """What can be loaded, the preferred first."""

    onnx: OnnxArtifact | None
    torchscript: TorchScriptArtifact | None


class SourceRecord(_Record):
    """What the bundle was made from."""

    manifest_sha256: Sha256Hex
    checkpoint_sha256: Sha256Hex
    code_sha256: Sha256Hex
    toolchain: dict[str, str]


class ParityVerdicts(_Record):
    """The verdict of the gate on each backend; what fails does not ship."""

    onnx: Literal["pass", "not-checked"]
    torchscript: Literal["pass", "not-checked"]


class BundleConfig(_Record):
    """config.json: what a bundle is and how to load it."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    version: str
    description: str
    license: str | None
    authors: list[str]
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    dims: dict[str, DimRecord]
    artifacts: Artifacts
    providers: list[str]
    assets: list[str]
    source: SourceRecord
    parity: ParityVerdicts
    metadata: dict[str, JsonValue]


# -- evidence/parity.json -------------------------------------------------------------------


class CaseOutput(_Record):
    """One output of one case: allowed is |actual - expected| ≤ atol + rtol·|expected|."""

    dtype: str
    shape: list[int]
    atol: float
    rtol: float


class CaseRecord(_Record):
    """One case; `golden` says whether its tensors travel in golden.safetensors."""

    name: str
    sizes: dict[str, int]
    fill: str
    golden: bool
    outputs: dict[str, CaseOutput]


class ToleranceRecord(_Record):
    """How far one output may be from PyTorch's, and why that far; `parts` are what the noise was measured as."""

    kind: Literal["measured", "explicit", "exact"]
    noise: float | None
    parts: dict[str, float]
    multiple: int | None
    atol: float | None
    rtol: float
    why: str


class OutputErrorsRecord(_Record):
    """The largest errors of one output over all cases, the smallest cosine; `of_limit` is the largest error / limit.

    `of_limit_float64` is the same against the module in float64, on the cases where that was run; else null.
    """

    max_abs: JsonFloat
    max_rel: JsonFloat
    rms: JsonFloat
    cosine: JsonFloat
    mismatched_nonfinite: int
    of_limit: JsonFloat
    of_limit_float64: JsonFloat | None


class Decision(_Record):
    """What is decided by an output, and the share of its limit within which two scores are tied."""

    rule: str = Field(pattern=RULE)
    axis: int
    tie: float


class Agreement(_Record):
    """How many decisions were compared, how many agree, and how many others hang on a tie within the noise."""

    rule: str
    compared: int
    agreed: int
    ties: int


class UnexercisedChannels(_Record):
    """Channels of one parameter that no sample shows: how many, of how many, and the first of them."""

    count: int
    of: int
    first: list[int]


class Coverage(_Record):
    """What the samples exercise: channels of the weights (indices of a parameter's first axis), and of the outputs.

    `silent` are those on which no output of the cases depends; `still` counts an output's channels that have one
    value in all cases.
    """

    measured: str
    channels: int
    exercised: int
    silent: dict[str, UnexercisedChannels]
    still: dict[str, int]


class WorstElementRecord(_Record):
    """The element nearest to its limit."""

    case: str
    output: str
    index: list[int]
    expected: JsonFloat | int | bool
    actual: JsonFloat | int | bool
    of_limit: JsonFloat


class BackendVerdict(_Record):
    """The verdict on one artifact."""

    verdict: Verdict
    reason: str
    outputs: dict[str, OutputErrorsRecord]
    decisions: dict[str, Agreement]
    worst: WorstElementRecord | None


class ParityRecord(_Record):
    """evidence/parity.json: what was compared with what, how far apart it was, and how far it might have been."""

    schema_: Literal[1] = Field(alias="schema")
    verdict: Literal["pass"]
    reference: str
    cases: list[CaseRecord]
    not_checked: list[str]
    tolerance: dict[str, ToleranceRecord]
    decisions: dict[str, Decision]
    coverage: Coverage
    backends: dict[Literal["onnx", "torchscript"], BackendVerdict]
    stages: list[StageRecord]


# -- evidence/build.json --------------------------------------------------------------------


class BuildStep(_Record):
    """One step of the build and its outcome."""

    name: str
    outcome: str


class BuildRecord(_Record):
    """evidence/build.json: the kind of machine the errors were measured on, and the steps' outcomes."""

    schema_: Literal[1] = Field(alias="schema")
    machine: str
    system: str
    python: str
    threads: int
    capability: str
    steps: list[BuildStep]
