"""The heavy half of a build, top to bottom: the module, and every artifact that no earlier build has made.

    source       the user's module with its weights, and two forward passes
    noise        what its own arithmetic costs it
    trace        TorchScript, which the fallback needs and one exporter starts from
    export       ONNX, handed to the ONNX side, which simplifies and optimizes it meanwhile
    reference    what the module computes on every case
    torchscript  the fallback, read back from the staged bundle and judged
    onnx         the first exporter whose graph is proven, likewise

The fallback is saved while ONNX is exported, and the first graph is optimized, placed and loaded while
the reference runs: no step waits for one that it does not need. What is known already is not done
again: an artifact that lies in the staged bundle is judged where the cases are new, and no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Semaphore

# Before the manifest's folder is on the path, where a file of this name could be taken for it.
import onnx as _onnx  # noqa: F401
import onnxruntime
import torch

from packager.builder.context import BuildContext, EagerModel
from packager.builder.incremental import keys
from packager.builder.results import (
    ArtifactResult,
    CachedResults,
    MachineInfo,
    OnnxResult,
    Provenance,
    ReferenceResult,
    StageResults,
    TorchScriptResult,
)
from packager.builder.stages import onnx_stage, torchscript_stage
from packager.builder.stages.onnx_stage import Candidate, PendingCandidate
from packager.bundle import evidence
from packager.bundle.writer import BundleWriter
from packager.checkpoint.locate import LocatedCheckpoint
from packager.common import process_memory
from packager.common.hashing import sha256_file
from packager.common.progress import StageName, StageReporter
from packager.errors import InputChanged
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import silence_exporters
from packager.export.passes.worker import OnnxWorker
from packager.export.torchscript import TorchScriptProgram
from packager.model import code_dependencies, host_settings, loader
from packager.model.code_dependencies import CodeDependencies
from packager.model.loader import LoadedModel
from packager.parity import coverage, reference
from packager.parity.cases import signature
from packager.parity.cases.sample_grid import Grid
from packager.parity.cases.signature import TensorSpec
from packager.parity.diagnosis.diagnose import ReproTarget
from packager.parity.numerics.verdict import ReferenceCase
from packager.parity.reference import NoiseMeasurement
from packager.parity.results import Reference
from packager.project import preflight
from packager.project.manifest import Project
from packager.runtime.onnx_backend import describe_missing_providers

_JUDGED_AT_ONCE_BYTES = 1 << 28  # of weights: larger artifacts are judged one after the other
_BRANCH_ADVICE = "no sample may show another; torchscript.method: script follows the data, where it can"


@dataclass(frozen=True)
class PipelineInputs:
    """Where a build stands when the heavy half begins: its cases, its staged bundle, and what is known already.

    `repro` is the folder for what shows why an artifact is not proven.
    """

    project: Project
    checkpoint: LocatedCheckpoint
    grid: Grid
    cached: CachedResults
    scratch: Path
    writer: BundleWriter
    repro_target: ReproTarget


def run_stages(
    inputs: PipelineInputs, *, worker: OnnxWorker, stages: StageReporter
) -> tuple[StageResults, CodeDependencies]:
    """Find out what is not known, and what the user's code consists of.

    Raises the errors of `packager.errors`; `InputChanged` where the code changed while it ran.
    """
    project, known = inputs.project, inputs.cached
    preflight.check_providers(project, onnxruntime.get_all_providers())
    for provider in describe_missing_providers(project.manifest.target.providers):
        stages.report_note(f"not compared: {provider}")
    with (
        host_settings.restored(),
        code_dependencies.track_dependencies(project.folder, _entry_module(project), _accounted_for(inputs)) as watch,
        loader.open_model_loader(project, inputs.checkpoint) as opening,
        ExitStack() as stack,  # left only after the background threads have ended
        ThreadPoolExecutor(max_workers=2) as background,
        _reference_to_come(worker) as awaited,
    ):
        torch.set_num_threads(keys.count_cores())  # and not as the environment says: measured errors depend on it
        with stages.stage(StageName.SOURCE):
            found = opening()
            judging = Semaphore(2 if _weight_bytes(found) <= _JUDGED_AT_ONCE_BYTES else 1)
            site = BuildContext(inputs.scratch, inputs.writer, worker, background, stages, judging, inputs.repro_target)
            eager = _eager(inputs, found)
            for note in found.notes():
                stages.report_note(note)
            process_memory.freeze_garbage_collector()
        floor = None
        if known.reference is None:
            with stages.stage(StageName.NOISE):
                eager = replace(eager, grid=coverage.add_extra_cases(project, eager.loaded, eager.grid))
                floor = reference.measure_noise(project, eager.loaded, eager.grid, eager.known_outputs)
                process_memory.release_memory()
        stack.enter_context(silence_exporters())
        program, saving = None, None
        if known.onnx is None or known.torchscript is None:
            with stages.stage(StageName.TRACE):
                program = torchscript_stage.make_program(project, eager)
                eager = replace(eager, probe=_early(inputs, eager, program, floor))
                program = None if program is None else torchscript_stage.check_program(program, project, eager, site)
                saving = torchscript_stage.start_saving(project, program, site) if known.torchscript is None else None
        else:
            eager = replace(eager, probe=_early(inputs, eager, None, floor))
        way = _Way(program, iter(()), None)
        if known.onnx is None:
            with stages.stage(StageName.EXPORT):
                way = _export(project, eager, program, awaited, site)
                process_memory.release_memory()
        if known.reference is not None:
            expected = known.reference.reference
            awaited.set_result(expected)
        else:
            assert floor is not None
            with stages.stage(StageName.REFERENCE):
                decides = _decides(program, known)
                expected = reference.measure_reference(
                    project, eager.loaded, eager.grid, floor, probe=eager.probe, has_discrete_decisions=decides
                )  # fmt: skip
                awaited.set_result(expected)
                expected = _covered(project, eager, expected, stages)
                process_memory.release_memory()
                outputs = _outputs(eager, expected)
                if outputs != eager.outputs:  # two passes were not enough to tell; the graph was given too much
                    eager = replace(eager, outputs=outputs)
                    way = _begin_again(project, eager, way, site)
        torchscript = _torchscript(inputs, eager, way.program, saving, expected, site)
        onnx = _onnx_model(inputs, eager, way, awaited, site)
        for branch in onnx.specialized.merge(torchscript.specialized).user_lines:  # of what ships
            stages.report_note(f"an artifact keeps the branch or number that {branch} took from data: {_BRANCH_ADVICE}")
        seen, changed = watch.collect(), watch.list_changed()
        if changed:
            raise InputChanged(changed[0])
        measured = known.reference or _measured(project, eager, expected, seen)
        return StageResults(measured, onnx, torchscript), seen


@contextmanager
def _reference_to_come(side: OnnxWorker) -> Iterator[Future[Reference]]:
    """Yield a future of the reference, for threads that wait for it.

    Whatever the block raises cancels the future and the jobs of `side`: no thread then waits for an answer that never
    comes, so the build ends with the error instead of hanging.
    """
    awaited: Future[Reference] = Future()
    try:
        yield awaited
    except BaseException:
        awaited.cancel()
        side.cancel()
        raise


@dataclass(frozen=True)
class _Way:
    """The way to an ONNX model: the program to export from, the candidates to come, and the one being tried."""

    program: TorchScriptProgram | None
    remaining: Iterator[Candidate]
    pending: PendingCandidate | None


def _entry_module(project: Project) -> str:
    """The name under which the entry's module is imported; without an entry it is transformers' own."""
    if project.manifest.model.entry is None:
        return "transformers"
    place = project.manifest.model.entry.rpartition(":")[0]
    return Path(place).stem if place.endswith(".py") else place


def _accounted_for(begun: PipelineInputs) -> list[Path]:
    """What is no part of the code's footprint, as it is an input of its own, or ours."""
    manifest, folder = begun.project.manifest, begun.project.folder
    data = [folder / manifest.parity.data] if manifest.parity.data is not None else []
    return [begun.project.checkpoint_path, *begun.checkpoint.files, begun.scratch, *data]


# -- the module -----------------------------------------------------------------------------


def _eager(begun: PipelineInputs, opened: LoadedModel) -> EagerModel:
    project, grid, known = begun.project, begun.grid, begun.cached
    example = loader.bind_inputs(project, list(grid.example_case.inputs.values()))
    inputs = signature.make_input_specs(project.manifest)
    if known.reference is not None:
        return EagerModel(opened, grid, example, inputs, known.reference.outputs, {})
    first = reference.run_case(project, opened, grid.example_case)
    reference.resolve_decisions(project, first)  # before what takes long
    other = grid.probe_case
    second = reference.run_case(project, opened, other)
    outputs = signature.infer_output_specs([(grid.example_case, first), (other, second)])
    grid, lowest = reference.drop_refused_masks(project, opened, grid)
    return EagerModel(
        opened, grid, example, inputs, outputs, {grid.example_case.name: first, other.name: second, **lowest}
    )


def _early(
    begun: PipelineInputs, eager: EagerModel, program: TorchScriptProgram | None, floor: NoiseMeasurement | None
) -> tuple[ReferenceCase, ...]:
    """What every stage of the graph is compared with."""
    if begun.cached.reference is not None:
        return begun.cached.reference.reference.probe
    assert floor is not None
    return reference.measure_probe(
        begun.project, eager.loaded, eager.grid, floor, has_discrete_decisions=_decides(program, begun.cached)
    )


def _covered(project: Project, eager: EagerModel, expected: Reference, stages: StageReporter) -> Reference:
    """The reference, with what the cases that travel exercise."""
    golden = evidence.choose_golden_cases(expected.reference_cases, _weight_bytes(eager.loaded))
    found = coverage.measure_coverage(project, eager.loaded, [case for case in expected.cases if case.name in golden])
    still = coverage.count_constant_channels([one for one in expected.reference_cases if one.name in golden])
    for told in (*(f"not compared: {what}" for what in expected.uncompared), coverage.describe_coverage(found)):
        if told:
            stages.report_note(told)
    return replace(expected, coverage=replace(found, still=still))


def _measured(project: Project, eager: EagerModel, expected: Reference, used: CodeDependencies) -> ReferenceResult:
    return ReferenceResult(
        _origin(project, eager.loaded, used),
        MachineInfo(torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()),
        eager.outputs,
        expected,
    )


def _outputs(eager: EagerModel, expected: Reference) -> tuple[TensorSpec, ...]:
    """The outputs' shapes as all cases show them."""
    runs = [(case, one.outputs) for case, one in zip(expected.cases, expected.reference_cases, strict=True)]
    return signature.infer_output_specs(runs)


def _origin(project: Project, found: LoadedModel, used: CodeDependencies) -> Provenance:
    own = used.list_project_files()
    return Provenance(
        checkpoint_sha256=found.checkpoint_sha256,
        code_sha256=_code_digest(project.folder, own),
        code_files=tuple(sorted(own)),
        weights_key=found.weights_key,
        prefix=found.key_match.prefix,
        missing=found.key_match.missing,
        unexpected=found.key_match.unexpected,
        parameters=found.parameters,
        weight_bytes=_weight_bytes(found),
    )


def _weight_bytes(found: LoadedModel) -> int:
    return sum(one.numel() * one.element_size() for one in found.module.state_dict().values())


def _code_digest(folder: Path, files: dict[str, str]) -> str:
    """SHA-256 over `sha256  name` lines: what the code says, not where it lies."""
    lines = sorted(f"{sha256_file(folder / path)}  {name}\n" for name, path in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _decides(program: TorchScriptProgram | None, known: CachedResults) -> bool:
    """Whether the module takes decisions: as its program says, be it of this build or of the one that is known."""
    if program is not None:
        return program.has_discrete_decisions
    return known.torchscript is None or known.torchscript.has_discrete_decisions


# -- the artifacts --------------------------------------------------------------------------


def _program(project: Project, eager: EagerModel, site: BuildContext) -> TorchScriptProgram | None:
    """A program, compared with what is known early; None where nothing needs one."""
    program = torchscript_stage.make_program(project, eager)
    return None if program is None else torchscript_stage.check_program(program, project, eager, site)


def _export(
    project: Project,
    eager: EagerModel,
    program: TorchScriptProgram | None,
    awaited: Future[Reference],
    site: BuildContext,
) -> _Way:
    """Export by the first exporter, and let what comes of it be tried while other things are done."""
    rest = onnx_stage.iter_candidates(project, eager, program, site)
    first = next(rest, None)
    if first is None:
        return _Way(program, rest, None)
    return _Way(program, rest, (first, site.executor.submit(onnx_stage.check_candidate, first, awaited, project, site)))


def _begin_again(project: Project, eager: EagerModel, way: _Way, site: BuildContext) -> _Way:
    """From a new program: the exporter has left other names in the first, which a build that knows more never sees."""
    if way.pending is not None:
        wait([way.pending[1]])  # it writes where the next candidate will
        onnx_stage.discard_staged_onnx(site.writer)
    program = _program(project, eager, site)
    return _Way(program, onnx_stage.iter_candidates(project, eager, program, site), None)


def _torchscript(
    begun: PipelineInputs,
    eager: EagerModel,
    program: TorchScriptProgram | None,
    saving: Future[Path] | None,
    expected: Reference,
    site: BuildContext,
) -> TorchScriptResult:
    project, made = begun.project, begun.cached.torchscript
    if made is not None and made.is_checked:
        return made
    with site.stages.stage(StageName.TORCHSCRIPT):
        if made is not None:
            judged = torchscript_stage.recheck_torchscript(made, project, expected, site)
            if judged is not None:
                return judged
            program = program or _program(project, eager, site)
            saving = torchscript_stage.start_saving(project, program, site)
        shipped = torchscript_stage.ship_torchscript(project, eager, program, saving, expected, site)
    return shipped or ArtifactResult(None, None, (), program.specialized if program else SpecializedControlFlow())


def _onnx_model(
    begun: PipelineInputs, eager: EagerModel, way: _Way, awaited: Future[Reference], site: BuildContext
) -> OnnxResult:
    project, made = begun.project, begun.cached.onnx
    if made is not None and made.is_checked:
        return made
    with site.stages.stage(StageName.ONNX):
        if made is not None:
            if made.outputs == eager.outputs:
                judged = onnx_stage.recheck_onnx(made, project, awaited.result(), site)
                if judged is not None:
                    return judged
            else:
                onnx_stage.discard_staged_onnx(site.writer)  # its graph names other dims
            program = way.program or _program(project, eager, site)
            way = _Way(program, onnx_stage.iter_candidates(project, eager, program, site), None)
        return replace(
            onnx_stage.ship_onnx(project, eager, way.pending, way.remaining, awaited, site), outputs=eager.outputs
        )
