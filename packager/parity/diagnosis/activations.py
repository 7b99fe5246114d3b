"""One run of a model with everything that it computes on the way: the values in order, and which reads which.

PyTorch's eager module, an exported graph and a graph after a pass can all be seen so, and two of them be held
against each other (`packager.parity.diagnosis.divergence`) without knowing what the one calls the values of the other.

Only what depends on the inputs is a value: what is computed from constants alone (a transposed weight, a range
of positions) belongs to whoever reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from packager.parity.numerics.compare import Array
from packager.parity.numerics.tolerances import estimate_scales

INPUT_OPERATOR = "input"
"""The operator of the values that a run begins with."""


@dataclass(frozen=True)
class Activation:
    """One tensor on the way: what computed it, from which earlier values, and where that stands.

    `name` is what its graph calls it; `operator` is aten's or ONNX's name; `reads` are indices into the flow;
    `module` is the path of the module at work, and `place` the line of the user's code, `model.py:41`: both None
    where they are not known. `array` is None where numpy has no such array. `relative` is the tolerance of this value
    in a flow that others are held against.
    """

    name: str
    operator: str
    input_indices: tuple[int, ...]
    array: Array | None
    module: str | None = None
    source_line: str | None = None
    relative_tolerance: float = 0.0


@dataclass(frozen=True)
class Activations:
    """The values in the order in which they were computed, and the index of each output by its name."""

    values: tuple[Activation, ...]
    outputs: Mapping[str, int]

    def with_tolerances(self, relative: Sequence[float]) -> Activations:
        """The same, with a tolerance for each value."""
        values = (replace(value, relative_tolerance=one) for value, one in zip(self.values, relative, strict=True))
        return Activations(tuple(values), self.outputs)


class ActivationsUnavailable(Exception):
    """The values on the way cannot be had; the text says why."""


def measure_typical_magnitude(array: Array) -> float:
    """What counts as small in an array of floats, as for outputs; nothing in others."""
    return estimate_scales([np.abs(array)])[0] if array.dtype.kind in "fc" else 0.0
