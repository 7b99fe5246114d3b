"""What the samples exercise: which channels of the weights would show in some output, if they were wrong.

A weight that no sample's output depends on can hold anything, and the gate would not see it: the rows of an
embedding that no sample looks up, a channel behind a ReLU that is never open. One backward pass tells: each
float output is multiplied by random numbers and summed, and a channel (an index of a parameter's first axis)
whose gradient is zero to the last bit on every case is silent. An output's own channel that has one and the same
value in every case is still.

A buffer counts where gradients reach it: a causal mask that is only compared has none, and neither have the running
statistics of a normalization, whose channels are those of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from packager.common import output_tree
from packager.model.inputs import bind_inputs
from packager.model.loader import LoadedModel
from packager.parity.cases import sample_grid
from packager.parity.cases.sample_grid import Grid, InputCase
from packager.parity.noise import restore_rnn_weights
from packager.parity.numerics.verdict import ReferenceCase
from packager.parity.results import ChannelCoverage, UnexercisedChannels
from packager.project.manifest import Project

# Of a module that is dear, the largest of the cases that are small: a backward pass costs twice the forward pass.
_MAX_LARGE_MODEL_CASES = 1
_MAX_INPUT_ELEMENTS = 1 << 18
_RUNNING_STATISTICS = ("running_mean", "running_var")
# Where a row costs next to nothing, more are drawn: some always, and others while they show what none did before.
_CHEAP_PARAMETERS = 1 << 20
_CHEAP_EXAMPLE_ELEMENTS = 1 << 12
_EXTRA_CASE_ROWS = 32
_MIN_EXTRA_CASES = 8
_MAX_EXTRA_CASES = 24
_MAX_LISTED_CHANNELS = 20
_MAX_NAMED_PARAMETERS = 2

ChannelMasks = dict[str, torch.Tensor]


def add_extra_cases(project: Project, source: LoadedModel, grid: Grid) -> Grid:
    """The grid, and for a small module further cases that show channels which the grid does not."""
    if source.parameters > _CHEAP_PARAMETERS or grid.example_case.element_count > _CHEAP_EXAMPLE_ELEMENTS:
        return grid
    seen: ChannelMasks = {}
    further: list[InputCase] = []
    try:
        for case in grid.cases:
            _mark_exercised(project, source.module, case, seen)
        for number in range(_MAX_EXTRA_CASES):
            case = sample_grid.draw_extra_case(project, number, _EXTRA_CASE_ROWS)
            before = _count_exercised(seen)
            if number >= _MIN_EXTRA_CASES and _all_exercised(seen):
                break
            _mark_exercised(project, source.module, case, seen)
            if number < _MIN_EXTRA_CASES or _count_exercised(seen) > before:
                further.append(case)
    except Exception:  # noqa: BLE001 (no gradients: `measure` says so; a case that forward() refuses is told elsewhere)
        further = [sample_grid.draw_extra_case(project, number, _EXTRA_CASE_ROWS) for number in range(_MIN_EXTRA_CASES)]
    return replace(grid, cases=(*grid.cases, *further))


def _count_exercised(seen: ChannelMasks) -> int:
    return sum(int(mask.sum()) for mask in seen.values())


def _all_exercised(seen: ChannelMasks) -> bool:
    return all(bool(mask.all()) for mask in seen.values())


def measure_coverage(project: Project, source: LoadedModel, cases: Sequence[InputCase]) -> ChannelCoverage:
    """Run the module backwards on `cases`, until every channel has shown; on a few of them where that is dear.

    What forbids it is recorded, and nothing is claimed then.
    """
    seen: ChannelMasks = {}
    used = 0
    most = len(cases) if source.parameters <= _CHEAP_PARAMETERS else _MAX_LARGE_MODEL_CASES
    try:
        for case in _choose_affordable(cases, most):
            _mark_exercised(project, source.module, case, seen)
            used += 1
            if seen and _all_exercised(seen):
                break
    except Exception as error:  # noqa: BLE001 (the user's code may forbid gradients in any way; recorded)
        return ChannelCoverage(0, 0, {}, f"not measured: {type(error).__name__} in the backward pass")
    if not seen:
        return ChannelCoverage(0, 0, {}, "not measured: no output has a gradient")
    silent = {}
    for name, mask in sorted(seen.items()):
        if not bool(mask.all()):
            indices = torch.nonzero(~mask).reshape(-1).tolist()
            silent[name] = UnexercisedChannels(len(indices), len(mask), tuple(indices[:_MAX_LISTED_CHANNELS]))
    channels = sum(len(mask) for mask in seen.values())
    exercised = channels - sum(one.count for one in silent.values())
    return ChannelCoverage(channels, exercised, silent, f"gradients of {used} of {len(cases)} cases")


def count_constant_channels(reference_cases: Sequence[ReferenceCase]) -> dict[str, int]:
    """How many channels of each output have one value in all cases: along the last axis where its size is fixed."""
    found = {}
    for name in reference_cases[0].outputs:
        arrays = [one.outputs[name] for one in reference_cases if one.outputs[name].size]
        if not arrays or arrays[0].ndim == 0 or len({array.shape[-1] for array in arrays}) > 1:
            continue
        rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
        count = int((rows == rows[:1]).all(axis=0).sum()) if len(rows) > 1 else 0
        if count:
            found[name] = count
    return found


def describe_coverage(found: ChannelCoverage) -> str:
    """What the user should know of it, in a line; empty where every channel shows."""
    if not found.silent:
        return "" if found.channels else f"what the samples exercise was {found.measured}"
    largest = sorted(found.silent.items(), key=lambda item: -item[1].count)
    named = ", ".join(f"{name} ({one.count:,} of {one.of:,})" for name, one in largest[:_MAX_NAMED_PARAMETERS])
    more = f" and {len(largest) - _MAX_NAMED_PARAMETERS} more" if len(largest) > _MAX_NAMED_PARAMETERS else ""
    silent = found.channels - found.exercised
    return f"no sample shows {silent:,} of {found.channels:,} channels of the weights: {named}{more}"


def _choose_affordable(cases: Sequence[InputCase], most: int) -> list[InputCase]:
    chosen: list[InputCase] = []
    elements = 0
    for case in sorted(cases, key=lambda case: (-case.element_count, case.name)):
        if elements + case.element_count <= _MAX_INPUT_ELEMENTS and len(chosen) < most:
            chosen.append(case)
            elements += case.element_count
    return chosen or [min(cases, key=lambda case: case.element_count)]


def _mark_exercised(project: Project, module: torch.nn.Module, case: InputCase, seen: ChannelMasks) -> None:
    """Mark the channels that this case's outputs depend on; gradients are dropped as they come."""
    parameters, leaves = dict(module.named_parameters()), {}
    for name, tensor in {**parameters, **dict(module.named_buffers())}.items():
        if tensor.is_floating_point() and tensor.dim() > 0 and not name.endswith(_RUNNING_STATISTICS):
            leaves[name] = tensor.detach().requires_grad_()
            mark = _make_gradient_hook(name, seen)
            leaves[name].register_post_accumulate_grad_hook(mark)  # type: ignore[no-untyped-call]  # torch's stubs
    with _enable_padding_gradients(module):
        try:
            with torch.enable_grad():
                value = torch.func.functional_call(module, leaves, bind_inputs(project, list(case.inputs.values())))
        finally:
            restore_rnn_weights(module)
    generator = torch.Generator().manual_seed(0)
    named = output_tree.select_outputs(output_tree.flatten_outputs(value), project.manifest.outputs)
    told = [one for one in named.values() if one.requires_grad and bool(torch.isfinite(one).all())]
    if told:
        noise = [torch.randn(one.shape, generator=generator).to(one.dtype) for one in told]
        for name in (one for one in parameters if one in leaves):
            seen.setdefault(name, torch.zeros(len(leaves[name]), dtype=torch.bool))
        torch.autograd.backward(told, noise)


@contextmanager
def _enable_padding_gradients(module: torch.nn.Module) -> Iterator[None]:
    """Let the row of an embedding that stands for padding have its gradient, which training forbids it."""
    kept = {one: one.padding_idx for one in module.modules() if isinstance(one, torch.nn.Embedding)}
    try:
        for one in kept:
            one.padding_idx = None
        yield
    finally:
        for one, padding in kept.items():
            one.padding_idx = padding


def _make_gradient_hook(name: str, seen: ChannelMasks):  # type: ignore[no-untyped-def]  # torch's type of a hook is not public
    def mark(leaf: torch.Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        seen.setdefault(name, torch.zeros(len(dense), dtype=torch.bool))
        seen[name] |= (dense != 0).reshape(len(dense), math.prod(dense.shape[1:])).any(dim=1)

    return mark
