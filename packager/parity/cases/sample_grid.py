"""Input specs + seed → the grid of inputs on which everything is compared. numpy only.

A case is one complete set of inputs at one choice of sizes for the named dims. Every dim is tried
at its smallest size, at 2, at a prime, at its largest, and at the example's size, which no two
dims share, so that a swapped or fixed dim shows. Values are drawn as `packager.parity.cases.generators` says, from a
generator that depends on nothing but the seed, the case and the input: more samples, or an input that
is varied in no other ways, change no other. The cases of different sizes are random; the varied ones
have a row of every kind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from packager.common.array_files import Array, read_arrays
from packager.errors import DataDoesNotFit
from packager.parity.cases import generators
from packager.parity.cases.generators import ValueKind
from packager.project.manifest import DimLimits, InputSpec, Project

_MAX_CASE_BYTES = 64 << 20
_LARGE_SIZES = (128, 64, 32, 16)  # for a dim that has no largest, the first that makes a case of at most so much
_LARGE_CASE_BYTES = 1 << 20
_ALL_LARGEST_FACTOR = (
    8  # all dims at their largest are tried together where that is up to so many times the largest alone
)
_MAX_COMBINATIONS = 4  # of small sizes, beside those where one dim differs from the example
_FIRST_EXTRA_CASE = 1000  # where the names of further cases start
_ROWS_PER_KIND = 3  # rows of a kind, where they are cheap
_CHEAP_ROW_BYTES = 1 << 16
_VARIED_SIZE = 16  # of a dim that is no batch, in the cases that vary the values and not the sizes


@dataclass(frozen=True)
class InputCase:
    """One set of inputs: the sizes of the dims, how the values were chosen, and the arrays by name.

    `kinds` are those of the rows, in turn, or the one kind of a case without rows; none for the user's data.
    """

    name: str
    sizes: Mapping[str, int]
    value_kinds: tuple[ValueKind, ...]
    inputs: Mapping[str, Array]

    @property
    def value_description(self) -> str:
        """How the values were chosen, in words."""
        return ", ".join(self.value_kinds) or "data"

    @property
    def element_count(self) -> int:
        """How many elements all inputs have together."""
        return sum(one.size for one in self.inputs.values())


@dataclass(frozen=True)
class Grid:
    """All cases of a build.

    `example` is the one that is traced; `contrast` differs from it in every dim that may differ, or else in its values;
    `left_out` says which sizes were too large.
    """

    cases: tuple[InputCase, ...]
    example_case: InputCase
    probe_case: InputCase
    skipped_sizes: tuple[str, ...] = field(default=())


def build_grid(project: Project) -> Grid:
    """The cases of a manifest, in a fixed order. Raises `DataDoesNotFit` for unfit `parity.data`."""
    manifest = project.manifest
    limits = manifest.dim_limits()
    example_sizes = _choose_example_sizes(limits)
    varied = _plan_varied_cases(manifest.inputs, limits, example_sizes)
    sizes, left_out = _choose_sizes(limits, example_sizes, manifest.inputs, [one for one, _ in varied])
    random: tuple[ValueKind, ...] = ("random",)
    # In the largest cases masks are whole, so that every position counts.
    whole: tuple[ValueKind, ...] = ("whole",) if generators.has_mask(tuple(manifest.inputs.values())) else random
    planned = [(one, whole if max(one.values(), default=0) > _VARIED_SIZE else random) for one in sizes] + varied
    small, _ = _choose_small_sizes(manifest.inputs, limits)
    rows = sum(_count_rows(manifest.inputs, one) for one, _ in planned)
    while rows < manifest.parity.samples:
        planned.append((small, random))
        rows += _count_rows(manifest.inputs, small)
    cases = [_make_case(project, sizes_of_case, kinds, index) for index, (sizes_of_case, kinds) in enumerate(planned)]
    example = next(case for case in cases if case.sizes == example_sizes)
    contrast = max(
        (case for case in cases if case.value_kinds == random),
        key=lambda case: (
            sum(case.sizes[dim] != size for dim, size in example_sizes.items()),
            0 not in case.sizes.values(),  # where nothing is compared, little is shown
            case is not example,
        ),
    )
    if manifest.parity.data is not None:
        cases.append(_load_data_case(project, manifest.parity.data))
    return Grid(tuple(cases), example, contrast, left_out)


def redraw_without_empty_masks(project: Project, grid: Grid) -> Grid:
    """The same cases, but for rows of zeros in a mask: where all else is low, masks are whole."""
    cases = tuple(
        redraw_case(project, case.name, case.sizes, ("low, unmasked",)) if case.value_kinds == ("low",) else case
        for case in grid.cases
    )
    return replace(grid, cases=cases)


def draw_extra_case(project: Project, number: int, rows: int) -> InputCase:
    """A further case, beyond the grid: random, and each other kind in turn but the constants.

    Integers go on where the last random case of them stopped, so that soon each value was drawn.
    """
    inputs, limits = project.manifest.inputs, project.manifest.dim_limits()
    kinds = [
        kind for kind in generators.select_kinds(tuple(inputs.values())) if kind not in generators.CONSTANT_KINDS
    ] or ["random"]
    small, batch = _choose_small_sizes(inputs, limits)
    sizes = small if batch is None else {**small, batch: _clamp(rows, limits[batch])}
    kind: ValueKind = "random" if number % 2 == 0 else kinds[number // 2 % len(kinds)]
    return redraw_case(project, f"{_FIRST_EXTRA_CASE + number}", sizes, (kind,))


def redraw_case(project: Project, name: str, sizes: Mapping[str, int], kinds: tuple[ValueKind, ...]) -> InputCase:
    """The case of this name, sizes and kinds: the same values every time."""
    return _make_case(project, sizes, kinds, int(name))


def redraw_less_tied(project: Project, case: InputCase) -> InputCase | None:
    """The same sizes with values of which fewer are equal: first nothing constant, then all random; then None.

    A user's own data have no other.
    """
    if case.value_kinds in ((), ("random",), ("whole",)):
        return None
    kept = tuple(kind for kind in case.value_kinds if kind not in generators.CONSTANT_KINDS)
    kinds: tuple[ValueKind, ...] = kept if kept and kept != case.value_kinds else ("random",)
    return _make_case(project, case.sizes, kinds, int(case.name))


def resolve_shape(shape: list[str | int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A manifest shape with its named dims filled in."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def _choose_example_sizes(limits: Mapping[str, DimLimits]) -> dict[str, int]:
    """2, 3, 4, … within the limits: small, but not the smallest, and different from each other where that fits."""
    found: dict[str, int] = {}
    for name, limit in sorted(limits.items(), key=lambda item: math.inf if item[1].max is None else item[1].max):
        size = max(2, limit.min + 1)
        while size in found.values():
            size += 1
        found[name] = _clamp(size, limit)
    return {name: found[name] for name in limits}


def _next_prime(size: int) -> int:
    return next(
        one for one in itertools.count(size + 1) if all(one % divisor for divisor in range(2, math.isqrt(one) + 1))
    )


def _clamp(size: int, limit: DimLimits) -> int:
    return max(limit.min, size if limit.max is None else min(size, limit.max))


def _choose_sizes(
    limits: Mapping[str, DimLimits],
    example: Mapping[str, int],
    inputs: Mapping[str, InputSpec],
    varied: Sequence[Mapping[str, int]],
) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """The example's sizes, then each dim in turn at its interesting sizes, then several, then all at their largest.

    `varied` are the sizes of other cases: the batch is a prime there, where that is not too large.
    """
    chosen: list[dict[str, int]] = [dict(example)]
    left_out = []
    smallest = {name: limit.min for name, limit in limits.items()}
    for name, limit in limits.items():
        prime = _clamp(_next_prime(example[name]), limit)
        there = name == _get_batch_dim(inputs) and any(one[name] == prime for one in varied)
        for size in (limit.min, 2, *([] if there else [prime])):
            chosen.append({**example, name: _clamp(size, limit)})
        beyond = limit.max if limit.max is not None else _choose_large_size(inputs, smallest, name)
        if beyond is not None:
            chosen.append({**smallest, name: beyond})
        if limit.max is None:
            left_out.append(f"{name} beyond {max(one[name] for one in (*chosen, *varied))}")
    chosen.append(smallest)
    chosen += _combine_small_sizes(limits, example, chosen)
    largest = {name: example[name] if limit.max is None else limit.max for name, limit in limits.items()}
    alone = max(_count_case_bytes(inputs, sizes) for sizes in chosen)
    if _count_case_bytes(inputs, largest) <= _ALL_LARGEST_FACTOR * alone:
        chosen.append(largest)
    elif largest not in chosen:
        left_out.append(f"{_format_sizes(largest)} together")
    kept: list[dict[str, int]] = []
    for sizes in chosen:
        if sizes in kept:
            continue
        if sizes not in (example, smallest) and _count_case_bytes(inputs, sizes) > _MAX_CASE_BYTES:
            left_out.append(f"{_format_sizes(sizes)}, whose inputs take more than 64 MiB")
        else:
            kept.append(sizes)
    return kept, tuple(dict.fromkeys(left_out))


def _combine_small_sizes(
    limits: Mapping[str, DimLimits], example: Mapping[str, int], known: Sequence[Mapping[str, int]]
) -> list[dict[str, int]]:
    """Small sizes of several dims at once, the smallest first, as many as the budget holds."""
    if len(limits) < 2:
        return []
    small = [
        {_clamp(size, limit) for size in (limit.min, 2, _next_prime(example[name]))} for name, limit in limits.items()
    ]
    every = (
        dict(zip(limits, one, strict=True)) for one in itertools.islice(itertools.product(*map(sorted, small)), 1000)
    )
    fresh = [one for one in every if one not in known]
    return sorted(fresh, key=lambda one: math.prod(one.values()))[:_MAX_COMBINATIONS]


def _plan_varied_cases(
    inputs: Mapping[str, InputSpec], limits: Mapping[str, DimLimits], example: Mapping[str, int]
) -> list[tuple[dict[str, int], tuple[ValueKind, ...]]]:
    """Cases with every kind of values, each a case of a few rows; where rows are dear, a row each.

    What is constant stands alone in either case: noise is another there. The batch is a prime once.
    """
    kinds = generators.select_kinds(tuple(inputs.values()))
    small, batch = _choose_small_sizes(inputs, limits)
    if batch is None:
        return [(small, (kind,)) for kind in kinds]
    prime = {**small, batch: _clamp(_next_prime(example[batch]), limits[batch])}
    if _count_case_bytes(inputs, prime) > _MAX_CASE_BYTES:
        prime = small
    few = {**small, batch: _clamp(_ROWS_PER_KIND, limits[batch])}
    alone = [(small, (kind,)) for kind in kinds if kind in generators.CONSTANT_KINDS]
    others = [kind for kind in kinds if kind not in generators.CONSTANT_KINDS]
    if _count_case_bytes(inputs, {**small, batch: 1}) <= _CHEAP_ROW_BYTES:
        return [(prime, ("random",)), *((few, (kind,)) for kind in others), *alone]
    rows = max(1, prime[batch])
    mixed: tuple[ValueKind, ...] = (*others, "random")
    return [(prime, mixed[start : start + rows]) for start in range(0, len(mixed), rows)] + alone


def _choose_small_sizes(
    inputs: Mapping[str, InputSpec], limits: Mapping[str, DimLimits]
) -> tuple[dict[str, int], str | None]:
    """Sizes that exercise much and cost little: one row of moderate length; and the dim that counts the rows."""
    small = {
        name: _clamp(_VARIED_SIZE if _is_inner(name, inputs) else limit.min, limit) for name, limit in limits.items()
    }
    return small, _get_batch_dim(inputs)


def _get_batch_dim(inputs: Mapping[str, InputSpec]) -> str | None:
    """The named first dim of the first input, which counts samples."""
    first = next(iter(inputs.values())).shape[:1]
    return first[0] if first and isinstance(first[0], str) else None


def _count_rows(inputs: Mapping[str, InputSpec], sizes: Mapping[str, int]) -> int:
    """How many samples a case holds: its batch, or one."""
    batch = _get_batch_dim(inputs)
    return 1 if batch is None else max(1, sizes[batch])


def _choose_large_size(inputs: Mapping[str, InputSpec], smallest: Mapping[str, int], name: str) -> int | None:
    """A size for a dim without a largest that is far from the small ones, where that is cheap; else None."""
    sizes = [size for size in _LARGE_SIZES if size > smallest[name]]
    return next((one for one in sizes if _count_case_bytes(inputs, {**smallest, name: one}) <= _LARGE_CASE_BYTES), None)


def _is_inner(name: str, inputs: Mapping[str, InputSpec]) -> bool:
    """Whether a dim stands anywhere but first: a length or a width, where 1 would exercise little."""
    return any(name in spec.shape[1:] for spec in inputs.values())


def _count_case_bytes(inputs: Mapping[str, InputSpec], sizes: Mapping[str, int]) -> int:
    return sum(8 * math.prod(resolve_shape(list(spec.shape), sizes)) for spec in inputs.values())


def _format_sizes(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed"


def _make_case(project: Project, sizes: Mapping[str, int], kinds: tuple[ValueKind, ...], index: int) -> InputCase:
    inputs, seed = project.manifest.inputs, project.manifest.parity.seed
    batch = _get_batch_dim(inputs)
    arrays = {}
    for name, spec in inputs.items():
        generator = np.random.default_rng([seed, index, *name.encode()])
        shape = resolve_shape(list(spec.shape), sizes)
        if index >= _FIRST_EXTRA_CASE and kinds == ("random",) and generators.is_enumerable(spec):
            sweep = np.random.default_rng([seed, _FIRST_EXTRA_CASE, *name.encode()])
            arrays[name] = generators.enumerate_values(spec, shape, (index - _FIRST_EXTRA_CASE) // 2, sweep)
            continue
        if kinds == ("random",) or batch is None or (kinds == ("vanishing",) and spec.shape[:1] == [batch]):
            arrays[name] = generators.draw_values(spec, shape, kinds[0], generator)
        elif spec.shape[:1] == [batch]:
            rows = [
                generators.draw_values(spec, shape[1:], kinds[row % len(kinds)], generator) for row in range(shape[0])
            ]
            arrays[name] = np.stack(rows) if rows else generators.draw_values(spec, shape, "random", generator)
        else:
            arrays[name] = generators.draw_values(spec, shape, "random", generator)
    return InputCase(f"{index:03}", dict(sizes), kinds, arrays)


def _load_data_case(project: Project, data: str) -> InputCase:
    path, where = project.folder / data, project.field_location("parity", "data")
    arrays = read_arrays(path, where)
    inputs = project.manifest.inputs
    if set(arrays) != set(inputs):
        why = f"{data} holds: {', '.join(sorted(arrays))}\nthe inputs are: {', '.join(inputs)}"
        raise DataDoesNotFit(where, why)
    sizes: dict[str, int] = {}
    for name, spec in inputs.items():
        found = arrays[name]
        dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
        if str(found.dtype) != dtype or not _has_shape(found, spec.shape):
            wanted = f"{dtype}[{', '.join(str(dim) for dim in spec.shape)}]"
            raise DataDoesNotFit(where, f"{name} is {found.dtype}{list(found.shape)}, expected {wanted}")
        for dim, size in zip(spec.shape, found.shape, strict=True):
            if isinstance(dim, str) and size != sizes.setdefault(dim, size):
                raise DataDoesNotFit(where, f"{name}: the dim {dim} is {size}, and {sizes[dim]} elsewhere")
    for dim, limit in project.manifest.dim_limits().items():
        if sizes[dim] != _clamp(sizes[dim], limit):
            allowed = f"{limit.min} to {'any' if limit.max is None else limit.max}"
            raise DataDoesNotFit(where, f"the dim {dim} is {sizes[dim]}, and dims.{dim} allows {allowed}")
    return InputCase("data", sizes, (), {name: arrays[name] for name in inputs})


def _has_shape(found: Array, shape: Sequence[int | str]) -> bool:
    """Whether an array has the rank and the fixed sizes of an input; named dims may have any size."""
    dims = zip(shape, found.shape, strict=False)
    return len(found.shape) == len(shape) and all(isinstance(dim, str) or dim == size for dim, size in dims)
