"""What the user writes: `package.yaml`, schema 1.

The models below are the manifest's single definition: they validate it, `schemas/` is generated
from them, and an editor that is pointed at the schema completes from their descriptions. `load`
reports every problem of a file at once, each with its line, the value found and the nearest name
that would have been right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from packager.checkpoint.remote import urls
from packager.errors import (
    ManifestEmpty,
    ManifestInvalid,
    ManifestNotFound,
    ManifestSchemaUnknown,
    ManifestSyntax,
    ManifestUnreadable,
    Problem,
    did_you_mean,
)
from packager.parity.numerics.decisions import RULE_PATTERN as DECISION_PATTERN
from packager.project import validation_errors, yaml_source

DType = Literal[
    "float16", "float32", "float64", "bfloat16",
    "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
    "bool",
]  # fmt: skip
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
ENTRY_PATTERN = r"^[^:]+:[A-Za-z_][A-Za-z0-9_.]*$"
DIM_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
# The expression that semver.org publishes for a semantic version 2.0.0, without its named groups, and with
# ASCII digits alone: pydantic's \d takes those of every script.
VERSION_PATTERN = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(-(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$"
)


_HINTS_BY_PATTERN = {
    DECISION_PATTERN: "write argmax, top-5, rank, or threshold 0.5",
    NAME_PATTERN: "lower case letters, digits, '.', '_' and '-', starting with a letter or digit",
    VERSION_PATTERN: "a semantic version has three numbers, such as 1.0.0 or 1.2.0-rc.1",
    DIM_PATTERN: "letters, digits and '_', not starting with a digit",
    ENTRY_PATTERN: "write module:attr or FILE.py:attr, such as model.py:DigitsCNN",
}


def is_integer_dtype(dtype: str) -> bool:
    """Whether a manifest dtype is one of the integers (bool is not)."""
    return dtype.startswith(("int", "uint"))


class _ManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSection(_ManifestModel):
    """Where the module comes from."""

    entry: Annotated[str, Field(pattern=ENTRY_PATTERN)] | None = Field(
        default=None,
        description=(
            "module:attr or FILE.py:attr, beside the manifest; a Module class, or a function that returns one; "
            "absent for a checkpoint that says itself what it belongs to: a Hugging Face folder, TorchScript, .pt2"
        ),
    )
    kwargs: dict[str, JsonValue] = Field(default={}, description="keyword arguments for the entry")


class CheckpointSection(_ManifestModel):
    """Where the weights come from."""

    path: str = Field(
        min_length=1,
        description=(
            "relative to the manifest, or a URL (https://, s3://, gs://, file://, whatever fsspec opens): "
            ".safetensors, .pt, .pth or .ckpt; the index of a sharded checkpoint; or a folder"
        ),
    )
    weights: str = Field(
        default="auto",
        min_length=1,
        description="auto, model, ema, or a dotted key into a nested checkpoint",
    )
    prefix: str = Field(
        default="auto",
        description="auto strips wrappers' prefixes, or adds a wrapper Module's, where it fits; or a prefix to strip",
    )
    strict: bool = Field(default=True, description="every parameter is in the checkpoint, and nothing else is")
    allow_missing: list[str] = Field(default=[], description="glob patterns of keys that may be missing")
    allow_unexpected: list[str] = Field(default=[], description="glob patterns of keys that may be left over")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="the digest that the file must have; of several files, that of sha256sum's lines"
    )
    trust_pickle: bool = Field(
        default=False, description="let the file run code while it is read; only for files you wrote"
    )


InputDim = Annotated[str, Field(pattern=DIM_PATTERN)] | Annotated[int, Field(ge=0)]


class InputSpec(_ManifestModel):
    """One tensor that forward() takes."""

    dtype: DType = Field(description="the tensor's dtype")
    shape: list[InputDim] = Field(description="sizes, and names for the dims that stay dynamic; [] is a scalar")
    range: Annotated[list[float | int], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="[low, high] with low ≤ x < high, for samples; needed for integers",
    )

    @model_validator(mode="after")
    def _check_range(self) -> InputSpec:
        if self.range is None:
            if is_integer_dtype(self.dtype):
                raise ValueError(
                    f"an {self.dtype} input needs a range: [low, high], low ≤ x < high, "
                    "such as [0, 30522] for token ids"
                )
            return self
        if self.dtype == "bool":
            raise ValueError("a bool input takes no range")
        low, high = self.range
        if not -sys.float_info.max <= low < high <= sys.float_info.max:
            raise ValueError(f"the range [{low}, {high}] holds no value: low must be below high, both finite")
        if is_integer_dtype(self.dtype):
            if low != int(low) or high != int(high):
                raise ValueError(f"the range [{low}, {high}] of an integer input must be of whole numbers")
            bits = int(self.dtype.removeprefix("u").removeprefix("int"))
            least, most = (0, 2**bits) if self.dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
            if low < least or high > most:
                raise ValueError(f"the range [{low}, {high}] leaves {self.dtype}, which is [{least}, {most}]")
        first, last = self.value_bounds()
        if first > last:
            raise ValueError(f"the range [{low}, {high}] holds no value that {self.dtype} has")
        return self

    def value_bounds(self) -> tuple[Any, Any]:
        """The smallest and the largest value of the dtype with low ≤ x < high, of an input that has a range."""
        assert self.range is not None
        low, high = self.range
        if is_integer_dtype(self.dtype):
            return int(low), int(high) - 1
        # bfloat16 is drawn as float32. A bound may lie between two values of the dtype, or beyond all of them.
        dtype = np.dtype("float32" if self.dtype == "bfloat16" else self.dtype).type
        with np.errstate(over="ignore"):
            first, last = dtype(low), dtype(high)
        if float(first) < low:
            first = np.nextafter(first, dtype(np.inf))
        if float(last) >= high:
            last = np.nextafter(last, dtype(-np.inf))
        return first, last


class DimLimits(_ManifestModel):
    """The sizes that a dynamic dim may take."""

    min: int = Field(default=1, ge=0, description="the smallest size")
    max: int | None = Field(default=None, ge=1, description="the largest size; none if absent")

    @model_validator(mode="after")
    def _check_order(self) -> DimLimits:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class ExportSection(_ManifestModel):
    """How the module becomes ONNX."""

    opset: int = Field(default=20, ge=13, description="the ONNX opset")
    exporter: Literal["auto", "torch-export", "torchscript"] = Field(
        default="auto", description="auto tries both, and ships the first whose graph is proven"
    )
    required: bool = Field(
        default=True, description="false lets a bundle ship with TorchScript alone where no exporter works"
    )


class OptimizeSection(_ManifestModel):
    """What is done to the graph."""

    simplify: bool = Field(default=True, description="run onnxsim")
    level: Literal["none", "basic", "extended"] = Field(
        default="extended", description="onnxruntime's graph optimization level"
    )


class TorchScriptSection(_ManifestModel):
    """How the fallback is made."""

    method: Literal["auto", "trace", "script", "none"] = Field(
        default="auto", description="auto traces, and scripts where the trace is wrong; none ships no fallback"
    )


class ExplicitTolerance(_ManifestModel):
    """Explicit limits: |actual - expected| ≤ atol + rtol * |expected|."""

    atol: float = Field(ge=0, allow_inf_nan=False, description="absolute part")
    rtol: float = Field(ge=0, allow_inf_nan=False, description="relative part")


class DecisionSpec(_ManifestModel):
    """What is decided by an output's scores."""

    rule: str = Field(pattern=DECISION_PATTERN, description="argmax, top-K, rank or threshold T")
    axis: int = Field(default=-1, description="the axis of the scores that are compared with each other")


class ParitySection(_ManifestModel):
    """How the artifacts are compared with the module."""

    samples: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="how many samples, at least, a row of a batch each; every dim size is tried",
    )
    seed: int = Field(default=0, ge=0, description="seed of the samples")
    tolerance: Literal["auto"] | ExplicitTolerance = Field(
        default="auto", description="auto measures what float32 costs this model; or explicit {atol, rtol}"
    )
    data: str | None = Field(default=None, description="an .npz or .safetensors file with real inputs")
    decisions: dict[str, Annotated[str, Field(pattern=DECISION_PATTERN)] | DecisionSpec] = Field(
        default={}, description="what is decided by an output, which must agree too: argmax, top-K, rank, threshold T"
    )

    def decision_for(self, output: str) -> DecisionSpec | None:
        """What is decided by an output; None where nothing is declared."""
        found = self.decisions.get(output)
        return DecisionSpec(rule=found) if isinstance(found, str) else found


class TargetSection(_ManifestModel):
    """Where the bundle runs."""

    providers: list[str] = Field(
        default=["CPUExecutionProvider"], min_length=1, description="onnxruntime's execution providers"
    )


def _reject_duplicates(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands here more than once")
    return names


class Manifest(_ManifestModel):
    """A package.yaml of schema 1: one model to package."""

    schema_: Literal[1] = Field(alias="schema", description="the manifest's schema")
    name: str = Field(pattern=NAME_PATTERN, max_length=128, description="lower case letters, digits, '.', '_', '-'")
    version: str = Field(pattern=VERSION_PATTERN, max_length=128, description="a semantic version, such as 1.0.0")
    description: str = Field(default="", description="one line on what the model does")
    license: str | None = Field(default=None, description="an SPDX license expression")
    authors: list[str] = Field(default=[], description="who made the model")
    metadata: dict[str, JsonValue] = Field(default={}, description="anything else, copied into config.json")
    model: ModelSection = ModelSection()
    checkpoint: CheckpointSection
    inputs: dict[Annotated[str, Field(pattern=DIM_PATTERN)], InputSpec] = Field(
        min_length=1,
        description="in the order of forward()'s parameters",
        json_schema_extra={"additionalProperties": False},  # other names match no pattern
    )
    outputs: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AfterValidator(_reject_duplicates)]
        | None
    ) = Field(default=None, description="names, in order; a dict's keys or output_0, … otherwise")
    dims: dict[str, DimLimits] = Field(default={}, description="limits of the named dims")
    export: ExportSection = ExportSection()
    optimize: OptimizeSection = OptimizeSection()
    torchscript: TorchScriptSection = TorchScriptSection()
    parity: ParitySection = ParitySection()
    target: TargetSection = TargetSection()
    assets: Annotated[list[str], AfterValidator(_reject_duplicates)] = Field(
        default=[], description="files, relative to the manifest, to ship beside the model"
    )

    def dim_limits(self) -> dict[str, DimLimits]:
        """Every named dim of the inputs, in order of appearance, with its limits."""
        names = [dim for spec in self.inputs.values() for dim in spec.shape if isinstance(dim, str)]
        return {name: self.dims.get(name, DimLimits()) for name in dict.fromkeys(names)}


@dataclass(frozen=True)
class Project:
    """A manifest and where it stands: what a build starts from."""

    path: Path
    manifest: Manifest
    sha256: str
    document: yaml_source.YamlDocument
    downloaded_checkpoint: Path | None = (
        None  # where the checkpoint is, if its path is a URL: see `packager.project.preflight.at_hand`
    )
    folder: Path = dataclasses.field(init=False)  # where relative paths start, also after somebody's chdir

    def __post_init__(self) -> None:
        folder = self.path.absolute().parent
        # One folder has one name, also with .. in it; but for a link, which is how `--check` builds it elsewhere.
        object.__setattr__(self, "folder", folder.resolve() if ".." in folder.parts else folder)

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint is on this machine."""
        return self.downloaded_checkpoint or self.folder / self.manifest.checkpoint.path

    @property
    def checkpoint_display_name(self) -> str:
        """The checkpoint as the manifest calls it, without the secrets of a URL."""
        return urls.redact_url(self.manifest.checkpoint.path)

    def field_location(self, *field: str | int) -> str:
        """`package.yaml:12: inputs.image`, for an error about a field."""
        return validation_errors.format_location(self.path, self.document, field)


def load_manifest(path: str | Path) -> Project:
    """Read and validate a manifest.

    Raises `ManifestNotFound`, `ManifestUnreadable`, `ManifestEmpty`, `ManifestSyntax`,
    `ManifestSchemaUnknown`, or `ManifestInvalid` with every problem of the file.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise ManifestNotFound(str(path)) from None
    except IsADirectoryError:
        beside = ", ".join(str(one) for one in sorted(path.glob("*.y*ml"))[:5])
        raise ManifestNotFound(str(path), f"it is a folder, with {beside or 'no .yaml'} in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestUnreadable(str(path), str(error)) from None
    try:
        document = yaml_source.parse_yaml(text)
    except yaml_source.YamlError as error:
        raise ManifestSyntax(f"{path}:{error.line}", error.message) from None
    if document.data is None:
        raise ManifestEmpty(str(path))
    if not isinstance(document.data, dict):
        raise ManifestSyntax(f"{path}:1", "a manifest is a mapping of fields, such as `name: digits-cnn`")
    schema = document.data.get("schema", 1)
    if schema != 1 or isinstance(schema, bool):
        raise ManifestSchemaUnknown(validation_errors.format_location(path, document, ("schema",)), schema)
    try:
        manifest = Manifest.model_validate(document.data)
    except ValidationError as error:
        problems = validation_errors.describe_validation_error(error, path, document, Manifest, _HINTS_BY_PATTERN)
        raise ManifestInvalid(str(path), problems) from None
    problems = _find_contradictions(manifest, path, document)
    if problems:
        raise ManifestInvalid(str(path), problems)
    return Project(path, manifest, hashlib.sha256(raw).hexdigest(), document)


def _find_contradictions(manifest: Manifest, path: Path, document: yaml_source.YamlDocument) -> list[Problem]:
    """What no single field can see: fields that speak of each other."""
    found = []
    if manifest.model.entry is None and manifest.model.kwargs:
        where = validation_errors.format_location(path, document, ("model", "kwargs"))
        found.append(Problem("kwargs are for an entry, and there is none", where, "name it: model.entry"))
    named = list(manifest.dim_limits())
    for name in manifest.dims:
        if name not in named:
            where = validation_errors.format_location(path, document, ("dims", name))
            found.append(Problem(f"no input has a dim {name!r}", where, did_you_mean(name, named)))
    for name in manifest.outputs or []:
        if name in manifest.inputs:
            where = validation_errors.format_location(path, document, ("outputs",))
            found.append(Problem(f"{name!r} is the name of an input too", where, "give the output another name"))
    if manifest.torchscript.method == "none" and not manifest.export.required:
        where = validation_errors.format_location(path, document, ("export", "required"))
        hint = "set torchscript.method: auto, or export.required: true"
        found.append(Problem("a bundle without TorchScript needs its ONNX model", where, hint))
    return found
