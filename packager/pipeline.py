"""The pipeline, top to bottom: one manifest and one checkpoint in, one proven bundle out.

    source       the user's module with its weights, and one forward pass
    trace        TorchScript, which the fallback needs and one exporter starts from
    export       ONNX, handed to the ONNX side, which simplifies and optimizes it meanwhile
    reference    what the module computes on every case, and its own noise
    torchscript  frozen, saved, read back from the staged bundle and judged
    onnx         the candidates in order, each read back from the staged bundle and judged
    bundle       records written, sealed, checked, renamed into place

Passes over the graph are proven together, by the graph that ships; only where that is not proven
are they proven one by one, and the one at fault is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import torch

from packager import memory, samples, signature, source
from packager.bundle import assemble, layout, records
from packager.bundle.verify import verify
from packager.bundle.writer import Writer, staging
from packager.errors import AssetNotFound, ExportFailed, ParityFailed, Problem, TorchScriptFailed
from packager.export import ExporterFailed, torchscript
from packager.export import onnx as onnx_export
from packager.jobs import Optimized, OptimizeJob, Raw, Stage
from packager.manifest import Project
from packager.onnx_side import OnnxSide
from packager.parity import reference
from packager.parity.artifacts import judge_onnx, judge_torchscript
from packager.parity.compare import Array
from packager.parity.gate import Judgement
from packager.parity.reference import Reference
from packager.progress import Stages
from packager.samples import Grid
from packager.signature import TensorSpec
from packager.source import Source


@dataclass(frozen=True)
class Built:
    """A bundle in its place, and what the closing table says of it."""

    bundle: Path
    fingerprint: str
    parity: Mapping[str, str]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Eager:
    """The module, its cases, and the signature that two forward passes gave."""

    source: Source
    grid: Grid
    example: tuple[torch.Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    known: Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class _Site:
    """Where the work is done: a scratch folder, the staged bundle's writer, the ONNX side, the stages.

    `judging` is held while an artifact is judged: each uses every core, and memory for its weights.
    """

    scratch: Path
    writer: Writer
    side: OnnxSide
    stages: Stages
    judging: Lock


def run(project: Project, out: Path, *, side: OnnxSide, stages: Stages, force: bool) -> Built:
    """Build, prove and place the bundle. Raises the errors of `packager.errors`."""
    name = layout.folder_name(project.manifest.name, project.manifest.version)
    assets = _assets(project)
    with staging(out, name, force=force) as folder, source.opened(project) as opening:
        site = _Site(folder, Writer(folder / "bundle"), side, stages, Lock())
        with stages.stage("source"):
            eager = _eager(project, opening())
            memory.settle()
        with stages.stage("trace"):
            program = _program(project, eager)
        with stages.stage("export"):
            candidates = _candidates(project, eager, program, site)
            first = next(candidates, None)
        with stages.stage("reference"):
            expected = reference.measure(project, eager.source, eager.grid, eager.known)
            memory.give_back()
        with ThreadPoolExecutor(max_workers=1) as judging:
            outcome = judging.submit(_try_candidate, first, expected, project, site) if first else None
            with stages.stage("torchscript"):
                script = _ship_torchscript(project, eager, program, expected, site)
                if script is not None and script.program is not program:
                    candidates = _candidates(project, eager, script.program, site)
            with stages.stage("onnx"):
                onnx = _ship_onnx(project, first, outcome, candidates, expected, site)
        with stages.stage("bundle"):
            stages_taken = onnx.stages + (script.stages if script else ())
            content = assemble.Content(
                project=project,
                source=eager.source,
                grid=eager.grid,
                inputs=eager.inputs,
                outputs=eager.outputs,
                reference=expected,
                onnx=onnx.shipped,
                torchscript=script.shipped if script else None,
                stages=stages_taken,
                assets=assets,
            )
            assembled = assemble.write(content, site.writer)
            _check(site.writer.folder)
    return Built(out / name, assembled.fingerprint, assembled.parity, assembled.facts)


def _assets(project: Project) -> dict[str, Path]:
    """The assets by their path in the bundle. Raises `AssetNotFound`."""
    found = {}
    for index, asset in enumerate(project.manifest.assets):
        path = (project.folder / asset).resolve()
        where = project.where("assets", index)
        if not path.is_file():
            raise AssetNotFound(asset, where, f"there is no file {path}")
        name = Path(asset).name if Path(asset).is_absolute() or ".." in Path(asset).parts else Path(asset).as_posix()
        if name in found:
            raise AssetNotFound(asset, where, f"another asset is called {name} too")
        found[name] = path
    return found


def _eager(project: Project, opened: Source) -> _Eager:
    grid = samples.grid(project)
    first = reference.first_outputs(project, opened, grid.example)
    other = grid.contrast
    second = reference.first_outputs(project, opened, other)
    return _Eager(
        opened,
        grid,
        source.bind(project, list(grid.example.inputs.values())),
        signature.inputs(project.manifest),
        signature.outputs((grid.example, first), (other, second)),
        {grid.example.name: first, other.name: second},
    )


def _program(project: Project, eager: _Eager) -> torchscript.Program | None:
    """The program to ship and export from; None where nothing needs one. Raises `TorchScriptFailed`."""
    method, exporter = project.manifest.torchscript.method, project.manifest.export.exporter
    if method == "none" and exporter == "torch-export":
        return None
    causes = []
    if method != "script":
        try:
            return torchscript.trace(eager.source.module, project.manifest.outputs, eager.example, project.folder)
        except ExporterFailed as failed:
            causes.append(Problem(f"trace: {failed.cause}", failed.where))
    if method in ("script", "auto"):
        try:
            return torchscript.script(eager.source.module, project.folder)
        except ExporterFailed as failed:
            causes.append(Problem(f"script: {failed.cause}", failed.where))
    if method == "none":
        return None
    raise TorchScriptFailed(project.where("torchscript"), causes)


# -- TorchScript ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Script:
    program: torchscript.Program
    shipped: assemble.Shipped[records.TorchScriptArtifact]
    stages: tuple[Stage, ...]


def _ship_torchscript(
    project: Project, eager: _Eager, program: torchscript.Program | None, expected: Reference, site: _Site
) -> _Script | None:
    """Write the fallback into the bundle, proven. Raises `ParityFailed` or `TorchScriptFailed`."""
    method = project.manifest.torchscript.method
    if method == "none" or program is None:
        return None
    stages: list[Stage] = []
    tried = _try_program(project, eager, program, expected, site, stages)
    if isinstance(tried, _Script):
        return tried
    problems = [Problem(_disproven(program, tried), None)]
    if method == "auto" and program.method == "trace":
        site.stages.tell(f"{problems[0].message}; scripting the module instead")
        try:
            scripted = torchscript.script(eager.source.module, project.folder)
        except ExporterFailed as failed:
            problems.append(Problem(f"script: {failed.cause}", failed.where))
        else:
            tried = _try_program(project, eager, scripted, expected, site, stages)
            if isinstance(tried, _Script):
                return tried
            problems.append(Problem(_disproven(scripted, tried), None))
    raise ParityFailed(problems)


def _try_program(
    project: Project,
    eager: _Eager,
    program: torchscript.Program,
    expected: Reference,
    site: _Site,
    stages: list[Stage],
) -> _Script | Judgement:
    """Freeze, save and judge; the freest form first, then without what may have broken parity."""
    judgement = Judgement(False, "", {}, None)
    for fold, optimize in ((True, True), (True, False), (False, False)):
        name = f"{program.method}, freeze{', fold' if fold else ''}{', optimize for inference' if optimize else ''}"
        if optimize or not fold:
            try:
                saved = site.scratch / layout.TORCHSCRIPT
                torchscript.save(program, saved, fold=fold, folder=project.folder)
            except ExporterFailed as failed:
                stages.append(_script_stage(name, kept=False, reason=failed.cause))
                judgement = Judgement(False, failed.cause, {}, None)
                continue
            sha256 = site.writer.adopt(layout.TORCHSCRIPT, saved)
        with site.judging:
            judgement = judge_torchscript(
                site.writer.folder / layout.TORCHSCRIPT,
                expected.expectations,
                inputs=[(one.name, one.dtype) for one in eager.inputs],
                outputs=expected.names,
                optimize=optimize,
            )
        stages.append(_script_stage(name, kept=judgement.passed, reason=judgement.reason))
        if judgement.passed:
            artifact = records.TorchScriptArtifact(
                path=layout.TORCHSCRIPT, sha256=sha256, method=program.method, optimize_for_inference=optimize
            )
            return _Script(program, assemble.Shipped(artifact, judgement), tuple(stages))
    if layout.TORCHSCRIPT in site.writer.digests:
        site.writer.discard(layout.TORCHSCRIPT)
    return judgement


def _script_stage(name: str, *, kept: bool, reason: str) -> Stage:
    return Stage(f"torchscript: {name}", kept, "pass" if kept else "fail", reason, 0, 0, 0, 0)


def _disproven(program: torchscript.Program, judgement: Judgement) -> str:
    branches = (
        f"; it froze the branch on data at {', '.join(program.frozen_branches)}" if program.frozen_branches else ""
    )
    return f"the {program.method} is not proven: {judgement.reason}{branches}"


# -- ONNX -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """An exported graph on its way through the ONNX side, or why the exporter could not make one."""

    exporter: str
    job: OptimizeJob | None = None
    optimized: Future[Optimized] | None = None
    failed: ExporterFailed | None = None


@dataclass(frozen=True)
class _Onnx:
    shipped: assemble.Shipped[records.OnnxArtifact] | None
    stages: tuple[Stage, ...]


def _candidates(
    project: Project, eager: _Eager, program: torchscript.Program | None, site: _Site
) -> Iterator[_Candidate]:
    """The exporters in order; each is run only when the one before it was not proven."""
    wanted = project.manifest.export.exporter
    names = onnx_export.Names([one.name for one in eager.inputs], [one.name for one in eager.outputs])
    if wanted != "torch-export" and program is not None:

        def from_program(path: Path) -> Raw:
            return onnx_export.from_torchscript(project, program, names, eager.example, path)

        yield _export(f"torchscript, from the {program.method}", eager, project, site, from_program)
    if wanted != "torchscript":

        def from_module(path: Path) -> Raw:
            return onnx_export.from_torch_export(project, eager.source.module, names, eager.example, path)

        yield _export("torch-export", eager, project, site, from_module)


def _export(label: str, eager: _Eager, project: Project, site: _Site, write: Callable[[Path], Raw]) -> _Candidate:
    folder = site.scratch / label.replace(", ", "-").replace(" ", "-")
    folder.mkdir(exist_ok=True)
    try:
        raw = write(folder / "raw.onnx")
    except ExporterFailed as failed:
        return _Candidate(label, failed=failed)
    job = OptimizeJob(
        raw=raw,
        target=folder / layout.ONNX,
        simplify=project.manifest.optimize.simplify,
        level=project.manifest.optimize.level,
        inputs={one.name: [dim for dim in one.shape if dim is not None] for one in eager.inputs},
        outputs={one.name: list(one.shape) for one in eager.outputs},
        providers=project.manifest.target.providers,
        skip={},
    )
    return _Candidate(label, job=job, optimized=site.side.optimize(job))


def _ship_onnx(
    project: Project,
    first: _Candidate | None,
    tried: Future[_Onnx | _NotTaken] | None,
    rest: Iterator[_Candidate],
    expected: Reference,
    site: _Site,
) -> _Onnx:
    """Write the first proven graph into the bundle; `tried` is what comes of the first candidate.

    Raises `ExportFailed` or `ParityFailed`.
    """
    stages: list[Stage] = []
    problems: list[Problem] = []
    disproven = False
    for candidate in _chain(first, rest):
        waiting = tried is not None and candidate is first
        outcome = tried.result() if waiting and tried else _try_candidate(candidate, expected, project, site)
        if isinstance(outcome, _Onnx):
            return replace(outcome, stages=(*stages, *outcome.stages))
        stages.append(Stage(f"export: {candidate.exporter}", False, outcome.verdict, outcome.cause, 0, 0, 0, 0))
        problems.append(Problem(f"{candidate.exporter}: {outcome.cause}", outcome.where))
        disproven = disproven or outcome.verdict == "fail"
        site.stages.tell(f"{candidate.exporter} was not taken: {outcome.cause}")
    if not project.manifest.export.required:
        site.stages.tell("no ONNX model: the bundle ships TorchScript alone, as export.required is false")
        return _Onnx(None, tuple(stages))
    if disproven:
        raise ParityFailed(problems)
    raise ExportFailed(project.where("export"), problems)


@dataclass(frozen=True)
class _NotTaken:
    verdict: str
    cause: str
    where: str | None = None


def _try_candidate(candidate: _Candidate, expected: Reference, project: Project, site: _Site) -> _Onnx | _NotTaken:
    if candidate.failed is not None:
        return _NotTaken("not-checked", candidate.failed.cause, candidate.failed.where)
    assert candidate.job is not None and candidate.optimized is not None
    optimized, job = candidate.optimized.result(), candidate.job
    if optimized.refused:
        return _NotTaken("not-checked", optimized.refused)
    judgement = _stage_and_judge(optimized, job, expected, site)
    if not judgement.passed:
        site.stages.tell(f"not proven with all passes ({judgement.reason}); proving them one by one")
        _discard(site.writer)
        optimized = site.side.optimize(replace(job, expectations=expected.expectations)).result()
        if optimized.refused:
            return _NotTaken("fail", optimized.refused)
        judgement = _stage_and_judge(optimized, job, expected, site)
        if not judgement.passed:
            _discard(site.writer)
            return _NotTaken("fail", judgement.reason)
    for stage in optimized.stages:
        if not stage.kept:
            site.stages.tell(f"{stage.name} was dropped: {stage.reason}")
    nodes = optimized.stages[0].nodes_before if optimized.stages else 0
    size = optimized.stages[0].bytes_before if optimized.stages else 0
    taken = Stage(f"export: {candidate.exporter}", True, "pass", "", nodes, nodes, size, size)
    artifact = _onnx_record(optimized, site.writer)
    return _Onnx(assemble.Shipped(artifact, judgement), (taken, *optimized.stages))


def _stage_and_judge(optimized: Optimized, job: OptimizeJob, expected: Reference, site: _Site) -> Judgement:
    """Put the graph into the staged bundle and judge the bytes that lie there."""
    assert optimized.facts is not None
    site.writer.adopt(layout.ONNX, job.target)
    if optimized.facts.external_data:
        site.writer.adopt(layout.ONNX_DATA, job.target.with_name(layout.ONNX_DATA))
    with site.judging:
        judgement = judge_onnx(site.writer.folder / layout.ONNX, expected.expectations, job.providers)
        memory.give_back()
    return judgement


def _discard(writer: Writer) -> None:
    for path in (layout.ONNX, layout.ONNX_DATA):
        if path in writer.digests:
            writer.discard(path)


def _onnx_record(optimized: Optimized, writer: Writer) -> records.OnnxArtifact:
    facts = optimized.facts
    assert facts is not None
    data = None
    if facts.external_data:
        data = records.OnnxData(path=layout.ONNX_DATA, sha256=writer.digests[layout.ONNX_DATA])
    return records.OnnxArtifact(
        path=layout.ONNX,
        sha256=writer.digests[layout.ONNX],
        data=data,
        opset=facts.opset,
        ir_version=facts.ir_version,
        domains=dict(facts.domains),
        nodes=facts.nodes,
    )


def _chain(first: _Candidate | None, rest: Iterator[_Candidate]) -> Iterator[_Candidate]:
    if first is not None:
        yield first
    yield from rest


# -- the bundle -----------------------------------------------------------------------------


def _check(folder: Path) -> None:
    """What was just written must verify; if it does not, that is our bug and not the user's."""
    report = verify(folder, parity=False)
    if not report.ok:
        raise AssertionError(f"the staged bundle does not verify: {report.integrity}, {report.structure}")
