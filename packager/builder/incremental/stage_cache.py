"""Results of stages ↔ entries of the cache: what earlier builds found out, and what this one did.

The reference and the artifacts are kept under what went into them. Judgements are kept under the
digests of what was compared, and not with the artifact: an artifact outlives the cases it was judged
on, and is judged on new ones without being made anew. That is done only where no case had a say in how
it was made; else it is kept together with its judgement, under the reference that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import safetensors.numpy

from packager.builder.incremental import keys
from packager.builder.incremental.keys import FileHasher
from packager.builder.results import (
    ArtifactResult,
    ArtifactT,
    CachedResults,
    MachineInfo,
    OnnxResult,
    Provenance,
    ReferenceResult,
    StageResults,
    TorchScriptResult,
)
from packager.bundle import layout
from packager.bundle.writer import BundleWriter
from packager.common.cache_store import Cache, CacheEntry, CacheKey
from packager.common.hashing import sha256_file
from packager.parity.cases.generators import ValueKind
from packager.parity.cases.sample_grid import Grid, redraw_case
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.parity.results import ChannelCoverage, OutputNoise, Reference
from packager.project.manifest import Project

_ARTIFACT_FILES = {"onnx": (layout.ONNX, layout.ONNX_DATA), "torchscript": (layout.TORCHSCRIPT,)}
_REFERENCE_OUTPUTS = "outputs.safetensors"


@dataclass(frozen=True)
class _ReferenceRecord:
    """The reference without its arrays."""

    provenance: Provenance
    machine: MachineInfo
    outputs: tuple[TensorSpec, ...]
    noise: Mapping[str, OutputNoise]
    names: tuple[str, ...]
    tolerances: Mapping[str, Mapping[str, ElementTolerance]]
    value_kinds: Mapping[str, tuple[ValueKind, ...]]  # by case, as they were compared: some were drawn anew, some added
    sizes: Mapping[str, Mapping[str, int]]
    decisions: Mapping[str, DecisionRule]
    uncompared: tuple[str, ...]
    probe: Mapping[str, Mapping[str, ElementTolerance]]
    coverage: ChannelCoverage | None


_REFERENCE_ADAPTER = pydantic.TypeAdapter(_ReferenceRecord)
_ONNX_ADAPTER: pydantic.TypeAdapter[OnnxResult] = pydantic.TypeAdapter(OnnxResult)
_TORCHSCRIPT_ADAPTER: pydantic.TypeAdapter[TorchScriptResult] = pydantic.TypeAdapter(TorchScriptResult)
_PARITY_ADAPTER = pydantic.TypeAdapter(ParityResult)


@dataclass(frozen=True)
class CacheLookup:
    """What is known, the files that belong to it by their path in a bundle, and the stages that were found."""

    results: CachedResults = field(default_factory=CachedResults)
    files: Mapping[str, Path] = field(default_factory=dict)
    stages: frozenset[str] = frozenset()


def load_stages(cache: Cache, project: Project, source: Mapping[str, str], grid: Grid) -> CacheLookup:
    """Ask the cache for every stage."""
    reference = cache.look_up(keys.make_reference_key(project, source, cache.file_digest))
    measured = None if reference is None else _load_reference(cache, reference, project, grid)
    reference = None if measured is None else reference
    search = _StageLookup(cache, project, reference)
    torchscript = search.find_artifact(keys.make_torchscript_key(project, source), _TORCHSCRIPT_ADAPTER)
    onnx = search.find_artifact(keys.make_onnx_key(project, source), _ONNX_ADAPTER)
    if measured is not None and onnx is not None and onnx.outputs != measured.outputs:
        onnx = None  # made for cases that showed other shapes
        search.discard_stage("onnx")
    return CacheLookup(CachedResults(measured, onnx, torchscript), search.files, frozenset(search.stages))


class _StageLookup:
    """One round of questions to the cache: collects what was found on the way."""

    def __init__(self, cache: Cache, project: Project, reference: CacheEntry | None) -> None:
        self.files: dict[str, Path] = {}
        self.stages = {"reference"} if reference is not None else set()
        self._cache, self._project, self._reference = cache, project, reference

    def find_artifact(
        self, action: CacheKey, kind: pydantic.TypeAdapter[ArtifactResult[ArtifactT]]
    ) -> ArtifactResult[ArtifactT] | None:
        """An artifact, with its judgement where that is known too."""
        entry = self._find_entry(action)
        if entry is None and self._reference is not None:
            entry = self._cache.look_up(make_case_dependent_key(action, self._reference))
            self.stages |= {action.stage, f"{action.stage} parity"} if entry is not None else set()
        if entry is None:
            return None
        made = kind.validate_python(entry.record)
        self.files.update({name: self._cache.object_path(sha256) for name, sha256 in entry.files.items()})
        if made.is_checked or self._reference is None:
            return made
        judgement = self._find_entry(keys.make_parity_key(action, entry, self._reference, self._project))
        return made if judgement is None else replace(made, parity=_PARITY_ADAPTER.validate_python(judgement.record))

    def discard_stage(self, stage: str) -> None:
        """What was found of a stage is of no use."""
        self.stages -= {stage, f"{stage} parity"}
        for name in _ARTIFACT_FILES[stage]:
            self.files.pop(name, None)

    def _find_entry(self, action: CacheKey) -> CacheEntry | None:
        entry = self._cache.look_up(action)
        if entry is not None:
            self.stages.add(action.stage)
        return entry


@dataclass(frozen=True)
class CacheWrite:
    """What one stage gives to the cache: its action, what came out, and where the files lie."""

    action: CacheKey
    entry: CacheEntry
    files: Mapping[str, Path]


def plan_writes(
    project: Project,
    source: Mapping[str, str],
    results: StageResults,
    bundle: BundleWriter,
    scratch: Path,
    sha256: FileHasher,
) -> list[CacheWrite]:
    """What there is to keep of a build, stage by stage."""
    measured = results.reference
    outputs = _save_outputs(measured.reference, scratch)
    files = {_REFERENCE_OUTPUTS: sha256_file(outputs)}
    reference = CacheEntry(_to_json(_make_reference_record(measured)), files)
    found = [CacheWrite(keys.make_reference_key(project, source, sha256), reference, {_REFERENCE_OUTPUTS: outputs})]
    for action, made in (
        (keys.make_torchscript_key(project, source), results.torchscript),
        (keys.make_onnx_key(project, source), results.onnx),
    ):
        paths = {name: bundle.folder / name for name in _ARTIFACT_FILES[action.stage] if name in bundle.digests}
        digests = {name: bundle.digests[name] for name in paths}
        if made.case_independent:
            entry = CacheEntry(_to_json(replace(made, parity=None)), digests)
            judgement = CacheEntry(_to_json(made.parity), {})
            found.append(CacheWrite(action, entry, paths))
            found.append(CacheWrite(keys.make_parity_key(action, entry, reference, project), judgement, {}))
        else:
            found.append(
                CacheWrite(make_case_dependent_key(action, reference), CacheEntry(_to_json(made), digests), paths)
            )
    return found


def write_stages(cache: Cache, writes: Sequence[CacheWrite]) -> list[str]:
    """Put it into the cache; returns the stages of which it held something else. Raises OSError."""
    differing = []
    for one in writes:
        before = cache.look_up(one.action, files=False)
        if before is not None and before.digest != one.entry.digest:
            differing.append(one.action.stage)
        cache.put(one.action, one.entry, one.files)
    return differing


def make_case_dependent_key(action: CacheKey, reference: CacheEntry) -> CacheKey:
    """The same stage, where the cases had a say in what it made."""
    return CacheKey(action.stage, {**action.inputs, "reference": reference.digest})


# -- the reference ----------------------------------------------------------------------------


def _make_reference_record(measured: ReferenceResult) -> _ReferenceRecord:
    reference = measured.reference
    return _ReferenceRecord(
        measured.provenance,
        measured.machine,
        measured.outputs,
        reference.noise,
        reference.names,
        {one.name: one.tolerances for one in reference.reference_cases},
        {one.name: one.value_kinds for one in reference.cases},
        {one.name: one.sizes for one in reference.cases},
        reference.reference_cases[0].decisions,
        reference.uncompared,
        {one.name: one.tolerances for one in reference.probe},
        reference.coverage,
    )


def _save_outputs(reference: Reference, scratch: Path) -> Path:
    tensors = {
        f"{one.name}/{kind}/{name}": np.asarray(array, order="C")
        for one in reference.reference_cases
        for kind, arrays in (("own", one.outputs), ("oracle", one.float64_outputs))
        for name, array in arrays.items()
    }
    path = scratch / _REFERENCE_OUTPUTS
    safetensors.numpy.save_file(tensors, path)
    return path


def _load_reference(cache: Cache, entry: CacheEntry, project: Project, grid: Grid) -> ReferenceResult | None:
    record = _REFERENCE_ADAPTER.validate_python(entry.record)
    try:
        tensors = safetensors.numpy.load_file(cache.object_path(entry.files[_REFERENCE_OUTPUTS]))
    except OSError:
        return None  # the cache was emptied meanwhile
    own = {case.name: case for case in grid.cases if not case.value_kinds}  # the user's data are not drawn
    cases = tuple(
        own[name] if name in own else redraw_case(project, name, record.sizes[name], kinds)
        for name, kinds in record.value_kinds.items()
    )
    expectations = tuple(
        ReferenceCase(
            case.name,
            case.inputs,
            {name: tensors[f"{case.name}/own/{name}"] for name in record.names},
            dict(record.tolerances[case.name]),
            case.sizes,
            {name: tensors[key] for name in record.names if (key := f"{case.name}/oracle/{name}") in tensors},
            dict(record.decisions),
        )
        for case in cases
    )
    early = tuple(
        replace(one, tolerances=dict(record.probe[one.name]), decisions={})
        for one in expectations
        if one.name in record.probe
    )
    reference = Reference(expectations, record.noise, record.names, cases, record.uncompared, early, record.coverage)
    return ReferenceResult(record.provenance, record.machine, record.outputs, reference)


def _to_json(value: Any) -> Any:
    """A value as JSON has it."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")
