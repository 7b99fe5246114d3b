"""The values of one input: drawn at random, and in the ways that find what random values hide. numpy only.

    random        over the range; integers each value once before any comes again; without a range, standard normal;
                  a mask has a one in every row
    low, high     one end of the range everywhere
    low, unmasked the same as low, and masks whole: for a module that takes no row of zeros in a mask
    extremes      one end or the other, element by element: full of ties
    vanishing     zero, minus zero, numbers far below any weight, and a few subnormal numbers
    long-tailed   small values, and a few far out
    large         without a range: four times standard normal
    padded        masks: ones, and from somewhere on zeros
    whole         masks: ones

What a kind has no meaning for (a mask has no subnormal numbers) is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from packager.common.array_files import Array
from packager.project.manifest import InputSpec, is_integer_dtype

ValueKind = Literal[
    "random", "low", "low, unmasked", "high", "extremes", "vanishing", "long-tailed", "large", "padded", "whole"
]

CONSTANT_KINDS: tuple[ValueKind, ...] = ("low", "low, unmasked", "high", "vanishing")
"""Kinds that give all elements the same value, or nearly: where a model ranks them, all are tied."""

_VARIED_KINDS: tuple[ValueKind, ...] = ("extremes", "long-tailed", "large", "padded", "low", "high", "vanishing")
_MAX_ENUMERABLE = 1 << 17  # of a range of up to so many integers, each is drawn once before any comes again
_LARGE_SCALE = 4.0
_SUBNORMALS = 8  # in a whole array: each costs some processors a hundred times what a normal number does
_BFLOAT16_SUBNORMAL = 2.0**-133  # the smallest; such an input is drawn in float32
_OUTLIER_LIMIT = 30.0  # standard deviations; exp() of it is far from what float32 holds at most


def select_kinds(specs: Sequence[InputSpec]) -> tuple[ValueKind, ...]:
    """The kinds, beside random, that mean something to one of these inputs."""
    return tuple(kind for kind in _VARIED_KINDS if any(_is_applicable(spec, kind) for spec in specs))


def has_mask(specs: Sequence[InputSpec]) -> bool:
    """Whether one of the inputs can hold nothing but ones and zeros."""
    return any(_is_mask(spec) for spec in specs)


def draw_values(spec: InputSpec, shape: tuple[int, ...], kind: ValueKind, generator: np.random.Generator) -> Array:
    """One array of a spec's dtype (float32 for bfloat16) with the given shape, every value within the range."""
    if kind == "low, unmasked":
        kind = "whole" if _is_mask(spec) else "low"
    chosen: ValueKind = kind if _is_applicable(spec, kind) else "random"
    dtype = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    if chosen in ("padded", "whole"):
        return (_draw_padding_mask(shape, generator) if chosen == "padded" else np.ones(shape, np.bool_)).astype(dtype)
    if chosen in ("low", "high", "extremes"):
        least, most = (False, True) if spec.dtype == "bool" else spec.value_bounds()
        high = generator.integers(0, 2, shape) == 1 if chosen == "extremes" else chosen == "high"
        return np.asarray(np.where(high, np.full(shape, most, dtype), np.full(shape, least, dtype)))
    if _is_mask(spec):
        return _draw_mask(shape, generator).astype(dtype)
    if is_enumerable(spec):
        return enumerate_values(spec, shape, 0, generator)
    if is_integer_dtype(spec.dtype):
        least, most = spec.value_bounds()
        return np.asarray(generator.integers(least, most, shape, dtype=dtype, endpoint=True))
    return _draw_floats(spec, shape, chosen, dtype, generator)


def _is_applicable(spec: InputSpec, kind: ValueKind) -> bool:
    if kind in ("low", "high"):
        return spec.range is not None or spec.dtype == "bool"
    if kind == "extremes":
        return spec.range is not None
    if kind in ("padded", "whole"):
        return _is_mask(spec)
    if spec.dtype == "bool" or is_integer_dtype(spec.dtype):
        return kind == "random"
    if kind == "large":
        return spec.range is None
    if kind == "vanishing" and spec.range is not None:
        least, most = spec.value_bounds()
        return bool(least <= 0 <= most)
    return True


def _is_mask(spec: InputSpec) -> bool:
    integers = is_integer_dtype(spec.dtype) and spec.range is not None and spec.value_bounds() == (0, 1)
    return spec.dtype == "bool" or integers


def _draw_mask(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Ones and zeros, and a one in every row: a row of zeros is another kind of input, low."""
    found = generator.integers(0, 2, shape).astype(np.bool_)
    if shape and shape[-1] > 0:
        kept = generator.integers(0, shape[-1], (*shape[:-1], 1))
        found |= np.arange(shape[-1]) == kept
    return found


def _draw_padding_mask(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Ones up to a length of at least one, along the last axis."""
    if not shape or shape[-1] == 0:
        return np.ones(shape, dtype=np.bool_)
    lengths = generator.integers(1, shape[-1] + 1, (*shape[:-1], 1))
    return np.arange(shape[-1]) < lengths


def is_enumerable(spec: InputSpec) -> bool:
    """Whether an input is of integers that are few enough to draw each of them."""
    if not is_integer_dtype(spec.dtype) or _is_mask(spec):
        return False
    least, most = spec.value_bounds()
    return bool(most - least < _MAX_ENUMERABLE)


def enumerate_values(spec: InputSpec, shape: tuple[int, ...], block: int, generator: np.random.Generator) -> Array:
    """The `block`-th part of all integers of a range in random order, again from the start when they are over."""
    least, most = spec.value_bounds()
    values, size, dtype = most - least + 1, math.prod(shape), np.dtype(spec.dtype)
    offsets = generator.permutation(values)[(np.arange(size) + block * size) % values].astype(dtype)
    return np.asarray((offsets + np.asarray(least, dtype)).astype(dtype).reshape(shape))


def _draw_floats(
    spec: InputSpec, shape: tuple[int, ...], kind: ValueKind, dtype: np.dtype[Any], generator: np.random.Generator
) -> Array:
    if kind == "vanishing":
        return _vanishing(spec, shape, dtype, generator)
    if spec.range is None:
        if kind == "random":
            return generator.standard_normal(shape).astype(dtype)
        far = (
            generator.standard_t(1.5, shape)
            if kind == "long-tailed"
            else _LARGE_SCALE * generator.standard_normal(shape)
        )
        values = np.clip(far, -_OUTLIER_LIMIT, _OUTLIER_LIMIT)
    else:
        share = generator.random(shape)
        share = share**8 if kind == "long-tailed" else share
        least, most = (float(one) for one in spec.value_bounds())
        values = least * (1.0 - share) + most * share  # most - least may overflow
    if spec.range is not None:
        least, most = (float(one) for one in spec.value_bounds())
        values = np.clip(values, least, most)
    return np.asarray(values.astype(dtype))


def _vanishing(spec: InputSpec, shape: tuple[int, ...], dtype: np.dtype[Any], generator: np.random.Generator) -> Array:
    """Draw zeros of either sign and tiny numbers, about half of each, and up to eight subnormal numbers among them.

    Tiny is the smallest normal number to the power of 2/3: 5e-26 in float32. Multiplied by a weight it stays normal
    (down to weights of 1e-12), and its square is 0 rather than subnormal. float16 has no room for both; it is
    computed in float32. The result is an array of `shape` and `dtype`. A value out of range changes its sign, or
    else is 0.
    """
    size, limits = math.prod(shape), np.finfo(dtype)
    values = float(limits.smallest_normal) ** (2 / 3) * (1.0 + generator.random(size))
    values[generator.integers(0, 2, size) == 0] = 0.0
    subnormal = generator.choice(size, min(_SUBNORMALS, -(-size // 2)), replace=False)
    step = _BFLOAT16_SUBNORMAL if spec.dtype == "bfloat16" else float(limits.smallest_subnormal)
    values[subnormal] = step * generator.integers(1, 100, subnormal.size)
    values *= 2.0 * generator.integers(0, 2, size) - 1.0
    if spec.range is not None:
        least, most = (float(one) for one in spec.value_bounds())
        values = np.where((least <= values) & (values <= most), values, -values)
        values = np.where((least <= values) & (values <= most), values, 0.0)
    return np.asarray(values.astype(dtype).reshape(shape))
