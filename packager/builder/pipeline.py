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

from packager.builder.context import Eager, Site
from packager.builder.incremental import keys
from packager.builder.results import Known, Machine, Made, MadeOnnx, MadeTorchScript, Measured, Origin, Results
from packager.builder.stages import onnx_stage, torchscript_stage
from packager.builder.stages.onnx_stage import Candidate, Trying
from packager.bundle import evidence
from packager.bundle.writer import Writer
from packager.checkpoint.locate import LocatedCheckpoint
from packager.common import process_memory
from packager.common.hashing import sha256_file
from packager.common.progress import Stages
from packager.errors import InputChanged
from packager.export.control_flow import Branches
from packager.export.exporters import quietly
from packager.export.passes.worker import OnnxSide
from packager.export.torchscript import Program
from packager.model import code_dependencies, host_settings, loader
from packager.model.code_dependencies import Footprint
from packager.model.loader import Source
from packager.parity import coverage, reference
from packager.parity.cases import signature
from packager.parity.cases.sample_grid import Grid
from packager.parity.cases.signature import TensorSpec
from packager.parity.diagnosis.diagnose import Place
from packager.parity.numerics.verdict import Expectation
from packager.parity.reference import Floor
from packager.parity.results import Reference
from packager.project import preflight
from packager.project.manifest import Project
from packager.runtime.onnx_backend import absent

_JUDGED_AT_ONCE_BYTES = 1 << 28  # of weights: larger artifacts are judged one after the other
_BRANCH_ADVICE = "no sample may show another; torchscript.method: script follows the data, where it can"


@dataclass(frozen=True)
class Begun:
    """Where a build stands when the heavy half begins: its cases, its staged bundle, and what is known already.

    `repro` is the folder for what shows why an artifact is not proven.
    """

    project: Project
    checkpoint: LocatedCheckpoint
    grid: Grid
    known: Known
    scratch: Path
    writer: Writer
    repro: Place


def run(begun: Begun, *, side: OnnxSide, stages: Stages) -> tuple[Results, Footprint]:
    """Find out what is not known, and what the user's code consists of.

    Raises the errors of `packager.errors`; `InputChanged` where the code changed while it ran.
    """
    project, known = begun.project, begun.known
    preflight.providers(project, onnxruntime.get_all_providers())
    for provider in absent(project.manifest.target.providers):
        stages.tell(f"not compared: {provider}")
    with (
        host_settings.restored(),
        code_dependencies.watched(project.folder, _entry_module(project), _accounted_for(begun)) as watch,
        loader.opened(project, begun.checkpoint) as opening,
        ExitStack() as stack,  # left only after the background threads have ended
        ThreadPoolExecutor(max_workers=2) as background,
        _reference_to_come(side) as awaited,
    ):
        torch.set_num_threads(keys.cores())  # and not as the environment says: measured errors depend on it
        with stages.stage("source"):
            found = opening()
            judging = Semaphore(2 if _weight_bytes(found) <= _JUDGED_AT_ONCE_BYTES else 1)
            site = Site(begun.scratch, begun.writer, side, background, stages, judging, begun.repro)
            eager = _eager(begun, found)
            for note in found.notes():
                stages.tell(note)
            process_memory.settle()
        floor = None
        if known.measured is None:
            with stages.stage("noise"):
                eager = replace(eager, grid=coverage.explore(project, eager.source, eager.grid))
                floor = reference.measure_floor(project, eager.source, eager.grid, eager.known)
                process_memory.give_back()
        stack.enter_context(quietly())
        program, saving = None, None
        if known.onnx is None or known.torchscript is None:
            with stages.stage("trace"):
                program = torchscript_stage.program(project, eager)
                eager = replace(eager, early=_early(begun, eager, program, floor))
                program = None if program is None else torchscript_stage.compared(program, project, eager, site)
                saving = torchscript_stage.begin(project, program, site) if known.torchscript is None else None
        else:
            eager = replace(eager, early=_early(begun, eager, None, floor))
        way = _Way(program, iter(()), None)
        if known.onnx is None:
            with stages.stage("export"):
                way = _export(project, eager, program, awaited, site)
                process_memory.give_back()
        if known.measured is not None:
            expected = known.measured.reference
            awaited.set_result(expected)
        else:
            assert floor is not None
            with stages.stage("reference"):
                decides = _decides(program, known)
                expected = reference.measure(
                    project, eager.source, eager.grid, floor, known=eager.early, decides=decides
                )  # fmt: skip
                awaited.set_result(expected)
                expected = _covered(project, eager, expected, stages)
                process_memory.give_back()
                outputs = _outputs(eager, expected)
                if outputs != eager.outputs:  # two passes were not enough to tell; the graph was given too much
                    eager = replace(eager, outputs=outputs)
                    way = _begin_again(project, eager, way, site)
        torchscript = _torchscript(begun, eager, way.program, saving, expected, site)
        onnx = _onnx_model(begun, eager, way, awaited, site)
        for branch in onnx.frozen.joined(torchscript.frozen).own:  # of what ships
            stages.tell(f"an artifact keeps the branch or number that {branch} took from data: {_BRANCH_ADVICE}")
        seen, changed = watch.footprint(), watch.changed()
        if changed:
            raise InputChanged(changed[0])
        measured = known.measured or _measured(project, eager, expected, seen)
        return Results(measured, onnx, torchscript), seen


@contextmanager
def _reference_to_come(side: OnnxSide) -> Iterator[Future[Reference]]:
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

    program: Program | None
    rest: Iterator[Candidate]
    trying: Trying | None


def _entry_module(project: Project) -> str:
    """The name under which the entry's module is imported; without an entry it is transformers' own."""
    if project.manifest.model.entry is None:
        return "transformers"
    place = project.manifest.model.entry.rpartition(":")[0]
    return Path(place).stem if place.endswith(".py") else place


def _accounted_for(begun: Begun) -> list[Path]:
    """What is no part of the code's footprint, as it is an input of its own, or ours."""
    manifest, folder = begun.project.manifest, begun.project.folder
    data = [folder / manifest.parity.data] if manifest.parity.data is not None else []
    return [begun.project.checkpoint, *begun.checkpoint.files, begun.scratch, *data]


# -- the module -----------------------------------------------------------------------------


def _eager(begun: Begun, opened: Source) -> Eager:
    project, grid, known = begun.project, begun.grid, begun.known
    example = loader.bind(project, list(grid.example.inputs.values()))
    inputs = signature.inputs(project.manifest)
    if known.measured is not None:
        return Eager(opened, grid, example, inputs, known.measured.outputs, {})
    first = reference.first_outputs(project, opened, grid.example)
    reference.declared(project, first)  # before what takes long
    other = grid.contrast
    second = reference.first_outputs(project, opened, other)
    outputs = signature.outputs([(grid.example, first), (other, second)])
    grid, lowest = reference.answered(project, opened, grid)
    return Eager(opened, grid, example, inputs, outputs, {grid.example.name: first, other.name: second, **lowest})


def _early(begun: Begun, eager: Eager, program: Program | None, floor: Floor | None) -> tuple[Expectation, ...]:
    """What every stage of the graph is compared with."""
    if begun.known.measured is not None:
        return begun.known.measured.reference.early
    assert floor is not None
    return reference.early(begun.project, eager.source, eager.grid, floor, decides=_decides(program, begun.known))


def _covered(project: Project, eager: Eager, expected: Reference, stages: Stages) -> Reference:
    """The reference, with what the cases that travel exercise."""
    golden = evidence.choose(expected.expectations, _weight_bytes(eager.source))
    found = coverage.measure(project, eager.source, [case for case in expected.cases if case.name in golden])
    still = coverage.still([one for one in expected.expectations if one.case in golden])
    for told in (*(f"not compared: {what}" for what in expected.undecided), coverage.note(found)):
        if told:
            stages.tell(told)
    return replace(expected, coverage=replace(found, still=still))


def _measured(project: Project, eager: Eager, expected: Reference, used: Footprint) -> Measured:
    return Measured(
        _origin(project, eager.source, used),
        Machine(torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()),
        eager.outputs,
        expected,
    )


def _outputs(eager: Eager, expected: Reference) -> tuple[TensorSpec, ...]:
    """The outputs' shapes as all cases show them."""
    runs = [(case, one.outputs) for case, one in zip(expected.cases, expected.expectations, strict=True)]
    return signature.outputs(runs)


def _origin(project: Project, found: Source, used: Footprint) -> Origin:
    own = used.own_files()
    return Origin(
        checkpoint_sha256=found.checkpoint_sha256,
        code_sha256=_code_digest(project.folder, own),
        code_files=tuple(sorted(own)),
        weights_key=found.weights_key,
        prefix=found.fit.prefix,
        missing=found.fit.missing,
        unexpected=found.fit.unexpected,
        parameters=found.parameters,
        weight_bytes=_weight_bytes(found),
    )


def _weight_bytes(found: Source) -> int:
    return sum(one.numel() * one.element_size() for one in found.module.state_dict().values())


def _code_digest(folder: Path, files: dict[str, str]) -> str:
    """SHA-256 over `sha256  name` lines: what the code says, not where it lies."""
    lines = sorted(f"{sha256_file(folder / path)}  {name}\n" for name, path in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _decides(program: Program | None, known: Known) -> bool:
    """Whether the module takes decisions: as its program says, be it of this build or of the one that is known."""
    if program is not None:
        return program.decides
    return known.torchscript is None or known.torchscript.decides


# -- the artifacts --------------------------------------------------------------------------


def _program(project: Project, eager: Eager, site: Site) -> Program | None:
    """A program, compared with what is known early; None where nothing needs one."""
    program = torchscript_stage.program(project, eager)
    return None if program is None else torchscript_stage.compared(program, project, eager, site)


def _export(project: Project, eager: Eager, program: Program | None, awaited: Future[Reference], site: Site) -> _Way:
    """Export by the first exporter, and let what comes of it be tried while other things are done."""
    rest = onnx_stage.candidates(project, eager, program, site)
    first = next(rest, None)
    if first is None:
        return _Way(program, rest, None)
    return _Way(program, rest, (first, site.background.submit(onnx_stage.attempt, first, awaited, project, site)))


def _begin_again(project: Project, eager: Eager, way: _Way, site: Site) -> _Way:
    """From a new program: the exporter has left other names in the first, which a build that knows more never sees."""
    if way.trying is not None:
        wait([way.trying[1]])  # it writes where the next candidate will
        onnx_stage.discard(site.writer)
    program = _program(project, eager, site)
    return _Way(program, onnx_stage.candidates(project, eager, program, site), None)


def _torchscript(
    begun: Begun, eager: Eager, program: Program | None, saving: Future[Path] | None, expected: Reference, site: Site
) -> MadeTorchScript:
    project, made = begun.project, begun.known.torchscript
    if made is not None and made.proven:
        return made
    with site.stages.stage("torchscript"):
        if made is not None:
            judged = torchscript_stage.judge_again(made, project, expected, site)
            if judged is not None:
                return judged
            program = program or _program(project, eager, site)
            saving = torchscript_stage.begin(project, program, site)
        shipped = torchscript_stage.ship(project, eager, program, saving, expected, site)
    return shipped or Made(None, None, (), program.frozen if program else Branches())


def _onnx_model(begun: Begun, eager: Eager, way: _Way, awaited: Future[Reference], site: Site) -> MadeOnnx:
    project, made = begun.project, begun.known.onnx
    if made is not None and made.proven:
        return made
    with site.stages.stage("onnx"):
        if made is not None:
            if made.outputs == eager.outputs:
                judged = onnx_stage.judge_again(made, project, awaited.result(), site)
                if judged is not None:
                    return judged
            else:
                onnx_stage.discard(site.writer)  # its graph names other dims
            program = way.program or _program(project, eager, site)
            way = _Way(program, onnx_stage.candidates(project, eager, program, site), None)
        return replace(onnx_stage.ship(project, eager, way.trying, way.rest, awaited, site), outputs=eager.outputs)
