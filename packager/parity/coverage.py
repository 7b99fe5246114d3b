"""Measure which channels of the weights the test cases exercise: where a wrong weight would change some output.

A weight on which no output depends could hold anything, and no comparison would show it: the rows of an embedding that
no test case looks up, or a channel behind a ReLU that never opens. One backward pass per test case shows them: every
float output is multiplied by random numbers and summed,

    loss = Σ outputs · noise,   noise ~ N(0, 1)

and a channel (an index of a parameter's first axis) is exercised if any element of its gradient is not exactly zero.
The random numbers keep gradients from cancelling, as those of a softmax do in a plain sum.

Buffers count if gradients reach them. A causal mask that is only compared with has none, and neither do the running
statistics of a normalization, whose channels are those of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from packager.common import output_tree
from packager.model.loader import LoadedModel
from packager.parity.cases import sample_grid
from packager.parity.cases.sample_grid import Grid, InputCase
from packager.parity.cost import COVERAGE_SHARE, OPERATIONS, OPERATIONS_PER_ELEMENT, ForwardCost
from packager.parity.forward import bind_case, get_state, replaced_state, run_with_state, widen_tensor
from packager.parity.numerics.compare import is_float
from packager.parity.numerics.verdict import ReferenceCase
from packager.parity.results import ChannelCoverage, UnexercisedChannels
from packager.project.manifest import Project

_BACKWARD_PRICE = 3  # of a pass forward and backward, in forward passes
_EXTRA_CASE_PRICE = 8  # of an extra case in forward passes: it runs backward, is evaluated, and both artifacts run it
_EXTRA_CASE_ROWS = 32
_MIN_EXTRA_CASES = 8  # always; more only while they exercise new channels
_MAX_EXTRA_CASES = 24
_MAX_LISTED_CHANNELS = 20
_MAX_NAMED_PARAMETERS = 2
_RUNNING_STATISTICS = ("running_mean", "running_var")

ChannelMasks = dict[str, torch.Tensor]
"""By parameter name: booleans of the shape (channels,), whether each is exercised."""


def add_extra_cases(project: Project, model: LoadedModel, grid: Grid, cost: ForwardCost) -> Grid:
    """Add random test cases to the grid of a cheap module: 8, and up to 24 while they exercise new channels."""
    first = sample_grid.draw_extra_case(project, 0, _EXTRA_CASE_ROWS)
    if _MAX_EXTRA_CASES * _EXTRA_CASE_PRICE * cost.estimate(first) > _get_budget(project):
        return grid
    exercised: ChannelMasks = {}
    extra: list[InputCase] = []
    try:
        for case in grid.cases:
            _mark_exercised(project, model.module, case, exercised)
        for number in range(_MAX_EXTRA_CASES):
            case = sample_grid.draw_extra_case(project, number, _EXTRA_CASE_ROWS)
            before = _count_exercised(exercised)
            if number >= _MIN_EXTRA_CASES and _all_exercised(exercised):
                break
            _mark_exercised(project, model.module, case, exercised)
            if number < _MIN_EXTRA_CASES or _count_exercised(exercised) > before:
                extra.append(case)
    except Exception:  # noqa: BLE001 (measure_coverage reports that there are no gradients, run_case what forward() raises)
        extra = [sample_grid.draw_extra_case(project, number, _EXTRA_CASE_ROWS) for number in range(_MIN_EXTRA_CASES)]
    return replace(grid, cases=(*grid.cases, *extra))


def _count_exercised(exercised: ChannelMasks) -> int:
    return sum(int(mask.sum()) for mask in exercised.values())


def _all_exercised(exercised: ChannelMasks) -> bool:
    return all(bool(mask.all()) for mask in exercised.values())


def _get_budget(project: Project) -> float:
    return COVERAGE_SHARE * OPERATIONS[project.manifest.parity.effort]


def measure_coverage(
    project: Project, model: LoadedModel, cases: Sequence[InputCase], cost: ForwardCost
) -> ChannelCoverage:
    """Run the module backwards on the test cases that the budget allows, until every channel is exercised.

    If the backward pass raises an exception or no output has a gradient, `measured` says so and nothing is counted.
    """
    exercised: ChannelMasks = {}
    used = 0
    try:
        for case in _choose_affordable(cases, cost, model.parameters, _get_budget(project)):
            _mark_exercised(project, model.module, case, exercised)
            used += 1
            if exercised and _all_exercised(exercised):
                break
    except Exception as error:  # noqa: BLE001 (the user's code may forbid gradients in any way; recorded)
        return ChannelCoverage(0, 0, {}, f"not measured: the backward pass raises {type(error).__name__}")
    if not exercised:
        return ChannelCoverage(0, 0, {}, "not measured: no output has a gradient")
    silent = {}
    for name, mask in sorted(exercised.items()):
        if not bool(mask.all()):
            indices = torch.nonzero(~mask).reshape(-1).tolist()
            silent[name] = UnexercisedChannels(len(indices), len(mask), tuple(indices[:_MAX_LISTED_CHANNELS]))
    channels = sum(len(mask) for mask in exercised.values())
    measured = f"gradients of {used} of {len(cases)} test cases"
    return ChannelCoverage(channels, _count_exercised(exercised), silent, measured)


def show_weights(project: Project, model: LoadedModel, cases: Sequence[InputCase], *, widen: bool) -> bool:
    """Return whether any test case gives other outputs if the weights are replaced by others; with `widen`, in float64.

    That settles what gradients leave open: they may underflow in float32, and a rounding has none. Whatever forward()
    raises is passed on.
    """
    generator = torch.Generator().manual_seed(0)
    own = get_state(model.module)
    state = {name: widen_tensor(tensor) if widen else tensor for name, tensor in own.items()}
    other = {
        name: tensor + torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * (tensor.abs() + 0.1)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    for case in cases:
        first = run_with_state(project, model.module, state, case, widen=widen)
        second = run_with_state(project, model.module, {**state, **other}, case, widen=widen)
        if any(not np.array_equal(first[name], second[name], equal_nan=is_float(first[name])) for name in first):
            return True
    return False


def count_constant_channels(reference_cases: Sequence[ReferenceCase]) -> dict[str, int]:
    """Count the channels of each output that have the same value in all test cases, by output name.

    A channel of an output is an index of its last axis. Outputs without channels of this kind are left out, and so are
    those whose last axis varies in size, scalars, and outputs of a single row.
    """
    counts = {}
    for name in reference_cases[0].outputs:
        arrays = [case.outputs[name] for case in reference_cases if case.outputs[name].size]
        if not arrays or arrays[0].ndim == 0 or len({array.shape[-1] for array in arrays}) > 1:
            continue
        rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
        count = int((rows == rows[:1]).all(axis=0).sum()) if len(rows) > 1 else 0
        if count:
            counts[name] = count
    return counts


def describe_coverage(coverage: ChannelCoverage) -> str:
    """Return a line for the user; empty if the test cases exercise every channel."""
    if not coverage.silent:
        return "" if coverage.channels else f"coverage of the weights: {coverage.measured}"
    largest = sorted(coverage.silent.items(), key=lambda item: -item[1].count)
    named = ", ".join(
        f"{name} ({channels.count:,} of {channels.of:,})" for name, channels in largest[:_MAX_NAMED_PARAMETERS]
    )
    more = f" and {len(largest) - _MAX_NAMED_PARAMETERS} more" if len(largest) > _MAX_NAMED_PARAMETERS else ""
    silent = coverage.channels - coverage.exercised
    return f"the test cases do not exercise {silent:,} of {coverage.channels:,} channels of the weights: {named}{more}"


def _choose_affordable(
    cases: Sequence[InputCase], cost: ForwardCost, parameters: int, budget: float
) -> list[InputCase]:
    """Choose the largest cases whose backward passes fit the budget; the smallest of all if none does."""
    chosen: list[InputCase] = []
    for case in sorted(cases, key=lambda case: (-case.element_count, case.name)):
        price = (
            _BACKWARD_PRICE * cost.estimate(case) + OPERATIONS_PER_ELEMENT * parameters
        )  # whose gradients are written
        if price <= budget:
            budget -= price
            chosen.append(case)
    return chosen or [min(cases, key=lambda case: case.element_count)]


def _mark_exercised(project: Project, module: torch.nn.Module, case: InputCase, exercised: ChannelMasks) -> None:
    """Mark the channels that the outputs of this test case depend on; every gradient is dropped once it is seen."""
    parameters, leaves = dict(module.named_parameters()), {}
    for name, tensor in {**parameters, **dict(module.named_buffers())}.items():
        if tensor.is_floating_point() and tensor.dim() > 0 and not name.endswith(_RUNNING_STATISTICS):
            leaves[name] = tensor.detach().requires_grad_()
            mark = _make_gradient_hook(name, exercised)
            leaves[name].register_post_accumulate_grad_hook(mark)  # type: ignore[no-untyped-call]  # torch's stubs
    with _enable_padding_gradients(module), replaced_state(module, leaves), torch.enable_grad():
        value = module(*bind_case(project, case))
    generator = torch.Generator().manual_seed(0)
    outputs = output_tree.select_outputs(output_tree.flatten_outputs(value), project.manifest.outputs)
    differentiable = [
        output for output in outputs.values() if output.requires_grad and bool(torch.isfinite(output).all())
    ]
    if differentiable:
        noise = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in differentiable]
        for name in leaves:
            if name in parameters:  # one that no gradient reaches counts too, as not exercised
                exercised.setdefault(name, torch.zeros(len(leaves[name]), dtype=torch.bool))
        torch.autograd.backward(differentiable, noise)


@contextmanager
def _enable_padding_gradients(module: torch.nn.Module) -> Iterator[None]:
    """Let the padding row of an embedding have a gradient, which training suppresses: inference looks it up."""
    padding = {layer: layer.padding_idx for layer in module.modules() if isinstance(layer, torch.nn.Embedding)}
    try:
        for layer in padding:
            layer.padding_idx = None
        yield
    finally:
        for layer, index in padding.items():
            layer.padding_idx = index


def _make_gradient_hook(name: str, exercised: ChannelMasks) -> Callable[[torch.Tensor], None]:
    """Return a hook that marks the channels of a parameter whose gradient is not zero, and drops the gradient."""

    def mark(leaf: torch.Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        exercised.setdefault(name, torch.zeros(len(dense), dtype=torch.bool))
        exercised[name] |= (dense != 0).reshape(len(dense), math.prod(dense.shape[1:])).any(dim=1)

    return mark
