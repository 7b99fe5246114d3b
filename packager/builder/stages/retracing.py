"""Trace a module in a different way, where its first trace is wrong at other sizes and it cannot be scripted.

A trace turns sizes that forward() rounds into constants, and keeps the side of a branch that the example takes. The
example is small, so it often takes the side of `if length > window` that most inputs do not take.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from packager.builder.context import BuildContext, EagerModel
from packager.export import torchscript
from packager.export.exporters import ExporterFailed
from packager.export.torchscript import TorchScriptProgram
from packager.model.inputs import bind_inputs
from packager.parity.cases.sample_grid import InputCase

_MAX_GROWTH = 16  # of the elements of the inputs


def trace_rounded_sizes(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram
) -> TorchScriptProgram | None:
    """Trace with rounded sizes kept dynamic; None if forward() rounds no size, or needs them as numbers."""
    return _trace(context, model, program, model.example) if program.fixes_rounded_sizes else None


def trace_at_larger_sizes(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram
) -> TorchScriptProgram | None:
    """Trace at sizes larger than those of the example; None if the first trace fixed no control flow, or this fails."""
    case = _find_larger_case(model)
    if program.method != "trace" or case is None:
        return None
    if not program.specialized.user_lines and not program.specialized.library_lines:
        return None
    return _trace(context, model, program, bind_inputs(context.project, list(case.inputs.values())))


def _trace(
    context: BuildContext, model: EagerModel, program: TorchScriptProgram, inputs: tuple[torch.Tensor, ...]
) -> TorchScriptProgram | None:
    module, names = model.loaded.pristine_copy(), context.project.manifest.outputs
    try:
        traced = torchscript.trace(module, names, inputs, context.project.folder, keep_rounded_sizes=True)
    except ExporterFailed:
        return None
    decides = program.has_discrete_decisions  # rounding a size is no decision
    return replace(traced, has_discrete_decisions=decides, script_failure=program.script_failure)


def _find_larger_case(model: EagerModel) -> InputCase | None:
    """Return the largest case that is smaller than the example in no dim, and not much more expensive to run."""
    example = model.grid.example_case
    larger = [
        case
        for case in model.grid.cases
        if case.sizes != example.sizes
        and all(case.sizes[name] >= size for name, size in example.sizes.items())
        and case.element_count <= _MAX_GROWTH * example.element_count
    ]
    return max(larger, key=lambda case: case.element_count, default=None)
