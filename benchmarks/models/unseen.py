"""Draw inputs that a build never saw: other primes for the sizes, other distributions, other seeds.

Everything stays within what the manifest declares: limits of dims, and ranges of values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
KINDS = ("uniform", "concentrated", "long-tailed")
_SEED = 20_260_000
_STEP = 6  # between the sizes of two cases


def choose_sizes(
    dims: Mapping[str, tuple[int, int | None]], built: Sequence[Mapping[str, int]]
) -> list[dict[str, int]]:
    """Return one choice of sizes for each kind of values.

    `dims` has the limits of each dim, `built` the sizes of every case of the build. A size is a prime that no case of
    the build had, if the limits allow one, else any size that it did not have, else any size.
    """
    chosen: list[dict[str, int]] = [{} for _ in KINDS]
    for position, (name, (least, most)) in enumerate(dims.items()):
        seen = {sizes[name] for sizes in built if name in sizes}
        candidates = _candidates(least, most, seen)
        for number, sizes in enumerate(chosen):
            sizes[name] = candidates[(number + position) % len(candidates)]
    return chosen


def _candidates(least: int, most: int | None, seen: set[int]) -> list[int]:
    """Return at most three sizes within the limits, primes that are not in `seen` first, small ones first."""
    end = min(most if most is not None else math.inf, least + 200)
    sizes = range(max(least, 1), int(end) + 1)
    primes = [size for size in sizes if size not in seen and _is_prime(size)]
    others = [size for size in sizes if size not in seen and size not in primes]
    spread = primes[:: max(1, min(len(primes) // len(KINDS), 3))] if least >= _STEP else primes
    return [*spread, *others, *sizes][: len(KINDS)]


def _is_prime(size: int) -> bool:
    return size > 1 and all(size % factor for factor in range(2, math.isqrt(size) + 1))


def draw(kind: str, name: str, dtype: str, shape: Sequence[int], limits: Sequence[float] | None) -> Array:
    """Return an array of `dtype` and `shape` with values of one of `KINDS`, low ≤ x < high if `limits` are given."""
    generator = np.random.default_rng([_SEED, KINDS.index(kind), *name.encode()])
    if dtype == "bool":
        return generator.random(shape) < 0.5
    if dtype.startswith(("int", "uint")):
        return _integers(generator, kind, dtype, shape, limits or (0, 2))
    values = _floats(generator, kind, shape)
    if limits is not None:
        low, high = limits
        values = np.minimum(
            low + (high - low) * _to_unit(kind, values), np.nextafter(np.float32(high), np.float32(low))
        )
    return values.astype("float32" if dtype == "bfloat16" else dtype)


def _integers(
    generator: np.random.Generator, kind: str, dtype: str, shape: Sequence[int], limits: Sequence[float]
) -> Array:
    low, high = int(limits[0]), int(limits[1])
    if (low, high) == (0, 2):
        return _mask(generator, kind, shape).astype(dtype)
    if kind == "uniform":
        return generator.integers(low, high, shape).astype(dtype)
    power = 3.0 if kind == "concentrated" else 12.0  # words, too, are mostly the frequent ones
    return np.minimum(low + (high - low) * generator.random(shape) ** power, high - 1).astype(dtype)


def _mask(generator: np.random.Generator, kind: str, shape: Sequence[int]) -> Array:
    """Return zeros and ones: the ends of rows are padding, or single elements are left out; a row begins with one."""
    if not shape:
        return np.ones(shape)
    length = shape[-1]
    if kind == "long-tailed":
        ones = generator.random(shape) < 0.7
    else:
        ends = generator.integers(1, length + 1, (*shape[:-1], 1))
        ones = np.arange(length) < ends
    ones[..., :1] = True
    return ones


def _floats(generator: np.random.Generator, kind: str, shape: Sequence[int]) -> Array:
    if kind == "uniform":
        return generator.uniform(-1.0, 1.0, shape)
    if kind == "concentrated":
        return 0.1 * generator.standard_normal(shape) + 0.05 * np.sin(np.arange(math.prod(shape)).reshape(shape) / 50.0)
    return 0.5 * generator.laplace(size=shape)


def _to_unit(kind: str, values: Array) -> Array:
    """Map values of a kind to [0, 1]."""
    return np.clip(0.5 + (0.5 * values if kind != "long-tailed" else 0.2 * values), 0.0, 1.0)
