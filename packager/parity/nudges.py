"""Run the module on inputs moved by less than anybody could mean.

This is almost equal to the module on the inputs themselves. If it changes an index, or an output by far more than
rounding does, the result depends on a tie (`packager.parity.ties`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from packager.model.loader import LoadedModel
from packager.parity.cases.generators import has_mask
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import run_with_state
from packager.parity.noise_variants import perturb_parameters
from packager.parity.numerics.compare import Array, is_float
from packager.parity.numerics.tolerances import get_machine_epsilon
from packager.project.manifest import Project, is_integer_dtype

_NUDGE_IN_EPSILONS = 64  # a smaller nudge is lost in the rounding of the first sum, and what was tied stays tied
_HALF_NUDGE_IN_EPSILONS = 4  # 64 epsilons of float16 are 6 %

_ORDERING_FUNCTIONS = frozenset(
    {"topk", "sort", "msort", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "median"}
)
_SPREAD_STEPS, _SPREAD_STRIDE = 16, 7  # at most 15 roundings; neighbours are 7 or 9 apart
_MASK_MAGNITUDE = 1e4  # scores beyond it are a mask's, and meant to be equal


def run_nudged(project: Project, model: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    """Run the module on a test case with the float inputs moved by a few roundings. Returns arrays by output name.

    Without float inputs, the parameters are moved by one unit in the last place. With integers to look up, equal ones
    give equal scores whatever the parameters are, so scores are also moved wherever the module orders them.
    """
    inputs = {name: _nudge(project, name, array) for name, array in case.inputs.items()}
    state = {} if any(is_float(array) for array in inputs.values()) else perturb_parameters(model.module)
    looks_up = any(is_integer_dtype(spec.dtype) and not has_mask([spec]) for spec in project.manifest.inputs.values())
    with _BreakTies() if looks_up else nullcontext():
        return run_with_state(project, model.module, state, replace(case, inputs=inputs))


def _nudge(project: Project, name: str, array: Array) -> Array:
    """Move the elements of a float input up or down at random; other inputs stay as they are.

    An element x moves by 64 epsilons (4 in float16) of |x| + span, where span is the width of the input's range, at
    most 1, so that zeros move too. No element leaves the range, or moves further out if it is outside (a user's own
    data). NaN and infinities, as masks have them, stay.
    """
    if not is_float(array):
        return array
    spec = project.manifest.inputs[name]
    generator = np.random.default_rng([project.manifest.parity.seed, *name.encode()])
    wide = array.astype(np.float64)
    span = 1.0 if spec.range is None else min(1.0, float(spec.range[1]) - float(spec.range[0]))
    roundings = _NUDGE_IN_EPSILONS if array.dtype.itemsize > 2 else _HALF_NUDGE_IN_EPSILONS
    step = roundings * get_machine_epsilon(array.dtype) * (np.abs(wide) + span)
    signs = 2 * generator.integers(0, 2, array.shape) - 1
    limits = np.finfo(str(array.dtype))
    least, most = spec.value_bounds() if spec.range is not None else (limits.min, limits.max)
    low, high = np.minimum(wide, float(least)), np.maximum(wide, float(most))
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.where(np.isfinite(wide), np.clip(wide + step * signs, low, high), wide)
    return np.asarray(moved.astype(array.dtype))


class _BreakTies(torch.overrides.TorchFunctionMode):
    """While active, scores are spread apart by a few roundings before torch orders them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, if it orders scores, on scores that nowhere agree to the last bit."""
        if getattr(function, "__name__", "") in _ORDERING_FUNCTIONS and args and isinstance(args[0], torch.Tensor):
            args = (_spread_scores(args[0]), *args[1:])
        return function(*args, **(kwargs or {}))


def _spread_scores(scores: torch.Tensor) -> torch.Tensor:
    """Add to every score up to 15 roundings of its own, neighbours differing; scores of a mask stay."""
    if not scores.is_floating_point():
        return scores
    steps = torch.arange(scores.numel()).mul(_SPREAD_STRIDE).remainder(_SPREAD_STEPS)
    sizes = torch.where(scores.abs() < _MASK_MAGNITUDE, scores.abs(), 0)
    return scores + sizes * steps.reshape(scores.shape).to(scores.dtype) * torch.finfo(scores.dtype).eps
