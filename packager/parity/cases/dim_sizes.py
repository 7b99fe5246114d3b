"""Choose the sizes of the named dims in the test cases.

Every dim is tried at its minimum, at 2, at a prime, at its maximum, and at the size of the example. The example's sizes
differ from dim to dim, so a swapped or fixed dim shows. A few test cases vary several dims at once.

Sizes are dicts by the name of the dim, in the manifest's order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from packager.project.manifest import DimLimits, InputSpec

MAX_CASE_BYTES = 64 << 20
"""The inputs of a test case take at most this much memory: its activations take many times as much."""

MODERATE_SIZE = 16
"""The size of a dim other than the batch, in the test cases that vary the values: 1 would exercise little."""

_LARGE_SIZES = (128, 64, 32, 16)  # for a dim without a maximum: the first whose test case is small enough
_LARGE_CASE_BYTES = 1 << 20
_MAX_JOINT_FACTOR = 8  # all dims are at their maximum together if that takes at most this many times one of them
_MAX_COMBINATIONS = 4  # of small sizes, in addition to the test cases where one dim differs from the example
_MAX_PRODUCTS = 1000  # combinations to choose from: with ten dims there would be 59,049


def resolve_shape(shape: Sequence[str | int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return a manifest's shape with the sizes of its named dims filled in."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def clamp(size: int, limits: DimLimits) -> int:
    """Return the size nearest to `size` within the limits."""
    return max(limits.min, size if limits.max is None else min(size, limits.max))


def next_prime(size: int) -> int:
    """Return the smallest prime above `size` ≥ 1. A prime shows a size that a graph divides or rounds."""
    return next(
        number
        for number in itertools.count(size + 1)
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
    )


def get_batch_dim(inputs: Mapping[str, InputSpec]) -> str | None:
    """Return the dim that counts samples: the first dim of the first input, if it is named."""
    first = next(iter(inputs.values())).shape[:1]
    return first[0] if first and isinstance(first[0], str) else None


def count_rows(inputs: Mapping[str, InputSpec], sizes: Mapping[str, int]) -> int:
    """Return how many samples a test case of these sizes holds: its batch size, or 1."""
    batch = get_batch_dim(inputs)
    return 1 if batch is None else max(1, sizes[batch])


def count_case_bytes(inputs: Mapping[str, InputSpec], sizes: Mapping[str, int]) -> int:
    """Return how many bytes the inputs of a test case take, at 8 per element, as in float64."""
    return sum(8 * math.prod(resolve_shape(spec.shape, sizes)) for spec in inputs.values())


def choose_example_sizes(limits: Mapping[str, DimLimits]) -> dict[str, int]:
    """Choose 2, 3, 4, … within the limits: small, above the minimum, and different from each other where that fits.

    The dims with the smallest maximum choose first.
    """
    chosen: dict[str, int] = {}
    for name, limit in sorted(limits.items(), key=lambda item: math.inf if item[1].max is None else item[1].max):
        size = max(2, limit.min + 1)
        while size in chosen.values():
            size += 1
        chosen[name] = clamp(size, limit)
    return {name: chosen[name] for name in limits}


def choose_small_sizes(inputs: Mapping[str, InputSpec], limits: Mapping[str, DimLimits]) -> dict[str, int]:
    """Choose sizes that exercise much and cost little: the smallest batch, and a moderate size for every other dim."""
    inner = {dim for spec in inputs.values() for dim in spec.shape[1:]}
    return {name: clamp(MODERATE_SIZE if name in inner else limit.min, limit) for name, limit in limits.items()}


def choose_sizes(
    limits: Mapping[str, DimLimits],
    example: Mapping[str, int],
    inputs: Mapping[str, InputSpec],
    varied: Sequence[Mapping[str, int]],
) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """Choose the sizes of the test cases, without duplicates, and describe the sizes that are left out.

    The example comes first. Then each dim in turn takes its other sizes, then several dims at once, then all their
    maximum. `varied` are the sizes of the test cases that vary the values: a batch that is a prime there needs no
    other.
    """
    chosen: list[dict[str, int]] = [dict(example)]
    skipped = []
    smallest = {name: limit.min for name, limit in limits.items()}
    for name, limit in limits.items():
        prime = clamp(next_prime(example[name]), limit)
        tried = name == get_batch_dim(inputs) and any(sizes[name] == prime for sizes in varied)
        for size in (limit.min, 2, *([] if tried else [prime])):
            chosen.append({**example, name: clamp(size, limit)})
        largest = limit.max if limit.max is not None else _choose_large_size(inputs, smallest, name)
        if largest is not None:
            chosen.append({**smallest, name: largest})
        if limit.max is None:
            skipped.append(f"{name} beyond {max(sizes[name] for sizes in (*chosen, *varied))}")
    chosen.append(smallest)
    chosen += _combine_small_sizes(limits, example, chosen)
    all_largest = {name: example[name] if limit.max is None else limit.max for name, limit in limits.items()}
    alone = max(count_case_bytes(inputs, sizes) for sizes in chosen)
    if count_case_bytes(inputs, all_largest) <= _MAX_JOINT_FACTOR * alone:
        chosen.append(all_largest)
    elif all_largest not in chosen:
        skipped.append(f"{_format_sizes(all_largest)} together")
    kept: list[dict[str, int]] = []
    for sizes in chosen:
        if sizes in kept:
            continue
        if sizes not in (example, smallest) and count_case_bytes(inputs, sizes) > MAX_CASE_BYTES:
            skipped.append(f"{_format_sizes(sizes)}, whose inputs take more than 64 MiB")
        else:
            kept.append(sizes)
    return kept, tuple(dict.fromkeys(skipped))


def _combine_small_sizes(
    limits: Mapping[str, DimLimits], example: Mapping[str, int], chosen: Sequence[Mapping[str, int]]
) -> list[dict[str, int]]:
    """Combine small sizes of several dims, the smallest products first, without those that are chosen already."""
    if len(limits) < 2:
        return []
    small = [
        sorted({clamp(size, limit) for size in (limit.min, 2, next_prime(example[name]))})
        for name, limit in limits.items()
    ]
    combinations = (
        dict(zip(limits, sizes, strict=True)) for sizes in itertools.islice(itertools.product(*small), _MAX_PRODUCTS)
    )
    new = [sizes for sizes in combinations if sizes not in chosen]
    return sorted(new, key=lambda sizes: math.prod(sizes.values()))[:_MAX_COMBINATIONS]


def _choose_large_size(inputs: Mapping[str, InputSpec], smallest: Mapping[str, int], name: str) -> int | None:
    """Choose a size far from the small ones for a dim without a maximum; None if every such size is too expensive."""
    sizes = [size for size in _LARGE_SIZES if size > smallest[name]]
    return next(
        (size for size in sizes if count_case_bytes(inputs, {**smallest, name: size}) <= _LARGE_CASE_BYTES), None
    )


def _format_sizes(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed"
