"""Measure the difference between two arrays of the same dtype and shape, with numpy alone.

A value has changed if its bits have: 0.0 and -0.0 differ, at a distance of 0; two NaNs with the same bits do not.
Distances are measured between finite values; a NaN or an infinity on only one side is counted separately. Arrays
are read in blocks, so that a large array is never copied to float64 as a whole.
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
    """The difference between two arrays: `changed` of `total` values differ, by at most `max_abs`.

    `relative` is `max_abs` divided by the RMS of the values before, infinite if they are all zero; both are None
    for strings. `nonfinite` counts the changed values without a distance, because one side is NaN or infinite.
    """

    changed: int
    total: int
    max_abs: float | None
    relative: float | None
    nonfinite: int = 0

    def as_json(self) -> dict[str, object]:
        """Return the change as an object for `--json`; an infinity is the string "Infinity", as in the records."""
        distances = {"max_abs": self.max_abs, "relative": self.relative}
        texts = {name: "Infinity" if value == float("inf") else value for name, value in distances.items()}
        return {"changed": self.changed, "total": self.total, **texts, "nonfinite": self.nonfinite}

    def text(self, *, relative: bool = False) -> str:
        """Describe the change, such as `3 of 1280 values differ, by 1.2e-07 at most`, with `relative` if asked to."""
        text = f"{self.changed} of {self.total} values {'differs' if self.changed == 1 else 'differ'}"
        if self.max_abs is not None and self.changed > self.nonfinite:
            text += f", by {self.max_abs:.2g} at most"
            if relative and self.relative is not None:
                text += f" ({self.relative:.2g} of the RMS)"
        return text + (f", {self.nonfinite} of them by a NaN or an infinity" if self.nonfinite else "")


def measure_change(before: Array, after: Array) -> TensorChange | None:
    """Measure the difference between two arrays of the same dtype and shape; None if all bits are the same."""
    changed = nonfinite = 0
    largest: float | None = None if before.dtype.kind == "O" else 0.0
    for left, right in zip(_iterate_blocks(before), _iterate_blocks(after), strict=True):
        different = _differing_mask(left, right)
        count = int(different.sum())
        changed += count
        if count and largest is not None:
            distance, without_distance = _max_distance(left[different], right[different])
            largest, nonfinite = max(largest, distance), nonfinite + without_distance
    if not changed:
        return None
    relative = None if largest is None else _relative_to_rms(largest, before)
    return TensorChange(changed, before.size, largest, relative, nonfinite)


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
    """Return the largest distance between finite values, and the number of pairs without a distance."""
    if left.dtype.kind in "biu":
        # In two's complement, larger minus smaller is correct modulo 2**64, and less than that.
        high, low = np.maximum(left, right).astype(np.uint64), np.minimum(left, right).astype(np.uint64)
        return float(np.subtract(high, low).max()), 0
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # a distance may be infinite; NaNs may signal
        wide_left, wide_right = left.astype(wide), right.astype(wide)
        finite = np.isfinite(wide_left) & np.isfinite(wide_right)
        distances = np.abs(wide_left[finite] - wide_right[finite])
    without_distance = ~finite & ~(np.isnan(wide_left) & np.isnan(wide_right))
    return float(distances.max(initial=0.0)), int(without_distance.sum())


def _relative_to_rms(distance: float, before: Array) -> float:
    if distance == 0.0:
        return 0.0
    scale = _finite_rms(before)
    return distance / scale if scale else float("inf")


def _finite_rms(array: Array) -> float:
    """Return the RMS of the finite values, computed from the norms of the blocks."""
    norms, count = [0.0], 0
    for block in _iterate_blocks(array):
        with np.errstate(over="ignore", invalid="ignore"):  # NaNs may signal
            values = np.abs(block.astype(np.complex128 if block.dtype.kind == "c" else np.float64))
        values = values[np.isfinite(values)]
        norms.append(root_mean_square(values) * float(np.sqrt(values.size)))
        count += values.size
    return root_mean_square(np.array(norms)) * float(np.sqrt(len(norms) / count)) if count else 0.0
