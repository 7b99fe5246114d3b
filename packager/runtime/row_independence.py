"""Whether a server may join the requests of several clients into one batch.

A named dim in front of every input and output looks like a batch, but a sequence without a batch looks the same, and
so do the nodes of a graph. A server that joins requests relies on one fact: a batch gives what its parts give alone.
This is measured, on test cases of the bundle's evidence with two rows or more: each is cut in two, both parts
are run alone, and the joined outputs must match PyTorch's for the whole case within the tolerance of the bundle. Cases
whose rows are equal show nothing: the mean of equal rows is each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packager.parity.numerics.verdict import ReferenceCase, check_parity

_MAX_CASES = 4

Array = NDArray[np.generic]
Runner = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def find_leading_dim(config: Mapping[str, Any]) -> str | None:
    """Return the named dim that every input and output begins with, None if there is no such dim.

    A dim that must be larger than one is none either: servers send single rows. Nor is there one if the size of an
    output depends on the values, because a joined run would have the largest of its requests.
    """
    inputs, outputs = ([tensor["shape"] for tensor in config[kind]] for kind in ("inputs", "outputs"))
    shapes = [*inputs, *outputs]
    leading = {shape[0] if shape else None for shape in shapes}
    dim = next(iter(leading), None)
    if len(leading) > 1 or dim not in config["dims"] or any(dim in shape[1:] for shape in shapes):
        return None
    input_dims = {size for shape in inputs for size in shape}
    follows = all(isinstance(size, int) or size in input_dims for shape in outputs for size in shape)
    return str(dim) if follows and config["dims"][dim]["min"] <= 1 else None


def check_rows_are_independent(run: Runner, cases: Sequence[ReferenceCase], dim: str) -> str | None:
    """Say why requests must not be joined along `dim`; None if they may be.

    `run` is the model, and `cases` are those of the evidence.
    """
    usable = [case for case in cases if case.sizes.get(dim, 0) > 1 and _rows_differ(case)]
    if not usable:
        return f"the evidence has no test case with two rows of {dim} that differ, to show that rows are independent"
    usable.sort(key=lambda case: sum(array.size for array in case.inputs.values()))

    def run_parts(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        rows = len(next(iter(inputs.values())))
        parts = [run({name: array[part] for name, array in inputs.items()}) for part in _cut(rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    try:
        are_independent = check_parity(run_parts, usable[:_MAX_CASES]).passed
    except Exception as error:  # noqa: BLE001 (a model raises anything for evidence that does not fit it)
        return f"the test cases of the evidence cannot be run: {type(error).__name__}"
    return None if are_independent else f"rows of {dim} depend on each other"


def _cut(rows: int) -> tuple[slice, slice]:
    return slice(0, 1), slice(1, rows)


def _rows_differ(case: ReferenceCase) -> bool:
    arrays = [array for array in case.inputs.values() if array.size]
    return any(array[:1].tobytes() != array[1:2].tobytes() for array in arrays)
