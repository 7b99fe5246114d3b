"""`package bench`: check the bundle, plan, open every backend in a process of its own, measure, and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from packager.benchmark import machine, report
from packager.benchmark.measure import Measured, measure
from packager.benchmark.messages import BackendName, OpenRequest
from packager.benchmark.plan import Plan, SourceCase, make_plan
from packager.benchmark.processes import MeasuringProcess, NotMeasurable, start_process
from packager.benchmark.report import BenchReport, LoadedBackend
from packager.benchmark.subject import Subject, open_subject
from packager.common.array_files import read_arrays
from packager.common.progress import Listener, StageName, StageReporter, ignore_event
from packager.errors import BackendUnavailable, DataDoesNotFit
from packager.runtime.trust import PROGRAM_TITLES

_PROGRAMS: tuple[BackendName, ...] = ("torchscript", "torch-export")


def bench(
    bundle: Path,
    *,
    fingerprint: str | None = None,
    public_key: Path | None = None,
    trust_program: bool = False,
    manifest: Path | None = None,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    sizes: Mapping[str, int] | None = None,
    inputs: Path | None = None,
    seconds: float = 20.0,
    listener: Listener = ignore_event,
) -> BenchReport:
    """Measure how fast a bundle predicts: ONNX, its fallback, and the eager module of a manifest.

    - `fingerprint`, `public_key`, `trust_program`: as for `packager.load`; a fallback is measured only if they let it.
    - `batches`, `threads`, `sizes` of other dims: what to measure; see `packager.benchmark.plan`.
    - `inputs`: a file with arrays to take the values from; None takes them from the evidence.
    - `seconds`: how long to measure, after everything was loaded and warmed up.

    Raises what `packager.load` raises for a bundle that is not intact or not the right one, `DataDoesNotFit` for sizes
    and inputs that do not fit, what the loader of a project raises, and `BackendUnavailable` if nothing runs.
    """
    this_machine = machine.describe_machine()
    subject = open_subject(bundle, fingerprint=fingerprint, public_key=public_key, trust_program=trust_program)
    sources = subject.cases
    if inputs is not None:
        sources = (_read_source(inputs),)
    cores = this_machine.cores
    plan = make_plan(subject.config, sources, batches=batches, sizes=sizes or {}, threads=threads, cores=cores)
    requests, not_measured = choose_backends(subject, plan, manifest)
    stages = StageReporter(listener)
    with ExitStack() as stack:
        processes = _start_processes(stack, requests, not_measured, stages)
        if not processes:
            raise BackendUnavailable(str(bundle), _join(not_measured.items()), "run `package verify` on it")
        with stages.stage(StageName.MEASURE):
            measured = measure(processes, plan, seconds, lambda number, of: _report_round(stages, number, of))
    result = _make_report(subject, this_machine, plan, measured, processes, not_measured)
    if not result.rows:
        hint = "give it more time with --seconds, or choose smaller sizes with --batch and --dim"
        raise BackendUnavailable(str(bundle), _join([*not_measured.items(), *result.skipped.items()]), hint)
    return result


def _read_source(path: Path) -> SourceCase:
    """Read the arrays of a file. Raises `DataDoesNotFit`, also if one has no values."""
    arrays = read_arrays(path, str(path))
    empty = [name for name, array in arrays.items() if not array.size]
    if empty:
        raise DataDoesNotFit(str(path), f"{empty[0]} is empty, so there is nothing to repeat", "give at least one row")
    return SourceCase(str(path), "file", arrays, is_file=True)


def _start_processes(
    stack: ExitStack, requests: Sequence[OpenRequest], not_measured: dict[BackendName, str], stages: StageReporter
) -> dict[BackendName, MeasuringProcess]:
    """Start a process for each request, one after the other; `not_measured` gets the reasons of those that fail."""
    processes: dict[BackendName, MeasuringProcess] = {}
    with stages.stage(StageName.LOAD):
        for request in requests:
            try:
                processes[request.backend] = stack.enter_context(start_process(request))
            except BackendUnavailable as error:
                not_measured[request.backend] = str(error.why)
            except NotMeasurable as error:
                not_measured[request.backend] = str(error)
    return processes


def choose_backends(
    subject: Subject, plan: Plan, manifest: Path | None
) -> tuple[list[OpenRequest], dict[BackendName, str]]:
    """Choose the backends to open; the second value says why others are not."""
    config = subject.config
    inputs = tuple(case.inputs for case in plan.cases)
    base = OpenRequest("onnx", subject.path, subject.fingerprint, config, manifest, plan.threads, inputs)
    requests: list[OpenRequest] = []
    reasons: dict[BackendName, str] = {}
    if config["artifacts"]["onnx"] is not None:
        requests.append(base)
    else:
        reasons["onnx"] = "the bundle has no ONNX model"
    for program in _PROGRAMS:
        if config["artifacts"].get(program) is not None and subject.trusted:
            requests.append(replace(base, backend=program))
        elif config["artifacts"].get(program) is not None:
            title = PROGRAM_TITLES[program]
            reasons[program] = f"{title} is a program: pin the bundle with --fingerprint, or give --trust-program"
        elif program in config.get("left_out", {}):
            reasons[program] = f"not in the bundle: {config['left_out'][program]['reason']}"
    if manifest is not None:
        requests.append(replace(base, backend="eager"))
    else:
        reasons["eager"] = "give --manifest"
    return requests, reasons


def _make_report(
    subject: Subject,
    this_machine: machine.Machine,
    plan: Plan,
    measured: Measured,
    processes: Mapping[BackendName, MeasuringProcess],
    not_measured: Mapping[BackendName, str],
) -> BenchReport:
    notes = [note for process in processes.values() for note in process.opened.notes]
    if this_machine.is_busy:
        wanted = f"{this_machine.load:.1f} processes wanted {this_machine.cores} cores"
        notes.append(f"{wanted} in the minute before: the times may be too long")
    return BenchReport(
        name=subject.config["name"],
        version=subject.config["version"],
        fingerprint=subject.fingerprint,
        machine=this_machine,
        batch_dim=plan.batch_dim,
        input_sources=tuple(dict.fromkeys(case.source for case in plan.cases)),
        backends={
            name: LoadedBackend(process.load_seconds, process.opened.resident_bytes)
            for name, process in processes.items()
        },
        not_measured=not_measured,
        rows=report.make_rows(plan, measured),
        skipped={report.describe_variant(plan, variant): reason for variant, reason in measured.skipped.items()},
        notes=tuple(notes),
        rounds=len(measured.rounds),
        seconds=measured.seconds,
    )


def _report_round(stages: StageReporter, number: int, expected: int) -> None:
    stages.report_step(StageName.MEASURE, number, max(number, expected), "a turn of every variant")


def _join(reasons: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name}: {reason}" for name, reason in reasons)
