"""`package vet`: everything that can be said about a project without exporting it.

The manifest, the checkpoint against the module, and a few forward passes: it takes seconds where a build may take
minutes, and raises the same errors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from packager.builder.extras import build_extra
from packager.checkpoint.locate import LocatedCheckpoint
from packager.common.progress import Event, Listener, Note, StageReporter, ignore_event
from packager.project import preflight
from packager.project.manifest import Project, load_manifest


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
        import onnxruntime

        from packager.model import host_settings, loader
        from packager.parity import reference
        from packager.parity.cases import sample_grid, signature
        from packager.runtime.onnx_backend import describe_missing_providers

    preflight.check_providers(project, onnxruntime.get_all_providers())
    with host_settings.restored(), loader.open_model_loader(project, checkpoint) as load:
        loaded = load()
        grid = sample_grid.build_grid(project)
        loaded, first = reference.run_first_case(project, loaded, grid.example_case)
        reference.resolve_decisions(project, first)
        second = reference.run_case(project, loaded, grid.probe_case)
        reference.check_repeatable(project, loaded, grid, second)
        outputs = signature.infer_output_specs([(grid.example_case, first), (grid.probe_case, second)])
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
        notes=loaded.notes(),
        about=loaded.about.as_json(),
    )
