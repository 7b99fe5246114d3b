"""Input specs + seed → the grid of inputs on which everything is compared. numpy only.

A case is one complete set of inputs at one choice of sizes for the named dims. Every dim is tried
at its smallest size, at 2, at a prime, at its largest, and at the example's size, which no two
dims share, so that a swapped or fixed dim shows. Values are drawn from the declared range, from a
generator that depends on nothing but the seed, the case and the input: adding an input or a case
changes no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np

from packager.arrays import Array, read_arrays
from packager.errors import DataDoesNotFit
from packager.manifest import DimLimits, Input, Project, is_integer

Fill = Literal["random", "low", "high"]
_LARGEST_CASE_BYTES = 64 << 20
_LARGE_SIZES = (128, 64, 32, 16)  # for a dim that has no largest, the first that makes a case of at most so much
_LARGE_CASE_BYTES = 1 << 20
_TOGETHER = 8  # all dims at their largest are tried together where that is up to so many times the largest alone
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
    rows = sum(_rows(manifest.inputs, one) for one, _ in planned)
    while rows < manifest.parity.samples:
        planned.append((small, "random"))
        rows += _rows(manifest.inputs, small)
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
    least, most = spec.ends()
    if fill != "random":
        return np.full(shape, least if fill == "low" else most, dtype=dtype)
    if is_integer(spec.dtype):
        return generator.integers(least, most, shape, dtype=dtype, endpoint=True)
    share = generator.random(shape)
    values = float(least) * (1.0 - share) + float(most) * share  # most - least may overflow
    return np.asarray(np.clip(values, float(least), float(most)).astype(dtype))


def resolve(shape: list[str | int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A manifest shape with its named dims filled in."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def _example_sizes(limits: Mapping[str, DimLimits]) -> dict[str, int]:
    """2, 3, 4, … within the limits: small, but not the smallest, and different from each other where that fits."""
    found: dict[str, int] = {}
    for name, limit in sorted(limits.items(), key=lambda item: math.inf if item[1].max is None else item[1].max):
        size = max(2, limit.min + 1)
        while size in found.values():
            size += 1
        found[name] = _clamp(size, limit)
    return {name: found[name] for name in limits}


def _prime_above(size: int) -> int:
    return next(one for one in count(size + 1) if all(one % divisor for divisor in range(2, math.isqrt(one) + 1)))


def _clamp(size: int, limit: DimLimits) -> int:
    return max(limit.min, size if limit.max is None else min(size, limit.max))


def _sizes(
    limits: Mapping[str, DimLimits], example: Mapping[str, int], inputs: Mapping[str, Input]
) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """The example's sizes, then each dim in turn at its interesting sizes, then all at their largest."""
    chosen: list[dict[str, int]] = [dict(example)]
    left_out = []
    smallest = {name: limit.min for name, limit in limits.items()}
    for name, limit in limits.items():
        for size in (limit.min, 2, _prime_above(example[name])):
            chosen.append({**example, name: _clamp(size, limit)})
        beyond = limit.max if limit.max is not None else _large(inputs, smallest, name)
        if beyond is not None:
            chosen.append({**smallest, name: beyond})
        if limit.max is None:
            left_out.append(f"{name} beyond {max(one[name] for one in chosen)}")
    chosen.append(smallest)
    largest = {name: example[name] if limit.max is None else limit.max for name, limit in limits.items()}
    alone = max(_case_bytes(inputs, sizes) for sizes in chosen)
    if _case_bytes(inputs, largest) <= _TOGETHER * alone:
        chosen.append(largest)
    elif largest not in chosen:
        left_out.append(f"{_label(largest)} together")
    kept: list[dict[str, int]] = []
    for sizes in chosen:
        if sizes in kept:
            continue
        if sizes not in (example, smallest) and _case_bytes(inputs, sizes) > _LARGEST_CASE_BYTES:
            left_out.append(f"{_label(sizes)}, whose inputs take more than 64 MiB")
        else:
            kept.append(sizes)
    return kept, tuple(dict.fromkeys(left_out))


def _rows(inputs: Mapping[str, Input], sizes: Mapping[str, int]) -> int:
    """How many samples a case holds: its batch, which is a named first dim of the first input, or one."""
    first = next(iter(inputs.values())).shape[:1]
    return max(1, sizes[first[0]]) if first and isinstance(first[0], str) else 1


def _large(inputs: Mapping[str, Input], smallest: Mapping[str, int], name: str) -> int | None:
    """A size for a dim without a largest that is far from the small ones, where that is cheap; else None."""
    sizes = [size for size in _LARGE_SIZES if size > smallest[name]]
    return next((one for one in sizes if _case_bytes(inputs, {**smallest, name: one}) <= _LARGE_CASE_BYTES), None)


def _is_inner(name: str, inputs: Mapping[str, Input]) -> bool:
    """Whether a dim stands anywhere but first: a length or a width, where 1 would exercise little."""
    return any(name in spec.shape[1:] for spec in inputs.values())


def _case_bytes(inputs: Mapping[str, Input], sizes: Mapping[str, int]) -> int:
    return sum(8 * math.prod(resolve(list(spec.shape), sizes)) for spec in inputs.values())


def _label(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed"


def _case(inputs: Mapping[str, Input], sizes: Mapping[str, int], fill: Fill, seed: int, index: int) -> Case:
    arrays = {}
    for name, spec in inputs.items():
        generator = np.random.default_rng([seed, index, *name.encode()])
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
        dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
        if str(found.dtype) != dtype or len(found.shape) != len(spec.shape):
            wanted = f"{dtype}[{', '.join(str(dim) for dim in spec.shape)}]"
            raise DataDoesNotFit(where, f"{name} is {found.dtype}{list(found.shape)}, expected {wanted}")
        for dim, size in zip(spec.shape, found.shape, strict=True):
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                raise DataDoesNotFit(where, f"{name}: the dim {dim} is {size}, and {expected} elsewhere")
    for dim, limit in project.manifest.limits().items():
        if sizes[dim] != _clamp(sizes[dim], limit):
            allowed = f"{limit.min} to {'any' if limit.max is None else limit.max}"
            raise DataDoesNotFit(where, f"the dim {dim} is {sizes[dim]}, and dims.{dim} allows {allowed}")
    return Case("data", sizes, "data", {name: arrays[name] for name in inputs})
