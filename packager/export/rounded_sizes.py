"""Keep sizes dynamic that forward() rounds with math.ceil or math.floor, while a module is traced.

A size is a tensor then, and Python's functions make a number of it that the trace fixes:
`math.ceil((length - kernel) / stride)` is how audio codecs pad their last frame. The functions ask the type for
`__ceil__` and `__floor__`, which torch.Tensor lacks.

The trace divides sizes in float32, PyTorch in float64. Up to 4 million, quotients of whole numbers round to the same
size in both; `packager.export.torchscript` reports the lines that compute with numbers like 0.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_Function = Callable[[Any], Any]


@contextmanager
def watch_rounding(*, keep: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a tensor was rounded to a number; with `keep`, it stays a tensor.

    The methods belong to the process: use it for one trace at a time, in one thread.
    """
    calls: list[str] = []

    def make_method(name: str, round_number: _Function, round_tensor: _Function) -> _Function:
        def round_size(tensor: torch.Tensor) -> Any:
            calls.append(name)
            return round_tensor(tensor).to(torch.int64) if keep else round_number(float(tensor))

        return round_size

    tensor_type: Any = torch.Tensor
    tensor_type.__ceil__ = make_method("ceil", math.ceil, torch.ceil)
    tensor_type.__floor__ = make_method("floor", math.floor, torch.floor)
    try:
        yield lambda: bool(calls)
    finally:
        del tensor_type.__ceil__, tensor_type.__floor__
