"""Operators that torch's exporters lack, written with operators that they have.

A function takes the arguments of its operator's schema, and returns the same values at every size: it reads sizes from
tensors while they are traced, so they stay dynamic. `packager.export.decompositions` puts them in place. Without an
issue beside it, an operator is as https://docs.pytorch.org/docs/2.13/torch.html defines it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def _diff(
    tensor: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    tensor = torch.cat([part for part in (prepend, tensor, append) if part is not None], dim)
    for _ in range(n):
        steps = tensor.shape[dim] - 1
        after, before = tensor.narrow(dim, 1, steps), tensor.narrow(dim, 0, steps)
        tensor = after.logical_xor(before) if tensor.dtype == torch.bool else after - before
    return tensor


def _take_along_dim(tensor: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return tensor.reshape(-1).gather(0, indices.reshape(-1))
    for axis in range(tensor.dim()):
        if axis != dim % tensor.dim():  # torch.gather does not broadcast
            tensor, indices = _repeat_single(tensor, indices, axis), _repeat_single(indices, tensor, axis)
    return tensor.gather(dim, indices)


def _repeat_single(tensor: Tensor, other: Tensor, axis: int) -> Tensor:
    """Expand an axis of size 1 to the size that it has in `other`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace warns of what it fixes: here, whether a size is 1
        if int(tensor.shape[axis]) != 1 or int(other.shape[axis]) == 1:
            return tensor
    return tensor.expand([other.shape[axis] if k == axis else -1 for k in range(tensor.dim())])


def _spread(tensor: Tensor, dim: int, fill: float) -> Tensor:
    """Return, in a new last dim, the elements up to each position of `dim`, with `fill` in the place of later ones."""
    moved = tensor.transpose(dim, -1)
    steps = torch.arange(moved.shape[-1])
    return torch.where(steps <= steps[:, None], moved[..., None, :], torch.full([], fill, dtype=tensor.dtype))


def _cumulative_extreme(tensor: Tensor, dim: int, *, largest: bool) -> Pair:
    limit = torch.finfo(tensor.dtype) if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
    spread = _spread(tensor, dim, limit.min if largest else limit.max)
    values = spread.amax(-1) if largest else spread.amin(-1)
    steps = torch.arange(spread.shape[-1])
    latest = torch.where((spread == values[..., None]) & (steps <= steps[:, None]), steps, torch.full([], -1))
    return values.transpose(dim, -1), latest.amax(-1).transpose(dim, -1)


def _cummax(tensor: Tensor, dim: int) -> Pair:
    return _cumulative_extreme(tensor, dim, largest=True)


def _cummin(tensor: Tensor, dim: int) -> Pair:
    return _cumulative_extreme(tensor, dim, largest=False)


def _cumprod(tensor: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    result = dtype or (tensor.dtype if tensor.is_floating_point() else torch.int64)
    return _spread(tensor.to(result), dim, 1).prod(-1).transpose(dim, -1)


def _logcumsumexp(tensor: Tensor, dim: int) -> Tensor:
    return _spread(tensor, dim, -math.inf).logsumexp(-1).transpose(dim, -1)


def _kthvalue(tensor: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Pair:
    values, indices = tensor.sort(dim)
    value, index = values.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)
    return (value, index) if keepdim else (value.squeeze(dim), index.squeeze(dim))


def _median_dim(tensor: Tensor, dim: int, keepdim: bool = False) -> Pair:
    return _kthvalue(tensor, (tensor.shape[dim] + 1) // 2, dim, keepdim)


def _median(tensor: Tensor) -> Tensor:
    return _median_dim(tensor.reshape(-1), 0)[0]


def _searchsorted(
    sequence: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Missing upstream: https://github.com/pytorch/pytorch/issues/151793."""
    if sorter is not None:
        sequence = sequence.gather(-1, sorter)
    sequence = sequence if sequence.dim() == 1 else sequence[..., None, :]
    before = sequence <= values[..., None] if right or side == "right" else sequence < values[..., None]
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _isin(elements: Tensor, tested: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:  # noqa: ARG001 (torch's)
    found = (elements[..., None] == tested.reshape(-1)).any(-1)
    return found.logical_not() if invert else found


def _histc(tensor: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    if min >= max:
        raise NotImplementedError("a histogram between the smallest and the largest value")
    tensor = tensor.reshape(-1)
    places = ((tensor - min) * bins / (max - min)).floor().clamp(0, bins - 1)
    counted = (places[:, None] == torch.arange(bins)) & ((tensor >= min) & (tensor <= max))[:, None]
    return counted.sum(0).to(tensor.dtype)


def _grouped_mm(
    tensor: Tensor,
    weights: Tensor,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Missing upstream: https://github.com/microsoft/onnxscript/issues/2795."""
    if offsets is None or tensor.dim() != 2 or weights.dim() != 3 or bias is not None:
        raise NotImplementedError("a grouped product other than that of rows with one matrix for each group")
    offsets = offsets.long()
    ends = [torch.zeros_like(offsets[0]), *offsets.unbind()]
    groups = [tensor[start:end] @ weights[i] for i, (start, end) in enumerate(pairwise(ends))]
    return torch.cat(groups).to(out_dtype or tensor.dtype)


def _cdist(first: Tensor, second: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:  # noqa: ARG001 (torch's)
    """Missing upstream: https://github.com/pytorch/pytorch/issues/69201."""
    distances: Tensor = torch.linalg.vector_norm(first[..., :, None, :] - second[..., None, :, :], p, dim=-1)
    return distances


def _channel_shuffle(tensor: Tensor, groups: int) -> Tensor:
    channels = tensor.reshape(tensor.shape[0], groups, -1, *tensor.shape[2:])
    return channels.transpose(1, 2).flatten(1, 2)


def _isclose(
    tensor: Tensor,
    other: Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
) -> Tensor:
    difference = (tensor - other).abs()
    close = (tensor == other) | (difference.isfinite() & (difference <= atol + (rtol * other).abs()))
    return close | (tensor.isnan() & other.isnan()) if equal_nan else close


def _trunc(tensor: Tensor) -> Tensor:
    return torch.where(tensor < 0, tensor.ceil(), tensor.floor())


def _copysign(tensor: Tensor, sign: Tensor) -> Tensor:
    negative = (sign < 0) | (sign.reciprocal() < 0)  # of a negative zero
    return torch.where(negative, -tensor.abs(), tensor.abs())


def _fmax(tensor: Tensor, other: Tensor) -> Tensor:
    return torch.where(tensor.isnan(), other, torch.where(other.isnan(), tensor, torch.maximum(tensor, other)))


def _fmin(tensor: Tensor, other: Tensor) -> Tensor:
    return torch.where(tensor.isnan(), other, torch.where(other.isnan(), tensor, torch.minimum(tensor, other)))


def _logaddexp(tensor: Tensor, other: Tensor) -> Tensor:
    larger = torch.maximum(tensor, other)
    result = larger + torch.log1p(torch.exp(-(tensor - other).abs()))
    return torch.where(larger.isinf(), larger, result)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Promote as torch.cat does: https://github.com/pytorch/pytorch/issues/126964."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return torch.cat([tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors], dim)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return _cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    joined = [tensor.reshape(-1) if tensor.dim() == 0 else tensor for tensor in tensors]
    return _cat(joined, 0 if joined[0].dim() == 1 else 1)


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    return _cat([tensor.reshape(1, -1) if tensor.dim() <= 1 else tensor for tensor in tensors])


def _dstack(tensors: Sequence[Tensor]) -> Tensor:
    rows = [tensor.reshape(1, -1) if tensor.dim() <= 1 else tensor for tensor in tensors]
    return _cat([tensor.unsqueeze(-1) if tensor.dim() == 2 else tensor for tensor in rows], 2)


def _column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return _cat([tensor.reshape(-1, 1) if tensor.dim() <= 1 else tensor for tensor in tensors], 1)


STACKS: Mapping[str, Callable[..., Any]] = {
    "aten::column_stack": _column_stack,
    "aten::dstack": _dstack,
    "aten::hstack": _hstack,
    "aten::vstack": _vstack,
}
"""Functions that the exporters turn into sequences, which cannot hold tensors of different dtypes, and are slow."""

CONCATENATIONS: Mapping[str, Callable[..., Any]] = {"aten::cat": _cat, "aten::stack": _stack}
"""Functions that the exporter of torch.export does not promote the dtypes for."""

OPERATORS: Mapping[str, Callable[..., Any]] = {
    **STACKS,
    "aten::_grouped_mm": _grouped_mm,
    "aten::cdist": _cdist,
    "aten::channel_shuffle": _channel_shuffle,
    "aten::copysign.Tensor": _copysign,
    "aten::cummax": _cummax,
    "aten::cummin": _cummin,
    "aten::cumprod": _cumprod,
    "aten::diff": _diff,
    "aten::exp2": lambda tensor: torch.pow(2.0, tensor),
    "aten::expm1": lambda tensor: torch.exp(tensor) - 1,
    "aten::erfc": lambda tensor: 1 - torch.erf(tensor),
    "aten::fmax": _fmax,
    "aten::fmin": _fmin,
    "aten::frac": lambda tensor: tensor - _trunc(tensor),
    "aten::histc": _histc,
    "aten::hypot": lambda tensor, other: (tensor * tensor + other * other).sqrt(),
    "aten::isin.Tensor_Tensor": _isin,
    "aten::isclose": _isclose,
    "aten::kthvalue": _kthvalue,
    "aten::logaddexp": _logaddexp,
    "aten::logcumsumexp": _logcumsumexp,
    "aten::median": _median,
    "aten::median.dim": _median_dim,
    "aten::searchsorted.Tensor": _searchsorted,
    "aten::take_along_dim": _take_along_dim,
    "aten::trunc": _trunc,
    "transformers::grouped_mm_fallback": _grouped_mm,
}
"""Functions by the name of the operator's overload."""

ALIASES: Mapping[str, str] = {
    "aten::absolute": "aten::abs",
    "aten::adjoint": "aten::mH",
    "aten::arccos": "aten::acos",
    "aten::arccosh": "aten::acosh",
    "aten::arcsin": "aten::asin",
    "aten::arcsinh": "aten::asinh",
    "aten::arctan": "aten::atan",
    "aten::arctan2": "aten::atan2",
    "aten::arctanh": "aten::atanh",
    "aten::clip": "aten::clamp",
    "aten::concat": "aten::cat",
    "aten::concatenate": "aten::cat",
    "aten::det": "aten::linalg_det",
    "aten::divide": "aten::div",
    "aten::fix": "aten::trunc",
    "aten::ger": "aten::outer",
    "aten::greater": "aten::gt",
    "aten::greater_equal": "aten::ge",
    "aten::inverse": "aten::linalg_inv",
    "aten::less": "aten::lt",
    "aten::less_equal": "aten::le",
    "aten::linalg_matmul": "aten::matmul",
    "aten::matrix_exp": "aten::linalg_matrix_exp",
    "aten::matrix_power": "aten::linalg_matrix_power",
    "aten::moveaxis": "aten::movedim",
    "aten::multiply": "aten::mul",
    "aten::negative": "aten::neg",
    "aten::not_equal": "aten::ne",
    "aten::orgqr": "aten::linalg_householder_product",
    "aten::row_stack": "aten::vstack",
    "aten::special_digamma": "aten::digamma",
    "aten::special_erf": "aten::erf",
    "aten::special_erfc": "aten::erfc",
    "aten::special_erfinv": "aten::erfinv",
    "aten::special_exp2": "aten::exp2",
    "aten::special_expit": "aten::sigmoid",
    "aten::special_expm1": "aten::expm1",
    "aten::special_gammainc": "aten::igamma",
    "aten::special_gammaincc": "aten::igammac",
    "aten::special_gammaln": "aten::lgamma",
    "aten::special_i0": "aten::i0",
    "aten::special_log1p": "aten::log1p",
    "aten::special_log_softmax": "aten::log_softmax",
    "aten::special_logit": "aten::logit",
    "aten::special_logsumexp": "aten::logsumexp",
    "aten::special_multigammaln": "aten::mvlgamma",
    "aten::special_polygamma": "aten::polygamma",
    "aten::special_psi": "aten::digamma",
    "aten::special_round": "aten::round",
    "aten::special_sinc": "aten::sinc",
    "aten::special_softmax": "aten::softmax",
    "aten::special_xlogy": "aten::xlogy",
    "aten::subtract": "aten::sub",
    "aten::swapaxes": "aten::transpose",
    "aten::swapdims": "aten::transpose",
    "aten::true_divide": "aten::div",
}
"""Operators that torch.jit replaces by others (normalize_ops.cpp), in a script and in the outermost module of a trace.

After that, the exporter's errors name the other one, whichever was called.
"""

ONNX_OPERATORS: Mapping[str, str] = {
    "aten::acosh": "Acosh",
    "aten::asinh": "Asinh",
    "aten::atanh": "Atanh",
    "aten::cosh": "Cosh",
    "aten::sinh": "Sinh",
}
"""Operators of one tensor that ONNX has since opset 9, and the TorchScript exporter does not know."""
