"""Everything that can be said about a project without exporting it.

The manifest, the checkpoint against the module, and one forward pass: seconds, where a build takes
many, and the same errors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from packager.checkpoint.locate import LocatedCheckpoint
from packager.common.progress import Event, Listener, Note, StageReporter, ignore_event
from packager.errors import ExtraMissing
from packager.project import manifest, preflight
from packager.project.manifest import Project
from packager.project.preflight import fetch_checkpoint, resolve_assets


@dataclass(frozen=True)
class VetReport:
    """What a build would start from."""

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
        """The object that `package vet --json` prints."""
        return {"ok": True, **asdict(self)}


def vet(path: str | Path, listener: Listener = ignore_event) -> VetReport:
    """Vet a manifest; `listener` hears of a download. Raises what a build would raise before its export."""
    told: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            told.append(event.message)  # for the report
        else:
            listener(event)

    project = manifest.load_manifest(path)
    resolve_assets(project)
    with fetch_checkpoint(project, StageReporter(hear)) as project:
        report = _vet_project(project, preflight.check_project_files(project))
    return replace(report, notes=(*told, *report.notes))


def _vet_project(project: Project, located: LocatedCheckpoint) -> VetReport:
    try:
        import onnxruntime

        from packager.model import host_settings, loader
        from packager.parity import reference
        from packager.parity.cases import sample_grid, signature
        from packager.runtime.onnx_backend import describe_missing_providers
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "packager":
            raise
        raise ExtraMissing(error.name or str(error), "package vet") from None
    preflight.check_providers(project, onnxruntime.get_all_providers())
    with host_settings.restored(), loader.open_model_loader(project, located) as opening:
        opened = opening()
        grid = sample_grid.build_grid(project)
        first = reference.run_case(project, opened, grid.example_case)
        reference.resolve_decisions(project, first)
        second = reference.run_case(project, opened, grid.probe_case)
        reference.check_repeatable(project, opened, grid, second)
        outputs = signature.infer_output_specs([(grid.example_case, first), (grid.probe_case, second)])
    return VetReport(
        name=project.manifest.name,
        version=project.manifest.version,
        parameters=opened.parameters,
        weights_key=opened.weights_key,
        prefix=opened.key_match.prefix,
        missing=opened.key_match.missing,
        unexpected=opened.key_match.unexpected,
        inputs=tuple(asdict(one) for one in signature.make_input_specs(project.manifest)),
        outputs=tuple(asdict(one) for one in outputs),
        cases=len(grid.cases),
        not_checked=(
            *(f"the sizes {sizes}" for sizes in grid.skipped_sizes),
            *describe_missing_providers(project.manifest.target.providers),
        ),
        notes=opened.notes(),
        about=opened.about.as_json(),
    )
