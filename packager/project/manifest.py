"""Define and load the manifest, `package.yaml` of schema 1.

The models below are the only definition of the manifest: they validate it, schemas/manifest.schema.json is generated
from them, and editors complete fields from their descriptions. `load_manifest` reports all problems of a file at once,
each with its line, the invalid value, and the closest valid name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from packager.bundle.layout import NAME_PATTERN, VERSION_PATTERN
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
from packager.project import input_range, validation_errors, yaml_source
from packager.project.input_range import is_integer_dtype as is_integer_dtype

DType = Literal[
    "float16", "float32", "float64", "bfloat16",
    "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
    "bool",
]  # fmt: skip
ENTRY_PATTERN = r"^[^:]+:[A-Za-z_][A-Za-z0-9_.]*$"
DIM_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"

_MAX_COMPARED_NAMES = 20
_MAX_BYTES = 1 << 20  # PyYAML reads 3 MB of text in a second
_HINTS_BY_PATTERN = {
    DECISION_PATTERN: "write argmax, top-5, rank, or threshold 0.5",
    NAME_PATTERN: "use lowercase letters, digits, '.', '_' and '-', and start with a letter or digit",
    VERSION_PATTERN: "use a semantic version with three numbers, such as 1.0.0 or 1.2.0-rc.1",
    DIM_PATTERN: "use letters, digits and '_', and do not start with a digit",
    ENTRY_PATTERN: "write module:attr or FILE.py:attr, such as model.py:DigitsCNN",
}


class _ManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSection(_ManifestModel):
    """The module to load."""

    entry: Annotated[str, Field(pattern=ENTRY_PATTERN)] | None = Field(
        default=None,
        description=(
            "module:attr or FILE.py:attr, next to the manifest: a Module class, or a function that returns a Module; "
            "optional for a checkpoint that identifies its module: a Hugging Face folder, TorchScript or .pt2"
        ),
    )
    kwargs: dict[str, JsonValue] = Field(default={}, description="keyword arguments for the entry")
    dtype: Literal["float32", "float64", "float16"] | None = Field(
        default=None,
        description=(
            "convert the module to this dtype before it is exported; by default it keeps its own, and what is bfloat16 "
            "becomes float32"
        ),
    )


class CheckpointSection(_ManifestModel):
    """The weights to load into the module."""

    path: str = Field(
        min_length=1,
        description=(
            "relative to the manifest, or a URL that fsspec can open (https://, s3://, gs://, file://, …): "
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
        description="auto strips or adds the prefix of a wrapper Module if the keys then match; or a prefix to strip",
    )
    strict: bool = Field(default=True, description="require every parameter to be in the checkpoint, and nothing else")
    allow_missing: list[str] = Field(default=[], description="glob patterns of keys that may be missing")
    allow_unexpected: list[str] = Field(default=[], description="glob patterns of keys that the module may lack")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="the required digest of the file; for several files, that of the output of sha256sum"
    )
    trust_pickle: bool = Field(
        default=False, description="allow the file to run code when it is loaded; only for files that you wrote"
    )


InputDim = Annotated[str, Field(pattern=DIM_PATTERN)] | Annotated[int, Field(ge=0)]


class InputSpec(_ManifestModel):
    """One tensor that forward() accepts."""

    dtype: DType = Field(description="the tensor's dtype")
    shape: list[InputDim] = Field(description="a size or, for a dynamic dim, a name for each dim; [] is a scalar")
    range: Annotated[list[float | int], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="[low, high] with low ≤ x < high, for generated inputs; required for integers",
    )

    @model_validator(mode="after")
    def _check_range(self) -> InputSpec:
        input_range.check_range(self.dtype, self.range)
        return self

    def value_bounds(self) -> tuple[Any, Any]:
        """Return the smallest and the largest value of an input that has a range; see `find_value_bounds`."""
        assert self.range is not None
        return input_range.find_value_bounds(self.dtype, *self.range)


class DimLimits(_ManifestModel):
    """The sizes that a dynamic dim may have."""

    min: int = Field(default=1, ge=0, description="the smallest size")
    max: int | None = Field(default=None, ge=1, description="the largest size; unlimited if absent")

    @model_validator(mode="after")
    def _check_order(self) -> DimLimits:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"min {self.min} is greater than max {self.max}")
        return self


class ExportSection(_ManifestModel):
    """How the module is exported to ONNX."""

    opset: int = Field(default=20, ge=13, description="the ONNX opset")
    exporter: Literal["auto", "torch-export", "torchscript"] = Field(
        default="auto", description="auto tries both, and ships the first whose graph passes the parity check"
    )
    required: bool = Field(
        default=True, description="false allows a bundle with the fallback alone if no exporter works"
    )


class OptimizeSection(_ManifestModel):
    """How the ONNX graph is simplified and optimized."""

    simplify: bool = Field(default=True, description="run onnxsim")
    level: Literal["none", "basic", "extended"] = Field(
        default="extended", description="onnxruntime's graph optimization level"
    )


class TorchScriptSection(_ManifestModel):
    """How the fallback is created."""

    method: Literal["auto", "trace", "script", "none"] = Field(
        default="auto",
        description="auto ships the first that is proven of a trace, a script and an exported program, or none and "
        "says why; trace and script demand one; none ships no fallback",
    )


class ExplicitTolerance(_ManifestModel):
    """An explicit tolerance: |actual - expected| ≤ atol + rtol * |expected|."""

    atol: float = Field(ge=0, allow_inf_nan=False, description="absolute part")
    rtol: float = Field(ge=0, allow_inf_nan=False, description="relative part")


class DecisionSpec(_ManifestModel):
    """A decision that is made from the scores in an output."""

    rule: str = Field(pattern=DECISION_PATTERN, description="argmax, top-K, rank or threshold T")
    axis: int = Field(default=-1, description="the axis along which scores are compared with each other")


class ParitySection(_ManifestModel):
    """How the outputs of the artifacts are compared with those of the module."""

    effort: Literal["quick", "standard", "thorough"] = Field(
        default="standard",
        description="what the proof may cost: quick is an eighth of standard, thorough sixteen times as much",
    )
    samples: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="the minimum number of samples, each one row of a batch; every dim is tested at several sizes",
    )
    seed: int = Field(default=0, ge=0, description="the seed of the samples")
    tolerance: Literal["auto"] | ExplicitTolerance = Field(
        default="auto", description="auto measures the float32 rounding error of this model; or explicit {atol, rtol}"
    )
    data: str | None = Field(default=None, description="an .npz or .safetensors file with real inputs")
    decisions: dict[str, Annotated[str, Field(pattern=DECISION_PATTERN)] | DecisionSpec] = Field(
        default={}, description="a decision for each output that must agree too: argmax, top-K, rank or threshold T"
    )

    def decision_for(self, output: str) -> DecisionSpec | None:
        """Return the decision that is declared for an output, or None."""
        decision = self.decisions.get(output)
        return DecisionSpec(rule=decision) if isinstance(decision, str) else decision


class TargetSection(_ManifestModel):
    """Where the bundle will run."""

    providers: list[str] = Field(
        default=["CPUExecutionProvider"], min_length=1, description="onnxruntime's execution providers"
    )


def _reject_duplicates(names: list[str]) -> list[str]:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"listed more than once: {', '.join(duplicates)}")
    return names


class Manifest(_ManifestModel):
    """A package.yaml of schema 1: one model to package."""

    schema_: Literal[1] = Field(alias="schema", description="the version of the manifest's schema")
    name: str = Field(pattern=NAME_PATTERN, max_length=128, description="lowercase letters, digits, '.', '_', '-'")
    version: str = Field(pattern=VERSION_PATTERN, max_length=128, description="a semantic version, such as 1.0.0")
    description: str = Field(default="", description="one line on what the model does")
    license: str | None = Field(default=None, description="an SPDX license expression")
    authors: list[str] = Field(default=[], description="the authors of the model")
    metadata: dict[str, JsonValue] = Field(default={}, description="any other data, copied to config.json")
    model: ModelSection = ModelSection()
    checkpoint: CheckpointSection
    inputs: dict[Annotated[str, Field(pattern=DIM_PATTERN)], InputSpec] = Field(
        min_length=1,
        description="in the order of forward()'s parameters",
        json_schema_extra={"additionalProperties": False},  # names that do not match the pattern
    )
    outputs: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AfterValidator(_reject_duplicates)]
        | None
    ) = Field(default=None, description="names, in order; by default the keys of a dict, or output_0, …")
    dims: dict[str, DimLimits] = Field(default={}, description="the limits of named dims")
    export: ExportSection = ExportSection()
    optimize: OptimizeSection = OptimizeSection()
    torchscript: TorchScriptSection = TorchScriptSection()
    parity: ParitySection = ParitySection()
    target: TargetSection = TargetSection()
    assets: Annotated[list[str], AfterValidator(_reject_duplicates)] = Field(
        default=[], description="files to ship with the model, relative to the manifest"
    )

    def dim_limits(self) -> dict[str, DimLimits]:
        """Return the limits of every named dim of the inputs, in order of appearance."""
        names = [dim for spec in self.inputs.values() for dim in spec.shape if isinstance(dim, str)]
        return {name: self.dims.get(name, DimLimits()) for name in dict.fromkeys(names)}


@dataclass(frozen=True)
class Project:
    """A manifest and its location, from which a build starts.

    `sha256` is the digest of the manifest's bytes. `downloaded_checkpoint` is the local path of a checkpoint whose path
    is a URL, once it is there: see `packager.project.preflight.fetch_checkpoint`. `folder` is the base of relative
    paths; it is absolute, so that a later chdir() has no effect.
    """

    path: Path
    manifest: Manifest
    sha256: str
    document: yaml_source.YamlDocument
    downloaded_checkpoint: Path | None = None
    folder: Path = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        folder = self.path.absolute().parent
        # Give a folder one name, even if the path has `..` in it. Otherwise keep links: `--check` builds through one.
        object.__setattr__(self, "folder", folder.resolve() if ".." in folder.parts else folder)

    @property
    def checkpoint_path(self) -> Path:
        """The local path of the checkpoint."""
        return self.downloaded_checkpoint or self.folder / self.manifest.checkpoint.path

    @property
    def checkpoint_display_name(self) -> str:
        """The checkpoint as the manifest names it, without the secrets of a URL."""
        return urls.redact_url(self.manifest.checkpoint.path)

    def field_location(self, *field: str | int) -> str:
        """Return `package.yaml:12: inputs.image`, the location of a field in an error."""
        return validation_errors.format_location(self.path, self.document, field)


def load_manifest(path: str | Path) -> Project:
    """Read and validate a manifest.

    Raises `ManifestNotFound`, `ManifestUnreadable`, `ManifestEmpty`, `ManifestSyntax`, `ManifestSchemaUnknown`, or
    `ManifestInvalid` with every problem of the file.
    """
    path = Path(path)
    content = _read_manifest(path)
    try:
        document = yaml_source.parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ManifestUnreadable(str(path), str(error)) from None
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
    return Project(path, manifest, hashlib.sha256(content).hexdigest(), document)


def _read_manifest(path: Path) -> bytes:
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ManifestUnreadable(str(path), "it is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise ManifestUnreadable(str(path), f"it has more than {_MAX_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise ManifestNotFound(str(path)) from None
    except IsADirectoryError:
        files = ", ".join(str(file) for file in sorted(path.glob("*.y*ml"))[:5])
        raise ManifestNotFound(str(path), f"it is a folder, with {files or 'no .yaml file'} in it") from None
    except OSError as error:
        raise ManifestUnreadable(str(path), str(error)) from None


def _find_contradictions(manifest: Manifest, path: Path, document: yaml_source.YamlDocument) -> list[Problem]:
    """Return the problems between fields, which no field's own validation can see."""
    problems = []

    def report(field: tuple[str, ...], message: str, hint: str | None) -> None:
        problems.append(Problem(message, validation_errors.format_location(path, document, field), hint))

    if manifest.model.entry is None and manifest.model.kwargs:
        report(("model", "kwargs"), "kwargs require an entry, but there is none", "add model.entry")
    input_dims = list(manifest.dim_limits())
    for name in manifest.dims:
        if name not in input_dims:
            similar = did_you_mean(name, input_dims) if len(problems) < _MAX_COMPARED_NAMES else None
            report(("dims", name), f"no input has a dim {name!r}", similar)
    for name in manifest.outputs or []:
        if name in manifest.inputs:
            report(("outputs",), f"{name!r} is also the name of an input", "rename the output")
    if manifest.torchscript.method == "none" and not manifest.export.required:
        hint = "set torchscript.method: auto, or export.required: true"
        report(("export", "required"), "a bundle without TorchScript requires its ONNX model", hint)
    return problems
