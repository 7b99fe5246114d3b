"""Stage results ↔ cache entries: what earlier builds computed, and what this build adds.

The reference and the artifacts are stored under the key of their inputs. Parity results are stored under the digests
of what was compared, apart from the artifact: an artifact outlives the cases it was checked on, and is checked on new
cases without being exported again. That holds only if no case influenced how it was made; otherwise artifact and
parity are stored together, under the reference they depend on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np
import pydantic
import safetensors.numpy

from packager.builder.incremental import keys
from packager.builder.incremental.keys import FileHasher
from packager.builder.incremental.store import CacheEntry, CacheKey, look_up, put
from packager.builder.results import (
    ArtifactResult,
    ArtifactT,
    CachedResults,
    FallbackResult,
    MachineInfo,
    OnnxResult,
    Provenance,
    ReferenceResult,
    StageResults,
)
from packager.bundle import layout
from packager.bundle.writer import BundleWriter
from packager.common.cache import Cache
from packager.common.hashing import sha256_file
from packager.parity.cases.generators import ValueKind
from packager.parity.cases.sample_grid import Grid, redraw_case
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.parity.results import ChannelCoverage, OutputNoise, Reference
from packager.project.manifest import Project

_ARTIFACT_FILES = {
    "onnx": (layout.ONNX, layout.ONNX_DATA),
    "torchscript": (layout.TORCHSCRIPT, layout.EXPORTED_PROGRAM),
}
_REFERENCE_OUTPUTS = "outputs.safetensors"


@dataclass(frozen=True)
class _ReferenceRecord:
    """A reference without its arrays. Mappings are by case name, then by output name."""

    provenance: Provenance
    machine: MachineInfo
    outputs: tuple[TensorSpec, ...]
    noise: Mapping[str, OutputNoise]
    names: tuple[str, ...]
    tolerances: Mapping[str, Mapping[str, ElementTolerance]]
    value_kinds: Mapping[str, tuple[ValueKind, ...]]  # as compared: some cases were redrawn, some added
    sizes: Mapping[str, Mapping[str, int]]
    decisions: Mapping[str, DecisionRule]
    uncompared: tuple[str, ...]
    probe: Mapping[str, Mapping[str, ElementTolerance]]
    coverage: ChannelCoverage | None


_REFERENCE_ADAPTER = pydantic.TypeAdapter(_ReferenceRecord)
_ONNX_ADAPTER: pydantic.TypeAdapter[OnnxResult] = pydantic.TypeAdapter(OnnxResult)
_FALLBACK_ADAPTER: pydantic.TypeAdapter[FallbackResult] = pydantic.TypeAdapter(FallbackResult)
_PARITY_ADAPTER = pydantic.TypeAdapter(ParityResult)


@dataclass(frozen=True)
class _CachedArtifact(Generic[ArtifactT]):
    """An artifact found in the cache: its result, its files by path in a bundle, and the names of the entries found."""

    result: ArtifactResult[ArtifactT]
    files: Mapping[str, Path]
    stages: frozenset[str]


def load_results(cache: Cache, project: Project, module_inputs: Mapping[str, str], grid: Grid) -> CachedResults:
    """Load whatever the cache has of each stage of a build with these inputs."""
    entry = look_up(cache, keys.make_reference_key(project, module_inputs, cache.file_digest))
    reference = None if entry is None else _load_reference(cache, entry, project, grid)
    entry = None if reference is None else entry
    torchscript_key = keys.make_torchscript_key(project, module_inputs)
    torchscript = _load_artifact(cache, project, torchscript_key, entry, _FALLBACK_ADAPTER)
    onnx = _load_artifact(cache, project, keys.make_onnx_key(project, module_inputs), entry, _ONNX_ADAPTER)
    if reference is not None and onnx is not None and onnx.result.outputs != reference.outputs:
        onnx = None  # its graph names the dims that other cases showed
    return CachedResults(
        reference,
        None if onnx is None else onnx.result,
        None if torchscript is None else torchscript.result,
        {**({} if torchscript is None else torchscript.files), **({} if onnx is None else onnx.files)},
        frozenset({"reference"} if reference is not None else ())
        | (frozenset() if torchscript is None else torchscript.stages)
        | (frozenset() if onnx is None else onnx.stages),
    )


def _load_artifact(
    cache: Cache,
    project: Project,
    key: CacheKey,
    reference: CacheEntry | None,
    adapter: pydantic.TypeAdapter[ArtifactResult[ArtifactT]],
) -> _CachedArtifact[ArtifactT] | None:
    """Load an artifact, and its parity on the cases of `reference` if the cache has that too."""
    entry, stages = look_up(cache, key), {key.stage}
    if entry is None and reference is not None:
        entry = look_up(cache, make_case_dependent_key(key, reference))
        stages.add(f"{key.stage} parity")
    if entry is None or not set(entry.files) <= set(_ARTIFACT_FILES[key.stage]):
        return None
    result = adapter.validate_python(entry.record)
    if not result.is_checked and reference is not None:
        checked = look_up(cache, keys.make_parity_key(key, entry, reference, project))
        if checked is not None:
            result = replace(result, parity=_PARITY_ADAPTER.validate_python(checked.record))
            stages.add(f"{key.stage} parity")
    files = {name: cache.object_path(sha256) for name, sha256 in entry.files.items()}
    return _CachedArtifact(result, files, frozenset(stages))


@dataclass(frozen=True)
class CacheWrite:
    """An entry to write: its key, its content, and the paths of its files by name; `sha256` knows their digests."""

    key: CacheKey
    entry: CacheEntry
    files: Mapping[str, Path]
    sha256: FileHasher | None = None


def plan_writes(
    project: Project,
    module_inputs: Mapping[str, str],
    results: StageResults,
    writer: BundleWriter,
    scratch: Path,
    sha256: FileHasher,
) -> list[CacheWrite]:
    """Return the cache entries of a finished build's stages. Writes the reference outputs to `scratch`."""
    outputs = _save_outputs(results.reference.reference, scratch)
    files = {_REFERENCE_OUTPUTS: sha256_file(outputs)}
    reference = CacheEntry(_to_json(_make_reference_record(results.reference)), files)
    reference_key = keys.make_reference_key(project, module_inputs, sha256)
    writes = [CacheWrite(reference_key, reference, {_REFERENCE_OUTPUTS: outputs})]
    for key, result in (
        (keys.make_torchscript_key(project, module_inputs), results.torchscript),
        (keys.make_onnx_key(project, module_inputs), results.onnx),
    ):
        paths = {name: writer.folder / name for name in _ARTIFACT_FILES[key.stage] if name in writer.digests}
        digests = {name: writer.digests[name] for name in paths}
        if result.case_independent:
            entry = CacheEntry(_to_json(replace(result, parity=None)), digests)
            parity = CacheEntry(_to_json(result.parity), {})
            writes.append(CacheWrite(key, entry, paths, writer.sha256))
            writes.append(CacheWrite(keys.make_parity_key(key, entry, reference, project), parity, {}))
        else:
            entry = CacheEntry(_to_json(result), digests)
            writes.append(CacheWrite(make_case_dependent_key(key, reference), entry, paths, writer.sha256))
    return writes


def write_entries(cache: Cache, writes: Sequence[CacheWrite]) -> list[str]:
    """Write entries, and return the stages of which the cache held different results. Raises OSError."""
    differing = []
    for write in writes:
        before = look_up(cache, write.key, files=False)
        if before is not None and before.digest != write.entry.digest:
            differing.append(write.key.stage)
        put(cache, write.key, write.entry, write.files, write.sha256)
    return differing


def make_case_dependent_key(key: CacheKey, reference: CacheEntry) -> CacheKey:
    """Return the key of a stage whose result depends on the cases, as a candidate failed on one and was rejected."""
    return CacheKey(key.stage, {**key.inputs, "reference": reference.digest})


# -- the reference ----------------------------------------------------------------------------


def _make_reference_record(result: ReferenceResult) -> _ReferenceRecord:
    reference = result.reference
    return _ReferenceRecord(
        result.provenance,
        result.machine,
        result.outputs,
        reference.noise,
        reference.names,
        {case.name: case.tolerances for case in reference.reference_cases},
        {case.name: case.value_kinds for case in reference.cases},
        {case.name: case.sizes for case in reference.cases},
        reference.reference_cases[0].decisions,
        reference.uncompared,
        {case.name: case.tolerances for case in reference.probe},
        reference.coverage,
    )


def _save_outputs(reference: Reference, scratch: Path) -> Path:
    tensors = {
        f"{case.name}/{kind}/{name}": np.asarray(array, order="C")
        for case in reference.reference_cases
        for kind, arrays in (("own", case.outputs), ("float64", case.float64_outputs))
        for name, array in arrays.items()
    }
    path = scratch / _REFERENCE_OUTPUTS
    safetensors.numpy.save_file(tensors, path)
    return path


def _load_reference(cache: Cache, entry: CacheEntry, project: Project, grid: Grid) -> ReferenceResult | None:
    """Load the reference, drawing its inputs again; None if the cache has been emptied meanwhile."""
    record = _REFERENCE_ADAPTER.validate_python(entry.record)
    try:
        tensors = safetensors.numpy.load_file(cache.object_path(entry.files[_REFERENCE_OUTPUTS]))
    except OSError:
        return None
    given = {case.name: case for case in grid.cases if not case.value_kinds}  # from parity.data: not drawn
    cases = tuple(
        given[name] if name in given else redraw_case(project, name, record.sizes[name], kinds)
        for name, kinds in record.value_kinds.items()
    )
    reference_cases = tuple(
        ReferenceCase(
            case.name,
            case.inputs,
            {name: tensors[f"{case.name}/own/{name}"] for name in record.names},
            dict(record.tolerances[case.name]),
            case.sizes,
            {name: tensors[key] for name in record.names if (key := f"{case.name}/float64/{name}") in tensors},
            dict(record.decisions),
        )
        for case in cases
    )
    probe = tuple(
        replace(case, tolerances=dict(record.probe[case.name]), decisions={})
        for case in reference_cases
        if case.name in record.probe
    )
    reference = Reference(reference_cases, record.noise, record.names, cases, record.uncompared, probe, record.coverage)
    return ReferenceResult(record.provenance, record.machine, record.outputs, reference)


def _to_json(value: Any) -> Any:
    """Return a dataclass as JSON values."""
    adapter = _make_adapter(type(value))  # type: ignore[arg-type]  # mypy takes a class of unknown type as not hashable
    return adapter.dump_python(value, mode="json")


@functools.cache
def _make_adapter(kind: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)
