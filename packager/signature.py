"""Input specs + two forward passes → the names, dtypes and shapes of the outputs. numpy only.

An output's dim is fixed, or follows one of the named dims, or depends on more than that and is
null. Two passes tell them apart: their sizes differ in every dim that may differ, and the gate
checks the shapes again at every size of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.errors import OutputsUnsupported
from packager.manifest import Manifest
from packager.parity.compare import Array
from packager.samples import Case


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a dim is a size, a name, or None where it is neither."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def inputs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """The inputs as the manifest gives them."""
    return tuple(TensorSpec(name, spec.dtype, tuple(spec.shape)) for name, spec in manifest.inputs.items())


def outputs(
    first: tuple[Case, Mapping[str, Array]], second: tuple[Case, Mapping[str, Array]]
) -> tuple[TensorSpec, ...]:
    """The outputs, from what forward() gave on two cases of different sizes. Raises `OutputsUnsupported`."""
    (case, found), (other_case, other_found) = first, second
    if list(found) != list(other_found):
        why = f"{', '.join(found)} at one size, {', '.join(other_found)} at another"
        raise OutputsUnsupported("forward()", why, "return the same outputs at every size")
    specs = []
    for name, array in found.items():
        other = other_found[name]
        if array.ndim != other.ndim:
            shape: tuple[int | str | None, ...] = (None,) * array.ndim
        else:
            pairs = zip(array.shape, other.shape, strict=True)
            shape = tuple(_dim(a, b, case.sizes, other_case.sizes) for a, b in pairs)
        specs.append(TensorSpec(name, str(array.dtype), shape))
    return tuple(specs)


def _dim(size: int, other: int, sizes: Mapping[str, int], other_sizes: Mapping[str, int]) -> int | str | None:
    if size == other:
        return size
    follows = [name for name in sizes if sizes[name] == size and other_sizes[name] == other]
    return follows[0] if len(follows) == 1 else None
