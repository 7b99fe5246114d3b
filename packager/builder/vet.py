"""`package vet`: everything that can be said about a project without exporting it.

The manifest, the checkpoint against the module, and a few forward passes, at the smallest and the largest sizes too: it
takes seconds where a build may take minutes, and raises the same errors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.builder.extras import build_extra
from packager.checkpoint.locate import LocatedCheckpoint
from packager.common.progress import Event, Listener, Note, StageReporter, ignore_event
from packager.project import preflight
from packager.project.manifest import Project, load_manifest

if TYPE_CHECKING:
    from packager.model.loader import LoadedModel
    from packager.parity.cases.sample_grid import Grid, InputCase
    from packager.parity.numerics.compare import Array

_MAX_SECONDS = 10.0  # that a forward pass may take, to judge by the pass on the example

Runs = list[tuple["InputCase", Mapping[str, "Array"]]]


@dataclass(frozen=True)
class VetReport:
    """What a build would start from: the module with its weights, its signature, and the test cases."""

    name: str
    version: str
    parameters: int
    weights_key: str
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    cases: int
    not_checked: tuple[str, ...]
    notes: tuple[str, ...]
    about: dict[str, Any]

    def as_json(self) -> dict[str, object]:
        """Return the object that `package vet --json` prints."""
        return {"ok": True, **asdict(self)}


def vet(path: str | Path, listener: Listener = ignore_event) -> VetReport:
    """Vet a manifest; `listener` is called with the progress of a download.

    Raises whatever a build would raise before its export.
    """
    notes: list[str] = []

    def collect_notes(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.message)
        else:
            listener(event)

    project = load_manifest(path)
    preflight.resolve_assets(project)
    with preflight.fetch_checkpoint(project, StageReporter(collect_notes)) as project:
        report = _vet_project(project, preflight.check_project_files(project))
    return replace(report, notes=(*notes, *report.notes))


def _vet_project(project: Project, checkpoint: LocatedCheckpoint) -> VetReport:
    with build_extra("package vet"):
        from packager.common.ort import onnxruntime
        from packager.export.opsets import check_opset
        from packager.model import host_settings, loader
        from packager.parity import reference
        from packager.parity.cases import sample_grid, signature
        from packager.runtime.onnx_backend import describe_missing_providers

    preflight.check_providers(project, onnxruntime.get_all_providers())
    check_opset(project)
    with host_settings.restored(), loader.open_model_loader(project, checkpoint) as load:
        loaded = load()
        grid = sample_grid.build_grid(project)
        began = time.monotonic()
        loaded, first = reference.run_first_case(project, loaded, grid.example_case)
        seconds = time.monotonic() - began
        reference.resolve_decisions(project, first)
        second = reference.run_case(project, loaded, grid.probe_case)
        reference.check_repeatable(project, loaded, grid, second)
        runs, skipped = _run_extreme_sizes(project, loaded, grid, seconds)
        outputs = signature.infer_output_specs([(grid.example_case, first), (grid.probe_case, second), *runs])
    return VetReport(
        name=project.manifest.name,
        version=project.manifest.version,
        parameters=loaded.parameters,
        weights_key=loaded.weights_key,
        prefix=loaded.key_match.prefix,
        missing=loaded.key_match.missing,
        unexpected=loaded.key_match.unexpected,
        inputs=tuple(asdict(spec) for spec in signature.make_input_specs(project.manifest)),
        outputs=tuple(asdict(spec) for spec in outputs),
        cases=len(grid.cases),
        not_checked=(
            *(f"the sizes {sizes}" for sizes in grid.skipped_sizes),
            *describe_missing_providers(project.manifest.target.providers),
        ),
        notes=(*loaded.notes(), *(f"a build will also run {sizes}, which takes too long here" for sizes in skipped)),
        about=loaded.about.as_json(),
    )


def _run_extreme_sizes(project: Project, loaded: LoadedModel, grid: Grid, seconds: float) -> tuple[Runs, list[str]]:
    """Run the module at the smallest sizes, and at the largest of each dim; return the sizes that take too long, too.

    `seconds` is how long the example took. Raises `ForwardFailed` or `OutputsUnsupported`.
    """
    from packager.parity import reference

    example = max(1, grid.example_case.element_count)
    runs: Runs = []
    skipped = []
    for case in _choose_extreme_cases(grid):
        if seconds * case.element_count / example > _MAX_SECONDS:
            skipped.append(" ".join(f"{name}={size}" for name, size in case.sizes.items()))
        else:
            runs.append((case, reference.run_case(project, loaded, case)))
    return runs, skipped


def _choose_extreme_cases(grid: Grid) -> list[InputCase]:
    """Choose the cheapest test case with all dims as small as they get, and with each as large as it gets."""
    cases = [case for case in grid.cases if case.value_kinds in (("random",), ("whole",))]
    cases.sort(key=lambda case: case.element_count)
    chosen = {cases[0].name: cases[0]}
    for dim in grid.example_case.sizes:
        largest = max(case.sizes[dim] for case in cases)
        case = next(case for case in cases if case.sizes[dim] == largest)
        chosen[case.name] = case
    return [case for case in chosen.values() if case is not grid.example_case]
