"""Let torch.export see that a size times a number, divided by that number, is the size.

Windowed attention finds its batch again as `int(windows.shape[0] / (height * width / window / window))` (Swin, and the
many networks that took its code). torch.export keeps that as a float of unknown value, cannot tell that a view with it
is valid at every size, and fixes the dim. Sizes are exact in float64, and so is a quotient that is a whole number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import sympy
from torch.utils._sympy import functions

_ROUNDINGS: tuple[Any, ...] = (functions.TruncToInt, functions.FloorToInt, functions.CeilToInt)


@contextlib.contextmanager
def simplify_size_quotients() -> Iterator[None]:
    """Evaluate the rounding of a quotient to the size that it is; the functions belong to the process."""
    evaluations = [rounding.__dict__["eval"] for rounding in _ROUNDINGS]
    for rounding, evaluation in zip(_ROUNDINGS, evaluations, strict=True):
        rounding.eval = classmethod(_simplify_first(evaluation.__func__))
    try:
        yield
    finally:
        for rounding, evaluation in zip(_ROUNDINGS, evaluations, strict=True):
            rounding.eval = evaluation


def _simplify_first(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate_rounding(cls: Any, number: Any) -> Any:
        size = _find_size(number)
        return evaluate(cls, number) if size is None else size

    return evaluate_rounding


def _find_size(number: Any) -> Any:
    """Return what a division of a size by a whole number gives if that is a whole number at every size, else None."""
    if not isinstance(number, functions.FloatTrueDiv | functions.IntTrueDiv):
        return None
    size, divisor = number.args
    size = size.args[0] if isinstance(size, functions.ToFloat) else size
    if not isinstance(divisor, sympy.Number) or not float(divisor).is_integer() or not size.is_integer:
        return None
    quotient = size / sympy.Integer(int(divisor))
    return quotient if quotient.is_integer else None
