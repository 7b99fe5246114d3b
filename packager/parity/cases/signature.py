"""Input specs + forward passes → the names, dtypes and shapes of the outputs. numpy only.

An output's dim is fixed, or follows one of the named dims, or depends on more than that and is
null. Two passes whose sizes differ in every dim tell them apart well enough to export; what is
written down comes from every case of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packager.errors import OutputsUnsupported
from packager.parity.cases.sample_grid import InputCase
from packager.parity.numerics.compare import Array
from packager.project.manifest import Manifest


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a dim is a size, a name, or None where it is neither."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def make_input_specs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """The inputs as the manifest gives them."""
    return tuple(TensorSpec(name, spec.dtype, tuple(spec.shape)) for name, spec in manifest.inputs.items())


def infer_output_specs(runs: Sequence[tuple[InputCase, Mapping[str, Array]]]) -> tuple[TensorSpec, ...]:
    """The outputs, from what forward() gave on cases of different sizes.

    Raises `OutputsUnsupported`, also where an output has another rank or dtype at another size.
    """
    first = runs[0][1]
    for case, found in runs:
        if list(found) != list(first):
            why = f"{', '.join(first)} at {dict(runs[0][0].sizes)}, {', '.join(found)} at {dict(case.sizes)}"
            raise OutputsUnsupported("forward()", why, "return the same outputs at every size")
    return tuple(_infer_output(name, array, runs) for name, array in first.items())


def _infer_output(name: str, array: Array, runs: Sequence[tuple[InputCase, Mapping[str, Array]]]) -> TensorSpec:
    arrays = [found[name] for _, found in runs]
    for (case, _), one in zip(runs, arrays, strict=True):
        if one.ndim != array.ndim or one.dtype != array.dtype:
            why = f"{name} is {_format_array(array, runs[0][0])} and {_format_array(one, case)}"
            raise OutputsUnsupported(
                "forward()", why, "give it one rank and dtype at every size; squeeze() names its dims"
            )
    shape = tuple(
        _infer_dim([(case.sizes, one.shape[axis]) for (case, _), one in zip(runs, arrays, strict=True)])
        for axis in range(array.ndim)
    )
    return TensorSpec(name, str(array.dtype), shape)


def _format_array(array: Array, case: InputCase) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in case.sizes.items())
    return f"{array.dtype}{list(array.shape)}" + (f" at {sizes}" if sizes else f" in case {case.name}")


def _infer_dim(seen: Sequence[tuple[Mapping[str, int], int]]) -> int | str | None:
    sizes, size = seen[0]
    if all(other == size for _, other in seen):
        return size
    follows = [name for name in sizes if all(one[name] == other for one, other in seen)]
    return follows[0] if len(follows) == 1 else None
