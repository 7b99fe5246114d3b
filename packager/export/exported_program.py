"""Export the eager module as a program of torch.export, and save it to the same bytes every time.

Such a program is the fallback where TorchScript cannot be had. Unlike a trace, it never keeps one side of a branch on
data silently: torch.export raises instead.

`torch.export.save` writes a ZIP archive that holds more than the program: the example inputs as a pickle, a stack trace
with absolute paths for each node, conditions on sizes in Python, and the file's own name as the folder inside. `save`
rewrites the archive without them, in the form that `packager.runtime.exported_program_archive` accepts.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from packager.common import deterministic_zip
from packager.export.exporters import (
    ExporterFailed,
    FlatOutputs,
    disable_attention_fast_path,
    retry_with_plain_is_causal,
    retry_without_is_exporting,
    to_exporter_failed,
)
from packager.export.torchscript import reserve_disk_space
from packager.project.manifest import DimLimits, Project
from packager.runtime.exported_program_archive import ROOT

_GENERAL_SIZE = 2  # torch.export specializes what it traces with a size of 0 or 1
_MAX_CONSTANT_ELEMENTS = 1000
_RANDOM_ENTRY = ".data/serialization_id"


def export(project: Project, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Export the module with the manifest's dynamic dims; `inputs` are an example call, in the manifest's order.

    A dim is exported as if it were at least 2, so that its size does not become a condition. The program still takes
    smaller sizes, and the parity check tries them. Raises `ExporterFailed`.
    """
    with disable_attention_fast_path():
        return export_flat(project, FlatOutputs(module, project.manifest.outputs).eval(), inputs)


def export_flat(project: Project, flat: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Export a module in eval mode whose forward() takes `*inputs` and returns tensors; the rest is as for `export`."""
    from packager.export.size_quotients import simplify_size_quotients  # imports sympy

    shapes = {"inputs": _make_dynamic_shapes(project, inputs)}
    failure: Exception | None = None
    # It prints half of the graph to stderr when it fails.
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(_keep_sizes_general())
        stack.enter_context(simplify_size_quotients())
        for strict in (False, True):
            run = partial(torch.export.export, flat, inputs, dynamic_shapes=shapes, strict=strict)
            run = partial(retry_without_is_exporting, partial(retry_with_plain_is_causal, run))
            try:
                return run() if strict else _retry_with_constants(run)
            except Exception as error:  # noqa: BLE001 (torch.export raises whatever forward() does under its tensors)
                failure = failure or error
    assert failure is not None
    raise _explain(failure, project.folder) from failure


def _retry_with_constants(export: Callable[[], ExportedProgram]) -> ExportedProgram:
    """Call `export`; again, if it lacks a number, with the values of the tensors that forward() makes of constants.

    A shape or a stride may be in such a tensor, as in `int(torch.tensor([2, 3])[0])`. torch.export remembers the values
    of tensors with one element only.
    """
    from torch._subclasses import fake_tensor
    from torch.fx.experimental import proxy_tensor
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    modules: tuple[Any, ...] = (fake_tensor, proxy_tensor)
    limits = [module.CONSTANT_NUMEL_LIMIT for module in modules]
    try:
        return export()
    except GuardOnDataDependentSymNode:
        for module in modules:
            module.CONSTANT_NUMEL_LIMIT = _MAX_CONSTANT_ELEMENTS
    try:
        return export()
    finally:
        for module, limit in zip(modules, limits, strict=True):
            module.CONSTANT_NUMEL_LIMIT = limit


def _explain(failure: Exception, folder: Path) -> ExporterFailed:
    """Return the cause of a failed export: for sizes that became fixed, the first that torch lists below its title."""
    failed = to_exporter_failed(failure, folder)
    listed = [line.strip()[2:] for line in str(failure).splitlines() if line.strip().startswith("- ")]
    if "Constraints violated" not in failed.cause or not listed:
        return failed
    return ExporterFailed(f"{type(failure).__name__}: {listed[0].partition('. ')[0]}", failed.where)


def _keep_sizes_general() -> contextlib.AbstractContextManager[None]:
    """Let no size of 0 or 1 become a condition, as torch.onnx.export does; the parity check tries those sizes."""
    from torch.fx.experimental import _config

    config: Any = _config  # its attributes are made when it is imported
    patch: contextlib.AbstractContextManager[None] = config.patch(backed_size_oblivious=True)
    return patch


def _make_dynamic_shapes(project: Project, inputs: tuple[torch.Tensor, ...]) -> tuple[dict[int, Any], ...]:
    specs, dims = list(project.manifest.inputs.values()), {}
    for spec, tensor in zip(specs, inputs, strict=True):
        for dim, size in zip(spec.shape, tensor.shape, strict=True):
            if isinstance(dim, str):
                dims[dim] = _make_dynamic_dim(dim, project.manifest.dim_limits()[dim], size)
    return tuple({axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in specs)


def _make_dynamic_dim(name: str, limit: DimLimits, example: int) -> Any:
    """Make a dynamic dim; torch rejects one that has a single size, so that one may also be one larger."""
    smallest = min(max(limit.min, _GENERAL_SIZE), example)
    return torch.export.Dim(name, min=smallest, max=None if limit.max is None else max(limit.max, smallest + 1))


def save(program: ExportedProgram, path: Path, folder: Path) -> None:
    """Write the program to `path`, the same bytes every time. `folder` holds the user's code.

    Raises `ExporterFailed`, and OSError if the disk is full.
    """
    raw, example_inputs = path.with_name(f"raw-{path.name}"), program.example_inputs
    program.example_inputs = None  # they would be a pickle
    reserve_disk_space(raw, sum(tensor.nbytes for tensor in _list_tensors(program)))
    try:
        torch.export.save(program, raw)
    except OSError:
        raise  # the disk failed, not the exporter
    except Exception as error:
        raise to_exporter_failed(error, folder) from error
    finally:
        program.example_inputs = example_inputs
    write_canonical(raw, path)
    raw.unlink()


def _list_tensors(program: ExportedProgram) -> list[torch.Tensor]:
    values = (*program.state_dict.values(), *program.constants.values())
    return [value for value in values if isinstance(value, torch.Tensor)]


def write_canonical(saved: Path, target: Path) -> None:
    """Copy an archive of torch.export.save without what differs from run to run: see the module's docstring."""
    with zipfile.ZipFile(saved) as archive, target.open("wb") as stream:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}

        def files() -> Iterator[tuple[str, int, list[bytes]]]:
            for inner, name in sorted(entries.items()):
                if inner == _RANDOM_ENTRY:
                    continue
                content = archive.read(name)
                if inner.startswith("models/"):
                    document = {**_strip_metadata(json.loads(content)), "guards_code": []}
                    content = json.dumps(document, separators=(",", ":")).encode()
                yield f"{ROOT}/{inner}", len(content), [content]

        deterministic_zip.write_zip(stream, files())


def _strip_metadata(value: Any) -> Any:
    """Return a JSON value without the metadata of graph nodes: stack traces, module names, and what libraries add."""
    if isinstance(value, list):
        return [_strip_metadata(item) for item in value]
    if not isinstance(value, dict):
        return value
    stripped = {name: _strip_metadata(item) for name, item in value.items()}
    return {**stripped, "metadata": {}} if "metadata" in stripped else stripped
