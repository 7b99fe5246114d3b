"""Input specs + seed → the grid of inputs on which everything is compared. numpy only.

A case is one complete set of inputs at one choice of sizes for the named dims. Every dim is tried
at its smallest size, at 2, at a prime, at its largest, and at the example's size, which no two
dims share, so that a swapped or fixed dim shows. Values are drawn from the declared range, from a
generator that depends on nothing but the seed, the case and the input: adding an input or a case
changes no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from packager.errors import DataDoesNotFit
from packager.manifest import DimLimits, Input, Project, is_integer

Array = NDArray[np.generic]
Fill = Literal["random", "low", "high"]
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)  # the n-th differs from the n-th example size, n + 2
_LARGEST_CASE_BYTES = 64 << 20
_EXTRA_SIZE = 16  # of a dim that is no batch, in the cases that vary the values and not the sizes


@dataclass(frozen=True)
class Case:
    """One set of inputs: the sizes of the dims, how the values were chosen, and the arrays by name."""

    name: str
    sizes: Mapping[str, int]
    fill: str
    inputs: Mapping[str, Array]


@dataclass(frozen=True)
class Grid:
    """All cases of a build.

    `example` is the one that is traced; `contrast` differs from it in every dim that may differ;
    `left_out` says which sizes were too large.
    """

    cases: tuple[Case, ...]
    example: Case
    contrast: Case
    left_out: tuple[str, ...] = field(default=())


def grid(project: Project) -> Grid:
    """The cases of a manifest, in a fixed order. Raises `DataDoesNotFit` for unfit `parity.data`."""
    manifest = project.manifest
    limits = manifest.limits()
    example_sizes = _example_sizes(limits)
    sizes, left_out = _sizes(limits, example_sizes, manifest.inputs)
    planned: list[tuple[Mapping[str, int], Fill]] = [(one, "random") for one in sizes]
    ranged = any(spec.range is not None for spec in manifest.inputs.values())
    fills: tuple[Fill, ...] = ("low", "high") if ranged else ()
    small = {
        name: _clamp(_EXTRA_SIZE if _is_inner(name, manifest.inputs) else limit.min, limit)
        for name, limit in limits.items()
    }
    planned += [(small, fill) for fill in fills]
    planned += [(small, "random")] * (manifest.parity.samples - len(planned))
    cases = [
        _case(manifest.inputs, sizes_of_case, fill, manifest.parity.seed, index)
        for index, (sizes_of_case, fill) in enumerate(planned)
    ]
    example = next(case for case in cases if case.sizes == example_sizes)
    if manifest.parity.data is not None:
        cases.append(_data_case(project, manifest.parity.data))
    contrast = max(cases, key=lambda case: sum(case.sizes[dim] != size for dim, size in example_sizes.items()))
    return Grid(tuple(cases), example, contrast, left_out)


def draw(spec: Input, shape: tuple[int, ...], fill: Fill, generator: np.random.Generator) -> Array:
    """One array of a spec's dtype with the given shape; floats without a range are standard normal."""
    if spec.dtype == "bool":
        return generator.integers(0, 2, shape).astype(np.bool_)
    dtype = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    if spec.range is None:
        return generator.standard_normal(shape).astype(dtype)
    low, high = spec.range
    if is_integer(spec.dtype):
        least, most = int(low), int(high) - 1
        if fill == "random":
            return generator.integers(least, most, shape, dtype=dtype, endpoint=True)
        return np.full(shape, least if fill == "low" else most, dtype=dtype)
    # Below high even after rounding to the dtype: a uniform draw may round up to it.
    last: Any = np.nextafter(dtype.type(high), dtype.type(low))
    if fill == "random":
        return np.asarray(np.minimum((low + (high - low) * generator.random(shape)).astype(dtype), last))
    return np.full(shape, low if fill == "low" else last, dtype=dtype)


def resolve(shape: list[str | int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A manifest shape with its named dims filled in."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def _example_sizes(limits: Mapping[str, DimLimits]) -> dict[str, int]:
    """2, 3, 4, … clamped to the limits: small, not 1, and different from each other where that fits."""
    return {name: _clamp(2 + position, limit) for position, (name, limit) in enumerate(limits.items())}


def _clamp(size: int, limit: DimLimits) -> int:
    return max(limit.min, size if limit.max is None else min(size, limit.max))


def _sizes(
    limits: Mapping[str, DimLimits], example: Mapping[str, int], inputs: Mapping[str, Input]
) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """The example's sizes, then each dim in turn at its interesting sizes, then all at their largest."""
    chosen: list[dict[str, int]] = [dict(example)]
    left_out = []
    smallest = {name: limit.min for name, limit in limits.items()}
    for position, (name, limit) in enumerate(limits.items()):
        prime = _PRIMES[position % len(_PRIMES)]
        for size in (limit.min, 2, prime):
            chosen.append({**example, name: _clamp(size, limit)})
        if limit.max is not None:
            chosen.append({**smallest, name: limit.max})
    chosen.append(smallest)
    chosen.append({name: example[name] if limit.max is None else limit.max for name, limit in limits.items()})
    kept: list[dict[str, int]] = []
    for sizes in chosen:
        if sizes in kept:
            continue
        if sizes != example and _case_bytes(inputs, sizes) > _LARGEST_CASE_BYTES:
            left_out.append(_label(sizes))
        else:
            kept.append(sizes)
    return kept, tuple(dict.fromkeys(left_out))


def _is_inner(name: str, inputs: Mapping[str, Input]) -> bool:
    """Whether a dim stands anywhere but first: a length or a width, where 1 would exercise little."""
    return any(name in spec.shape[1:] for spec in inputs.values())


def _case_bytes(inputs: Mapping[str, Input], sizes: Mapping[str, int]) -> int:
    return sum(8 * int(np.prod(resolve(list(spec.shape), sizes), dtype=np.int64)) for spec in inputs.values())


def _label(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed"


def _case(inputs: Mapping[str, Input], sizes: Mapping[str, int], fill: Fill, seed: int, index: int) -> Case:
    arrays = {}
    for position, (name, spec) in enumerate(inputs.items()):
        generator = np.random.default_rng([seed, index, position])
        arrays[name] = draw(spec, resolve(list(spec.shape), sizes), fill, generator)
    return Case(f"{index:03}", dict(sizes), fill, arrays)


def _data_case(project: Project, data: str) -> Case:
    path, where = project.folder / data, project.where("parity", "data")
    arrays = read_arrays(path, where)
    inputs = project.manifest.inputs
    if set(arrays) != set(inputs):
        why = f"{data} holds: {', '.join(sorted(arrays))}\nthe inputs are: {', '.join(inputs)}"
        raise DataDoesNotFit(where, why)
    sizes: dict[str, int] = {}
    for name, spec in inputs.items():
        found = arrays[name]
        if str(found.dtype) != spec.dtype or len(found.shape) != len(spec.shape):
            wanted = f"{spec.dtype}[{', '.join(str(dim) for dim in spec.shape)}]"
            raise DataDoesNotFit(where, f"{name} is {found.dtype}{list(found.shape)}, expected {wanted}")
        for dim, size in zip(spec.shape, found.shape, strict=True):
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                raise DataDoesNotFit(where, f"{name}: the dim {dim} is {size}, and {expected} elsewhere")
    return Case("data", sizes, "data", {name: arrays[name] for name in inputs})


def read_arrays(path: Path, where: str) -> dict[str, Array]:
    """The arrays of an .npz or .safetensors file by name. Raises `DataDoesNotFit`."""
    import safetensors.numpy

    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.numpy.load_file(path))
        with np.load(path, allow_pickle=False) as found:
            if isinstance(found, np.ndarray):
                raise DataDoesNotFit(where, f"{path.name} is a single array, not an .npz")
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, safetensors.SafetensorError) as error:
        raise DataDoesNotFit(where, f"{path.name} cannot be read: {error}") from None
