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
from packager.builder.incremental.keys import Digest
from packager.builder.results import (
    Artifact,
    Known,
    Machine,
    Made,
    MadeOnnx,
    MadeTorchScript,
    Measured,
    Origin,
    Results,
)
from packager.bundle import layout
from packager.bundle.writer import Writer
from packager.common.cache_store import Action, Cache, Entry
from packager.common.hashing import sha256_file
from packager.parity.cases.generators import Fill
from packager.parity.cases.sample_grid import Grid, redrawn
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.compare import Limit
from packager.parity.numerics.decisions import Decision
from packager.parity.numerics.verdict import Expectation, Judgement
from packager.parity.results import Coverage, Noise, Reference
from packager.project.manifest import Project

_ARTIFACT_FILES = {"onnx": (layout.ONNX, layout.ONNX_DATA), "torchscript": (layout.TORCHSCRIPT,)}
_REFERENCE_OUTPUTS = "outputs.safetensors"


@dataclass(frozen=True)
class _ReferenceRecord:
    """The reference without its arrays."""

    origin: Origin
    machine: Machine
    outputs: tuple[TensorSpec, ...]
    noise: Mapping[str, Noise]
    names: tuple[str, ...]
    limits: Mapping[str, Mapping[str, Limit]]
    kinds: Mapping[str, tuple[Fill, ...]]  # by case, as they were compared: some were drawn anew, some added
    sizes: Mapping[str, Mapping[str, int]]
    decisions: Mapping[str, Decision]
    undecided: tuple[str, ...]
    early: Mapping[str, Mapping[str, Limit]]
    coverage: Coverage | None


_REFERENCE_ADAPTER = pydantic.TypeAdapter(_ReferenceRecord)
_ONNX_ADAPTER: pydantic.TypeAdapter[MadeOnnx] = pydantic.TypeAdapter(MadeOnnx)
_TORCHSCRIPT_ADAPTER: pydantic.TypeAdapter[MadeTorchScript] = pydantic.TypeAdapter(MadeTorchScript)
_PARITY_ADAPTER = pydantic.TypeAdapter(Judgement)


@dataclass(frozen=True)
class Recalled:
    """What is known, the files that belong to it by their path in a bundle, and the stages that were found."""

    known: Known = field(default_factory=Known)
    files: Mapping[str, Path] = field(default_factory=dict)
    found: frozenset[str] = frozenset()


def recall(cache: Cache, project: Project, source: Mapping[str, str], grid: Grid) -> Recalled:
    """Ask the cache for every stage."""
    reference = cache.find(keys.reference(project, source, cache.sha256))
    measured = None if reference is None else _load_reference(cache, reference, project, grid)
    reference = None if measured is None else reference
    search = _StageLookup(cache, project, reference)
    torchscript = search.made(keys.torchscript(project, source), _TORCHSCRIPT_ADAPTER)
    onnx = search.made(keys.onnx(project, source), _ONNX_ADAPTER)
    if measured is not None and onnx is not None and onnx.outputs != measured.outputs:
        onnx = None  # made for cases that showed other shapes
        search.forget("onnx")
    return Recalled(Known(measured, onnx, torchscript), search.files, frozenset(search.found))


class _StageLookup:
    """One round of questions to the cache: collects what was found on the way."""

    def __init__(self, cache: Cache, project: Project, reference: Entry | None) -> None:
        self.files: dict[str, Path] = {}
        self.found = {"reference"} if reference is not None else set()
        self._cache, self._project, self._reference = cache, project, reference

    def made(self, action: Action, kind: pydantic.TypeAdapter[Made[Artifact]]) -> Made[Artifact] | None:
        """An artifact, with its judgement where that is known too."""
        entry = self._find_entry(action)
        if entry is None and self._reference is not None:
            entry = self._cache.find(disputed(action, self._reference))
            self.found |= {action.stage, f"{action.stage} parity"} if entry is not None else set()
        if entry is None:
            return None
        made = kind.validate_python(entry.record)
        self.files.update({name: self._cache.object(sha256) for name, sha256 in entry.files.items()})
        if made.proven or self._reference is None:
            return made
        judgement = self._find_entry(keys.judged(action, entry, self._reference, self._project))
        return made if judgement is None else replace(made, judgement=_PARITY_ADAPTER.validate_python(judgement.record))

    def forget(self, stage: str) -> None:
        """What was found of a stage is of no use."""
        self.found -= {stage, f"{stage} parity"}
        for name in _ARTIFACT_FILES[stage]:
            self.files.pop(name, None)

    def _find_entry(self, action: Action) -> Entry | None:
        entry = self._cache.find(action)
        if entry is not None:
            self.found.add(action.stage)
        return entry


@dataclass(frozen=True)
class Kept:
    """What one stage gives to the cache: its action, what came out, and where the files lie."""

    action: Action
    entry: Entry
    files: Mapping[str, Path]


def plan(
    project: Project, source: Mapping[str, str], results: Results, bundle: Writer, scratch: Path, sha256: Digest
) -> list[Kept]:
    """What there is to keep of a build, stage by stage."""
    measured = results.measured
    outputs = _save_outputs(measured.reference, scratch)
    files = {_REFERENCE_OUTPUTS: sha256_file(outputs)}
    reference = Entry(_to_json(_make_reference_record(measured)), files)
    found = [Kept(keys.reference(project, source, sha256), reference, {_REFERENCE_OUTPUTS: outputs})]
    for action, made in (
        (keys.torchscript(project, source), results.torchscript),
        (keys.onnx(project, source), results.onnx),
    ):
        paths = {name: bundle.folder / name for name in _ARTIFACT_FILES[action.stage] if name in bundle.digests}
        digests = {name: bundle.digests[name] for name in paths}
        if made.undisputed:
            entry = Entry(_to_json(replace(made, judgement=None)), digests)
            judgement = Entry(_to_json(made.judgement), {})
            found.append(Kept(action, entry, paths))
            found.append(Kept(keys.judged(action, entry, reference, project), judgement, {}))
        else:
            found.append(Kept(disputed(action, reference), Entry(_to_json(made), digests), paths))
    return found


def keep(cache: Cache, kept: Sequence[Kept]) -> list[str]:
    """Put it into the cache; returns the stages of which it held something else. Raises OSError."""
    differing = []
    for one in kept:
        before = cache.find(one.action, files=False)
        if before is not None and before.digest != one.entry.digest:
            differing.append(one.action.stage)
        cache.put(one.action, one.entry, one.files)
    return differing


def disputed(action: Action, reference: Entry) -> Action:
    """The same stage, where the cases had a say in what it made."""
    return Action(action.stage, {**action.inputs, "reference": reference.digest})


# -- the reference ----------------------------------------------------------------------------


def _make_reference_record(measured: Measured) -> _ReferenceRecord:
    reference = measured.reference
    return _ReferenceRecord(
        measured.origin,
        measured.machine,
        measured.outputs,
        reference.noise,
        reference.names,
        {one.case: one.limits for one in reference.expectations},
        {one.name: one.kinds for one in reference.cases},
        {one.name: one.sizes for one in reference.cases},
        reference.expectations[0].decisions,
        reference.undecided,
        {one.case: one.limits for one in reference.early},
        reference.coverage,
    )


def _save_outputs(reference: Reference, scratch: Path) -> Path:
    tensors = {
        f"{one.case}/{kind}/{name}": np.asarray(array, order="C")
        for one in reference.expectations
        for kind, arrays in (("own", one.outputs), ("oracle", one.oracle))
        for name, array in arrays.items()
    }
    path = scratch / _REFERENCE_OUTPUTS
    safetensors.numpy.save_file(tensors, path)
    return path


def _load_reference(cache: Cache, entry: Entry, project: Project, grid: Grid) -> Measured | None:
    record = _REFERENCE_ADAPTER.validate_python(entry.record)
    try:
        tensors = safetensors.numpy.load_file(cache.object(entry.files[_REFERENCE_OUTPUTS]))
    except OSError:
        return None  # the cache was emptied meanwhile
    own = {case.name: case for case in grid.cases if not case.kinds}  # the user's data are not drawn
    cases = tuple(
        own[name] if name in own else redrawn(project, name, record.sizes[name], kinds)
        for name, kinds in record.kinds.items()
    )
    expectations = tuple(
        Expectation(
            case.name,
            case.inputs,
            {name: tensors[f"{case.name}/own/{name}"] for name in record.names},
            dict(record.limits[case.name]),
            case.sizes,
            {name: tensors[key] for name in record.names if (key := f"{case.name}/oracle/{name}") in tensors},
            dict(record.decisions),
        )
        for case in cases
    )
    early = tuple(
        replace(one, limits=dict(record.early[one.case]), decisions={})
        for one in expectations
        if one.case in record.early
    )
    reference = Reference(expectations, record.noise, record.names, cases, record.undecided, early, record.coverage)
    return Measured(record.origin, record.machine, record.outputs, reference)


def _to_json(value: Any) -> Any:
    """A value as JSON has it."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")
