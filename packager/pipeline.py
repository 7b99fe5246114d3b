"""The pipeline, top to bottom: one manifest and one checkpoint in, one proven bundle out.

    source       the user's module with its weights, and two forward passes
    noise        what its own arithmetic costs it
    trace        TorchScript, which the fallback needs and one exporter starts from
    export       ONNX, handed to the ONNX side, which simplifies and optimizes it meanwhile
    reference    what the module computes on every case
    torchscript  the fallback, read back from the staged bundle and judged
    onnx         the first exporter whose graph is proven, likewise
    bundle       records written, sealed, verified, renamed into place

The fallback is saved while ONNX is exported, and the first graph is optimized, placed and loaded while
the reference runs: no step waits for one that it does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

# Before the manifest's folder is on the path, where a file of this name could be taken for it.
import onnx as _onnx  # noqa: F401
import onnxruntime

from packager import candidates, fallback, memory, preflight, samples, signature, source
from packager.bundle import assemble, layout
from packager.bundle.verify import verify
from packager.bundle.writer import Writer, staging
from packager.export import quietly
from packager.export.torchscript import Program
from packager.manifest import Project
from packager.onnx_side import OnnxSide
from packager.parity import reference
from packager.parity.reference import Reference
from packager.progress import Stages
from packager.signature import TensorSpec
from packager.source import Source
from packager.work import Eager, Site

_BRANCH_ADVICE = "no sample may show the other side; torchscript.method: script keeps it, where it can"


@dataclass(frozen=True)
class Built:
    """A bundle in its place, and what the closing table says of it."""

    bundle: Path
    fingerprint: str
    parity: Mapping[str, str]
    facts: Mapping[str, str]


def run(project: Project, out: Path, *, side: OnnxSide, stages: Stages, force: bool) -> Built:
    """Build, prove and place the bundle. Raises the errors of `packager.errors`."""
    name = layout.folder_name(project.manifest.name, project.manifest.version)
    assets = preflight.assets(project)
    preflight.providers(project, onnxruntime.get_all_providers())
    with (
        ExitStack() as stack,
        staging(out, name, force=force) as folder,
        source.opened(project) as opening,
        ThreadPoolExecutor(max_workers=2) as background,
    ):
        site = Site(folder, Writer(folder / "bundle"), side, background, stages, Lock())
        with stages.stage("source"):
            eager = _eager(project, opening())
            memory.settle()
        with stages.stage("noise"):
            floor = reference.measure_floor(project, eager.source, eager.grid, eager.known)
            memory.give_back()
        stack.enter_context(quietly())
        with stages.stage("trace"):
            program = fallback.program(project, eager)
            for branch in program.frozen_branches if program else ():
                stages.tell(f"the trace takes the branch on data at {branch} for good: {_BRANCH_ADVICE}")
            saving = fallback.begin(project, program, site)
        with stages.stage("export"):
            rest = candidates.candidates(project, eager, program, site)
            first = next(rest, None)
            awaited: Future[Reference] = Future()
            trying = (first, background.submit(candidates.attempt, first, awaited, project, site)) if first else None
        with stages.stage("reference"):
            expected = _settle(awaited, lambda: reference.measure(project, eager.source, eager.grid, floor))
            memory.give_back()
            outputs = _outputs(eager, expected)
            if outputs != eager.outputs:  # two passes were not enough to tell; the graph was given too much
                if trying is not None:
                    wait([trying[1]])  # it writes where the next candidate will
                    candidates.discard(site.writer)
                eager = replace(eager, outputs=outputs)
                rest, trying = candidates.candidates(project, eager, program, site), None
        with stages.stage("torchscript"):
            if first is not None and first.optimized is not None:
                wait([first.optimized])  # not both at once: the ONNX side's memory, and that of a judged program
            script = fallback.ship(project, eager, program, saving, expected, site)
            exporter = project.manifest.export.exporter
            if script is not None and script.program is not program and exporter != "torch-export":
                rest = candidates.candidates(project, eager, script.program, site)
        with stages.stage("onnx"):
            onnx = candidates.ship(project, trying, rest, awaited, site)
        with stages.stage("bundle"):
            assembled = _assemble(project, eager, expected, onnx, program, script, assets, site)
    return Built(out / name, assembled.fingerprint, assembled.parity, assembled.facts)


def _outputs(eager: Eager, expected: Reference) -> tuple[TensorSpec, ...]:
    """The outputs' shapes as all cases show them."""
    runs = [(case, one.outputs) for case, one in zip(eager.grid.cases, expected.expectations, strict=True)]
    return signature.outputs(runs)


def _settle(awaited: Future[Reference], measure: Callable[[], Reference]) -> Reference:
    """Measure here, for whoever waits elsewhere; a failure ends their waiting too."""
    try:
        awaited.set_result(measure())
    except BaseException as error:
        awaited.set_exception(error)
        raise
    return awaited.result()


def _assemble(
    project: Project,
    eager: Eager,
    expected: Reference,
    onnx: candidates.Taken,
    program: Program | None,
    script: fallback.Fallback | None,
    assets: Mapping[str, Path],
    site: Site,
) -> assemble.Assembled:
    content = assemble.Content(
        project=project,
        source=eager.source,
        grid=eager.grid,
        inputs=eager.inputs,
        outputs=eager.outputs,
        reference=expected,
        onnx=onnx.shipped,
        torchscript=script.shipped if script else None,
        frozen_branches=script.program.frozen_branches if script else (program.frozen_branches if program else ()),
        stages=onnx.stages + (script.stages if script else ()),
        assets=assets,
    )
    assembled = assemble.write(content, site.writer)
    report = verify(site.writer.folder, parity=False)
    if not report.ok:
        raise AssertionError(f"the staged bundle does not verify: {report.integrity}, {report.structure}")
    return assembled


def _eager(project: Project, opened: Source) -> Eager:
    grid = samples.grid(project)
    first = reference.first_outputs(project, opened, grid.example)
    other = grid.contrast
    second = reference.first_outputs(project, opened, other)
    return Eager(
        opened,
        grid,
        source.bind(project, list(grid.example.inputs.values())),
        signature.inputs(project.manifest),
        signature.outputs([(grid.example, first), (other, second)]),
        {grid.example.name: first, other.name: second},
    )
