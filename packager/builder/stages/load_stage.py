"""SOURCE: the user's module with its weights, and the first forward passes. Leaves the host process as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Imported before the manifest's folder is on the path, where a file of the same name would shadow it.
import onnx as _onnx  # noqa: F401
import torch

from packager.builder.context import BuildContext, EagerModel
from packager.builder.incremental.environment import count_cores
from packager.builder.results import ReferenceResult
from packager.common import process_memory
from packager.common.ort import onnxruntime
from packager.export.opsets import check_opset
from packager.model import host_settings
from packager.model.code_dependencies import DependencyTracker, track_dependencies
from packager.model.inputs import bind_inputs
from packager.model.loader import LoadedModel, open_model_loader
from packager.parity import coverage, reference
from packager.parity.cases import signature
from packager.parity.cases.sample_grid import Grid, drop_expensive_cases
from packager.parity.cost import OPERATIONS, count_forward_cost
from packager.project import preflight
from packager.project.manifest import Project
from packager.runtime.onnx_backend import describe_missing_providers


@dataclass(frozen=True)
class OpenProject:
    """A project whose code can be imported: loads the module, and knows which files its code depends on."""

    load: Callable[[], LoadedModel]
    dependencies: DependencyTracker


def check_providers(context: BuildContext) -> None:
    """Refuse execution providers and an opset that onnxruntime does not know; report providers this machine lacks."""
    preflight.check_providers(context.project, onnxruntime.get_all_providers())
    check_opset(context.project)
    for provider in describe_missing_providers(context.project.manifest.target.providers):
        context.reporter.report_note(f"not compared: {provider}")


@contextmanager
def open_project(context: BuildContext) -> Iterator[OpenProject]:
    """Make the user's code importable and track what it reads, and restore the host's settings afterwards."""
    project, checkpoint = context.project, context.request.checkpoint
    data = project.manifest.parity.data
    inputs = [project.checkpoint_path, *checkpoint.files, *([project.folder / data] if data is not None else [])]
    with (
        host_settings.restored(),
        track_dependencies(project.folder, _entry_module_name(project), [*inputs, context.scratch]) as tracker,
        open_model_loader(project, checkpoint) as load,
    ):
        torch.set_num_threads(count_cores())  # whatever the environment says: measured errors depend on it
        yield OpenProject(load, tracker)


def load_model(
    context: BuildContext, load: Callable[[], LoadedModel], grid: Grid, cached: ReferenceResult | None
) -> EagerModel:
    """Load the module, and run it on the first cases unless the reference is cached.

    Raises what `LoadedModel`'s loader raises, and `ForwardFailed` or `OutputsUnsupported` from the forward passes.
    """
    project, loaded = context.project, load()
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in loaded.module.state_dict().values())
    example = bind_inputs(project, list(grid.example_case.inputs.values()))
    inputs = signature.make_input_specs(project.manifest)
    if cached is not None:
        if cached.provenance.dtype is not None and loaded.conversion is None:
            loaded = loaded.in_float32()
        _report_notes(context, loaded)
        process_memory.freeze_garbage_collector()
        return EagerModel(loaded, grid, example, inputs, cached.outputs, {}, weight_bytes)
    loaded, first = reference.run_first_case(project, loaded, grid.example_case)
    _report_notes(context, loaded)
    reference.resolve_decisions(project, first)  # before anything that takes long
    probe = grid.probe_case
    second = reference.run_case(project, loaded, probe)
    outputs = signature.infer_output_specs([(grid.example_case, first), (probe, second)])
    grid, masked = reference.drop_refused_masks(project, loaded, grid)
    grid, constant = reference.drop_nothing_but_padding(project, loaded, grid)
    process_memory.freeze_garbage_collector()
    cost = count_forward_cost(project, loaded, min(grid.example_case, probe, key=lambda case: case.element_count))
    budget = OPERATIONS[project.manifest.parity.effort]
    grid = coverage.add_extra_cases(project, loaded, drop_expensive_cases(project, grid, cost.estimate, budget), cost)
    known_outputs = {grid.example_case.name: first, probe.name: second, **masked, **constant}
    return EagerModel(loaded, grid, example, inputs, outputs, known_outputs, weight_bytes, cost)


def _report_notes(context: BuildContext, loaded: LoadedModel) -> None:
    for note in loaded.notes():
        context.reporter.report_note(note)


def _entry_module_name(project: Project) -> str:
    """Return the name under which the entry's module is imported; without an entry it is one of transformers."""
    if project.manifest.model.entry is None:
        return "transformers"
    path = project.manifest.model.entry.rpartition(":")[0]
    return Path(path).stem if path.endswith(".py") else path
