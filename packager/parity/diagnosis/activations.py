"""The activations of one run: everything that a model computes from one case, in order, and which value reads which.

PyTorch's eager module, an exported graph and a graph after a pass all have such activations, so any two of them can be
compared (`packager.parity.diagnosis.divergence`) without knowing what either calls its values.

Only values that depend on the inputs are recorded. Those computed from constants alone (a transposed weight, a range
of positions) belong to the operator that reads them.
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
    """One tensor of a run: the operator that computed it, from which earlier values, and where.

    `name` is the graph's name for it; `operator` is aten's or ONNX's name; `input_indices` point into
    `Activations.values`. `array` is None if numpy has no array for it. `module` is the path of the running module and
    `source_line` the line of the user's code (`model.py:41`), both None if unknown. `relative_tolerance` applies when
    another run is compared with this value.
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

    def with_tolerances(self, tolerances: Sequence[float]) -> Activations:
        """Return the same run with a relative tolerance for each value."""
        values = (
            replace(value, relative_tolerance=tolerance)
            for value, tolerance in zip(self.values, tolerances, strict=True)
        )
        return Activations(tuple(values), self.outputs)


class ActivationsUnavailable(Exception):
    """The activations cannot be recorded or compared; the text says why."""


def measure_typical_magnitude(array: Array) -> float:
    """Return the magnitude below which an element counts as small, as for outputs; 0.0 unless the dtype is a float."""
    return estimate_scales([np.abs(array)])[0] if array.dtype.kind in "fc" else 0.0
