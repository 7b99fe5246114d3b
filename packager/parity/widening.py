"""Run a module in float64, and a large one without a second copy of its weights, twice as large as the first.

A parameter or buffer of a large module is widened where an operator reads it, and the wide copy is gone as soon as the
operator is done. The module believes that its weights are float64: whatever it asks for their dtype gets that answer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from packager.export.exporters import replace_function

LARGE_BYTES = 1 << 28
"""A module with more bytes of weights than this is widened operator by operator; for others, that costs more time."""

_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]  # a descriptor of C
# What does not read the values: a wide copy would be made for nothing.
_NAMES_WITHOUT_VALUES = frozenset({"size", "dim", "numel", "nelement", "stride", "is_floating_point", "is_contiguous"})
_PROPERTIES_WITHOUT_VALUES = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "device", "ndim", "requires_grad", "is_cuda", "is_sparse", "is_meta", "layout")
)


def widen_masks() -> AbstractContextManager[None]:
    """Let attention get float masks in the dtype of the query: a module may make them in a dtype of its own.

    The kernel takes a mask in float32 beside a query in float64 and reads it as if it were float64, which gives wrong
    results from a length of 16 (torch 2.13; its checks leave the mask out,
    https://github.com/pytorch/pytorch/pull/161936).
    """
    attention = torch.nn.functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, *tensors: Any, **options: Any) -> Any:
        def widen(mask: torch.Tensor | None) -> torch.Tensor | None:
            return mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype)

        if "attn_mask" in options:
            options["attn_mask"] = widen(options["attn_mask"])
        return attention(query, *tensors[:2], *map(widen, tensors[2:3]), *tensors[3:], **options)

    return replace_function(attention, attend)


class WidenedWeights(torch.overrides.TorchFunctionMode):
    """While active, torch's functions get the float parameters and buffers of a module in float64."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        tensors = (*module.parameters(), *module.buffers())
        self._weights = {id(tensor): tensor for tensor in tensors if tensor.is_floating_point()}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with wide copies of the weights among its arguments."""
        if function == _DTYPE:
            return torch.float64 if id(args[0]) in self._weights else function(*args)
        if function in _PROPERTIES_WITHOUT_VALUES or getattr(function, "__name__", "") in _NAMES_WITHOUT_VALUES:
            return function(*args, **(kwargs or {}))
        return function(*self._widen(args), **self._widen(kwargs or {}))

    def _widen(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.double() if id(value) in self._weights else value
        if type(value) in (list, tuple):
            return type(value)(self._widen(item) for item in value)
        if type(value) is dict:
            return {name: self._widen(item) for name, item in value.items()}
        return value
