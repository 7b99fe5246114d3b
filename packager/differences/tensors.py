"""How far apart the values of two arrays of one dtype and shape are. numpy only.

A value is changed where its bits are: so is 0.0 that became -0.0, which is a distance of 0, and a NaN that
stays the same NaN is not. Distances are between finite values; one that is finite, or an infinity, on one
side alone is counted apart. Arrays are walked in blocks, so that a large one needs no copy in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packager.parity.numerics.compare import root_mean_square

Array = NDArray[np.generic]
_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True)
class TensorChange:
    """`changed` of `total` values differ, by `max_abs` at most, which is `relative` to the RMS of those before.

    `max_abs` is None for strings; `relative` is infinite where the values before are all zero; `nonfinite`
    counts those with no distance, as NaN or an infinity that the other side has not.
    """

    changed: int
    total: int
    max_abs: float | None
    relative: float | None
    nonfinite: int = 0

    def as_json(self) -> dict[str, object]:
        """The change as JSON has it, an infinity as the string that the records have for it."""
        distances = {"max_abs": self.max_abs, "relative": self.relative}
        told = {name: "Infinity" if one == float("inf") else one for name, one in distances.items()}
        return {"changed": self.changed, "total": self.total, **told, "nonfinite": self.nonfinite}

    def text(self, *, relative: bool = False) -> str:
        """`3 of 1280 values differ, by 1.2e-07 at most`."""
        found = f"{self.changed} of {self.total} values {'differs' if self.changed == 1 else 'differ'}"
        if self.max_abs is not None and self.changed > self.nonfinite:
            found += f", by {self.max_abs:.2g} at most"
            if relative and self.relative is not None:
                found += f" ({self.relative:.2g} of the RMS)"
        return found + (f", {self.nonfinite} of them by a NaN or an infinity" if self.nonfinite else "")


def measure_change(before: Array, after: Array) -> TensorChange | None:
    """How the values differ; None where they are the same, bit by bit."""
    changed = nonfinite = 0
    largest: float | None = None if before.dtype.kind == "O" else 0.0
    for left, right in zip(_iterate_blocks(before), _iterate_blocks(after), strict=True):
        different = _differing_mask(left, right)
        count = int(different.sum())
        changed += count
        if count and largest is not None:
            distance, apart = _max_distance(left[different], right[different])
            largest, nonfinite = max(largest, distance), nonfinite + apart
    if not changed:
        return None
    return TensorChange(
        changed, before.size, largest, None if largest is None else _relative_to_rms(largest, before), nonfinite
    )


def _iterate_blocks(array: Array) -> Iterator[Array]:
    flat = np.ascontiguousarray(array).reshape(-1)
    return (flat[start : start + _BLOCK_VALUES] for start in range(0, flat.size, _BLOCK_VALUES))


def _differing_mask(left: Array, right: Array) -> NDArray[np.bool_]:
    if left.dtype.kind == "O":
        return np.asarray(left != right)
    width = left.dtype.itemsize
    word = f"u{8 if width % 8 == 0 else width}"
    different: NDArray[np.bool_] = np.asarray(left.view(word) != right.view(word))
    return different if width <= 8 else np.logical_or.reduce(different.reshape(left.size, -1), axis=1)


def _max_distance(left: Array, right: Array) -> tuple[float, int]:
    """The largest distance between finite values, and how many pairs have none."""
    if left.dtype.kind in "biu":
        # Two's complement: the difference of the larger and the smaller is right modulo 2**64, hence right.
        high, low = np.maximum(left, right).astype(np.uint64), np.minimum(left, right).astype(np.uint64)
        return float(np.subtract(high, low).max()), 0
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite distance is a right answer; NaNs may signal
        one, other = left.astype(wide), right.astype(wide)
        finite = np.isfinite(one) & np.isfinite(other)
        distances = np.abs(one[finite] - other[finite])
    apart = ~finite & ~(np.isnan(one) & np.isnan(other))
    return float(distances.max(initial=0.0)), int(apart.sum())


def _relative_to_rms(distance: float, before: Array) -> float:
    if distance == 0.0:
        return 0.0
    scale = _finite_rms(before)
    return distance / scale if scale else float("inf")


def _finite_rms(array: Array) -> float:
    """The RMS of the finite values: that of the blocks' norms, on the scale of one value."""
    norms, count = [0.0], 0
    for block in _iterate_blocks(array):
        with np.errstate(over="ignore", invalid="ignore"):  # NaNs may signal
            values = np.abs(block.astype(np.complex128 if block.dtype.kind == "c" else np.float64))
        values = values[np.isfinite(values)]
        norms.append(root_mean_square(values) * float(np.sqrt(values.size)))
        count += values.size
    return root_mean_square(np.array(norms)) * float(np.sqrt(len(norms) / count)) if count else 0.0
