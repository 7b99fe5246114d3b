"""Everything that can be said about a project without exporting it.

The manifest, the checkpoint against the module, and one forward pass: seconds, where a build takes
many, and the same errors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from packager.checkpoint.locate import LocatedCheckpoint
from packager.common.progress import Event, Listener, Stages, Told, silent
from packager.errors import ExtraMissing
from packager.project import manifest, preflight
from packager.project.manifest import Project
from packager.project.preflight import assets, at_hand


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


def vet(path: str | Path, listener: Listener = silent) -> VetReport:
    """Vet a manifest; `listener` hears of a download. Raises what a build would raise before its export."""
    told: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Told):
            told.append(event.message)  # for the report
        else:
            listener(event)

    project = manifest.load(path)
    assets(project)
    with at_hand(project, Stages(hear)) as project:
        report = _vet_project(project, preflight.preflight(project))
    return replace(report, notes=(*told, *report.notes))


def _vet_project(project: Project, located: LocatedCheckpoint) -> VetReport:
    try:
        import onnxruntime

        from packager.model import host_settings, loader
        from packager.parity import reference
        from packager.parity.cases import sample_grid, signature
        from packager.runtime.onnx_backend import absent
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "packager":
            raise
        raise ExtraMissing(error.name or str(error), "package vet") from None
    preflight.providers(project, onnxruntime.get_all_providers())
    with host_settings.restored(), loader.opened(project, located) as opening:
        opened = opening()
        grid = sample_grid.grid(project)
        first = reference.first_outputs(project, opened, grid.example)
        reference.declared(project, first)
        second = reference.first_outputs(project, opened, grid.contrast)
        reference.check_repeatable(project, opened, grid, second)
        outputs = signature.outputs([(grid.example, first), (grid.contrast, second)])
    return VetReport(
        name=project.manifest.name,
        version=project.manifest.version,
        parameters=opened.parameters,
        weights_key=opened.weights_key,
        prefix=opened.fit.prefix,
        missing=opened.fit.missing,
        unexpected=opened.fit.unexpected,
        inputs=tuple(asdict(one) for one in signature.inputs(project.manifest)),
        outputs=tuple(asdict(one) for one in outputs),
        cases=len(grid.cases),
        not_checked=(*(f"the sizes {sizes}" for sizes in grid.left_out), *absent(project.manifest.target.providers)),
        notes=opened.notes(),
        about=opened.about.as_json(),
    )
