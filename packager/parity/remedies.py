"""Say what to change in the manifest when forward() raises an error that its sizes or values explain."""

from __future__ import annotations

import re

from packager.parity.cases.dim_sizes import choose_example_sizes, get_batch_dim
from packager.parity.cases.sample_grid import InputCase
from packager.project.manifest import Project, is_integer_dtype

_BEYOND_TABLE = re.compile(r"index out of range in self|index -?\d+ is out of bounds for dimension \d+ with size (\d+)")
_SIZES_DIFFER = re.compile(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)")


def find_remedy(project: Project, case: InputCase, error: BaseException) -> str | None:
    """Return the hint for an error that forward() raised on a test case; None if nothing is known about it."""
    text = str(error)
    if "Expected more than 1 value per channel" in text or "Expected more than 1 spatial element" in text:
        return _raise_minimum(project, case, is_batch="per channel" in text)
    beyond, differ = _BEYOND_TABLE.search(text), _SIZES_DIFFER.search(text)
    if differ is not None:
        return _lower_maximum(project, case, *sorted(map(int, differ.groups())))
    if beyond is not None:
        return _lower_maximum(project, case, int(beyond[1]) if beyond[1] else None) or _narrow_range(project)
    return None


def _raise_minimum(project: Project, case: InputCase, *, is_batch: bool) -> str:
    """Name the dims of size 1 that leave normalization by statistics of the input a single value."""
    batch = get_batch_dim(project.manifest.inputs)
    ones = [dim for dim, size in case.sizes.items() if size == 1]
    ones = [batch] if is_batch and batch in ones else [dim for dim in ones if is_batch or dim != batch]
    settings = " and ".join(f"dims.{dim}.min: 2" for dim in ones)
    change = f"set {settings}" if ones else "use an input of more than one value per channel"
    return f"normalization by the statistics of the input needs more than one value: {change}"


def _lower_maximum(project: Project, case: InputCase, length: int | None, size: int | None = None) -> str | None:
    """Name the dims that are larger than a table of `length` rows; `size` is that of the dim, if it is known.

    The example's sizes are in the table: they are run first, so that a failure there has a different cause.
    """
    example = choose_example_sizes(project.manifest.dim_limits())
    dims = [
        dim
        for dim, chosen in case.sizes.items()
        if chosen > example[dim] and (length is None or chosen > length >= example[dim]) and size in (None, chosen)
    ]
    if dims and length is not None:
        return f"if the module has a table of {length} positions, set dims.{dims[0]}.max: {length}"
    settings = " or ".join(f"dims.{dim}.max" for dim in dims)
    return f"if the module has a table of positions, set {settings} to its length" if dims else None


def _narrow_range(project: Project) -> str | None:
    names = [name for name, spec in project.manifest.inputs.items() if is_integer_dtype(spec.dtype)]
    return f"narrow the range of {' or '.join(names)} to the rows of the table that it indexes" if names else None
