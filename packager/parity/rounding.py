"""Run the module with the result of every operator moved by one unit in the last place, up or down at random.

This is Monte Carlo arithmetic (D. S. Parker, Monte Carlo Arithmetic: exploiting randomness in floating-point
arithmetic, UCLA CSD-970002, 1997) by operator. It shows where a module amplifies what rounding leaves, wherever that
is: in an instance normalization of a constant channel, which divides by almost nothing, and in whatever else cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from packager.model.loader import LoadedModel
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import compile_nothing, run_with_state
from packager.parity.numerics.compare import Array
from packager.project.manifest import Project

_EXACT_OPERATORS = (
    {"abs", "alias", "amax", "amin", "arange", "argsort", "cat", "clamp", "clamp_max", "clamp_min", "clone", "detach"}
    | {"constant_pad_nd", "copy", "embedding", "empty", "eye", "fill", "full", "gather", "index", "index_put", "where"}
    | {"index_select", "lift_fresh", "masked_fill", "max", "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "neg"}
    | {"max_pool3d", "maximum", "min", "minimum", "one_hot", "ones", "pad", "reflection_pad1d", "reflection_pad2d"}
    | {"relu", "repeat", "replication_pad2d", "roll", "scalar_tensor", "scatter", "select_scatter", "slice_scatter"}
    | {"sort", "stack", "to", "topk", "tril", "triu", "unfold", "zero", "zeros"}
)
"""Operators that move numbers and do not round."""


def run_with_rounded_results(project: Project, model: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    """Run the module on a test case, its operators rounding at random, in the same way each time."""
    with compile_nothing(), _RandomRounding():
        return run_with_state(project, model.module, {}, case)


class _RandomRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stubs
    """While active, moves what operators return by one unit in the last place.

    Every coefficient of a Fourier transform is a sum of the whole signal, and off by a unit of the largest one: on a
    constant signal, torch may leave zeros where a different algorithm leaves what rounding makes of them.
    """

    supports_higher_order_operators = True  # such as torch.cond, which runs as a whole

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stubs
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and move each float result up or down by eps, element by element."""
        result = function(*args, **(kwargs or {}))
        if not isinstance(function, torch._ops.OpOverload) or function.is_view:
            return result
        name = function.overloadpacket.__name__.strip("_").removesuffix("_like")
        if name in _EXACT_OPERATORS:
            return result
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            dims = _find_transformed_dims(name, function, args, kwargs or {})
            if dims is not None:
                largest = tensor.abs().amax(dims, keepdim=True).expand_as(tensor)
                self._move(tensor, torch.stack((largest, largest), -1) if tensor.is_complex() else largest)
            elif tensor.is_complex() or _is_rounded(tensor):
                self._move(tensor, None)
        return result

    def _move(self, tensor: torch.Tensor, size: torch.Tensor | None) -> None:
        """Move a tensor, or both parts of a complex one, up or down by eps times `size`, or itself if it is None."""
        parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        sign = torch.randint(0, 2, parts.shape, generator=self._generator).to(parts.dtype) * 2 - 1
        step = sign * torch.finfo(parts.dtype).eps
        if size is None:
            parts.mul_(1 + step)
        else:
            parts.add_(step * size)


def _find_transformed_dims(name: str, function: Any, args: Any, kwargs: Any) -> tuple[int, ...] | None:
    """Return the dims of the result of a Fourier transform that it transforms; none of them stands for all."""
    if name in ("stft", "istft"):
        return (-2,) if name == "stft" else (-1,)  # of complex numbers; real pairs, which are deprecated, share a scale
    if not name.startswith("fft_") or name.endswith(("shift", "freq")):
        return None
    schema = function._schema.arguments
    given = {**{entry.name: entry.default_value for entry in schema}, **kwargs}
    given.update(zip((entry.name for entry in schema), args, strict=False))
    dim = given.get("dim")
    return () if dim is None else tuple(dim) if isinstance(dim, (list, tuple)) else (dim,)


def _is_rounded(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds floats, and not only integers: those may be positions, which must stay."""
    return tensor.is_floating_point() and not tensor.is_nested and not bool((tensor == tensor.round()).all())
