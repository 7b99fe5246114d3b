"""Describe the inputs and outputs of a module: names, dtypes and shapes.

The inputs are those of the manifest. The outputs follow from forward passes on test cases of different sizes: each dim
of an output is fixed, or follows one of the named dims, or depends on more than that and is None. Two passes that
differ in the size of every dim tell these apart well enough to start an export; the bundle's signature comes from all
test cases.
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
    """One input or output: its name, its NumPy dtype, and its shape of sizes, dim names, or None for neither."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def make_input_specs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """Return the inputs that the manifest declares, in its order."""
    return tuple(TensorSpec(name, spec.dtype, tuple(spec.shape)) for name, spec in manifest.inputs.items())


def infer_output_specs(runs: Sequence[tuple[InputCase, Mapping[str, Array]]]) -> tuple[TensorSpec, ...]:
    """Infer the outputs from test cases of different sizes, each with the arrays that forward() returned by name.

    Raises:
        OutputsUnsupported: at another size, there are other outputs, or one has another rank or dtype.
    """
    first_case, first_outputs = runs[0]
    for case, outputs in runs:
        if list(outputs) != list(first_outputs):
            why = f"{', '.join(first_outputs)} at {dict(first_case.sizes)}, {', '.join(outputs)} at {dict(case.sizes)}"
            raise OutputsUnsupported("forward()", why, "return the same outputs at every size")
    return tuple(_infer_output(name, [(case, outputs[name]) for case, outputs in runs]) for name in first_outputs)


def _infer_output(name: str, arrays: Sequence[tuple[InputCase, Array]]) -> TensorSpec:
    first_case, first = arrays[0]
    for case, array in arrays:
        if array.ndim != first.ndim or array.dtype != first.dtype:
            why = f"{name} is {_format_array(first, first_case)} and {_format_array(array, case)}"
            hint = "return one rank and dtype at every size; give squeeze() the dim to remove"
            raise OutputsUnsupported("forward()", why, hint)
    shape = tuple(_infer_dim([(case.sizes, array.shape[axis]) for case, array in arrays]) for axis in range(first.ndim))
    return TensorSpec(name, str(first.dtype), shape)


def _format_array(array: Array, case: InputCase) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in case.sizes.items())
    return f"{array.dtype}{list(array.shape)}" + (f" at {sizes}" if sizes else f" in case {case.name}")


def _infer_dim(observations: Sequence[tuple[Mapping[str, int], int]]) -> int | str | None:
    """Infer one dim from pairs of the named dims' sizes and its own: fixed, the one name that it follows, or None."""
    first_sizes, first_size = observations[0]
    if all(size == first_size for _, size in observations):
        return first_size
    followed = [name for name in first_sizes if all(sizes[name] == size for sizes, size in observations)]
    return followed[0] if len(followed) == 1 else None
