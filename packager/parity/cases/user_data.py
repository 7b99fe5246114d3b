"""Read the user's own inputs (`parity.data`) and check them against the manifest."""

from __future__ import annotations

from collections.abc import Sequence

from packager.common.array_files import Array, read_arrays
from packager.errors import DataDoesNotFit
from packager.parity.cases.dim_sizes import clamp
from packager.project.manifest import Project


def load_data(project: Project, data: str) -> tuple[dict[str, int], dict[str, Array]]:
    """Read a .npz or .safetensors file of the project: one array for each input.

    Returns the sizes of the named dims, and the arrays by input name in the manifest's order, in the manifest's dtypes
    (float32 for bfloat16). The values are taken as they are, also outside an input's range.

    Raises:
        DataDoesNotFit: the file cannot be read; or a name, dtype, shape or size differs from what the manifest says.
    """
    location = project.field_location("parity", "data")
    arrays = read_arrays(project.folder / data, location)
    inputs = project.manifest.inputs
    if set(arrays) != set(inputs):
        why = f"{data} holds: {', '.join(sorted(arrays))}\nthe inputs are: {', '.join(inputs)}"
        raise DataDoesNotFit(location, why)
    sizes: dict[str, int] = {}
    for name, spec in inputs.items():
        array = arrays[name]
        dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
        if str(array.dtype) != dtype or not _has_shape(array, spec.shape):
            expected = f"{dtype}[{', '.join(str(dim) for dim in spec.shape)}]"
            raise DataDoesNotFit(location, f"{name} is {array.dtype}{list(array.shape)}, expected {expected}")
        for dim, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(dim, str) and size != sizes.setdefault(dim, size):
                raise DataDoesNotFit(location, f"{name}: the dim {dim} is {size}, but {sizes[dim]} in another input")
    for dim, limit in project.manifest.dim_limits().items():
        if sizes[dim] != clamp(sizes[dim], limit):
            allowed = f"{limit.min} to {'any' if limit.max is None else limit.max}"
            raise DataDoesNotFit(location, f"the dim {dim} is {sizes[dim]}, but dims.{dim} allows {allowed}")
    return sizes, {name: arrays[name] for name in inputs}


def _has_shape(array: Array, shape: Sequence[int | str]) -> bool:
    """Return whether an array has the rank and the fixed sizes of an input; named dims may have any size."""
    dims = zip(shape, array.shape, strict=False)
    return len(array.shape) == len(shape) and all(isinstance(dim, str) or dim == size for dim, size in dims)
