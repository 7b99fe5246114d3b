"""Draw the values of one input: at random, and in the ways that expose errors which random values hide.

    random         uniform over the range; standard normal without a range; integers without repetition until every
                   value has been drawn; masks with a one in every row
    low, high      the smallest, or the largest, value of the range everywhere
    low, unmasked  as low, but masks are whole: for a module that refuses a row of zeros in a mask
    extremes       the smallest or the largest value, element by element: full of ties
    vanishing      zeros of either sign, numbers far below any weight, and a few subnormal numbers
    long-tailed    mostly small values, and a few far out
    large          four times standard normal; for inputs without a range
    padded         masks: ones up to a random length, then zeros
    whole          masks: ones

A mask is an input of booleans, or of integers with the range [0, 2). An input for which a kind has no meaning (a mask
has no subnormal numbers) is drawn at random. The arrays have the dtype of the input spec, or float32 for bfloat16.
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
"""Kinds in which all elements have the same value, or nearly: a model that ranks them finds nothing but ties."""

_VARIED_KINDS: tuple[ValueKind, ...] = ("extremes", "long-tailed", "large", "padded", "low", "high", "vanishing")
_MAX_ENUMERABLE = 1 << 17  # integers of a range of up to this size are drawn without repetition
_LARGE_SCALE = 4.0  # standard deviations
_TAIL_DEGREES = 1.5  # degrees of freedom of Student's t distribution: it has a mean but an infinite variance
_TAIL_POWER = 8  # uniform numbers to this power: half of them are below 0.004
_OUTLIER_LIMIT = 30.0  # exp(30) is 1e13, far from the largest float32
_MAX_SUBNORMALS = 8  # per array: some processors take a hundred times as long for each
_BFLOAT16_SUBNORMAL = 2.0**-133  # the smallest; these inputs are drawn in float32


def select_kinds(specs: Sequence[InputSpec]) -> tuple[ValueKind, ...]:
    """Return the kinds, other than random, that have a meaning for at least one of these inputs."""
    return tuple(kind for kind in _VARIED_KINDS if any(_is_applicable(spec, kind) for spec in specs))


def has_mask(specs: Sequence[InputSpec]) -> bool:
    """Return whether one of the inputs is a mask."""
    return any(_is_mask(spec) for spec in specs)


def draw_values(spec: InputSpec, shape: tuple[int, ...], kind: ValueKind, generator: np.random.Generator) -> Array:
    """Draw an array of this shape, in the spec's dtype (float32 for bfloat16), with every value within its range."""
    if kind == "low, unmasked":
        kind = "whole" if _is_mask(spec) else "low"
    if not _is_applicable(spec, kind):
        kind = "random"
    dtype = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    if kind in ("padded", "whole"):
        return (_draw_padding_mask(shape, generator) if kind == "padded" else np.ones(shape, np.bool_)).astype(dtype)
    if kind in ("low", "high", "extremes"):
        least, most = (False, True) if spec.dtype == "bool" else spec.value_bounds()
        high = generator.integers(0, 2, shape) == 1 if kind == "extremes" else kind == "high"
        return np.asarray(np.where(high, np.full(shape, most, dtype), np.full(shape, least, dtype)))
    if _is_mask(spec):
        return _draw_mask(shape, generator).astype(dtype)
    if is_enumerable(spec):
        return enumerate_values(spec, shape, 0, generator)
    if is_integer_dtype(spec.dtype):
        least, most = spec.value_bounds()
        return np.asarray(generator.integers(least, most, shape, dtype=dtype, endpoint=True))
    return _draw_floats(spec, shape, kind, dtype, generator)


def _is_applicable(spec: InputSpec, kind: ValueKind) -> bool:
    """Return whether a kind has a meaning for an input."""
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
    """Draw booleans of which each row along the last axis has at least one that is true: empty rows belong to low."""
    mask = generator.integers(0, 2, shape).astype(np.bool_)
    if shape and shape[-1] > 0:
        position = generator.integers(0, shape[-1], (*shape[:-1], 1))
        mask |= np.arange(shape[-1]) == position
    return mask


def _draw_padding_mask(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Draw booleans that are true up to a length of at least 1, along the last axis."""
    if not shape or shape[-1] == 0:
        return np.ones(shape, dtype=np.bool_)
    lengths = generator.integers(1, shape[-1] + 1, (*shape[:-1], 1))
    return np.arange(shape[-1]) < lengths


def is_enumerable(spec: InputSpec) -> bool:
    """Return whether an input holds integers, other than a mask, of a range small enough to draw every value."""
    if not is_integer_dtype(spec.dtype) or _is_mask(spec):
        return False
    least, most = spec.value_bounds()
    return bool(most - least < _MAX_ENUMERABLE)


def enumerate_values(spec: InputSpec, shape: tuple[int, ...], block: int, generator: np.random.Generator) -> Array:
    """Return the `block`-th part of all integers of the range in random order, starting over at their end.

    Parts of the same shape, drawn by generators in the same state, continue each other without repetition. A row, along
    the last axis, has no integer twice if there are enough: the scores of the same item would be a tie. If there are
    fewer, the order changes each time that it starts over, so that indices that occur again meet others than before. In
    the edges of a graph, a node that always has the same neighbour would hide how its messages are added up.
    """
    least, most = spec.value_bounds()
    count, size, dtype = most - least + 1, math.prod(shape), np.dtype(spec.dtype)
    order = generator.permutation(count)
    places = np.arange(size) + block * size
    if shape and shape[-1] > count:
        repetitions = np.tile(np.arange(count), ((block + 1) * size // count, 1))
        offsets = np.concatenate([order, generator.permuted(repetitions, axis=1).ravel()])[places]
    else:
        offsets = order[places % count]
    return np.asarray((offsets.astype(dtype) + np.asarray(least, dtype)).astype(dtype).reshape(shape))


def _draw_floats(
    spec: InputSpec, shape: tuple[int, ...], kind: ValueKind, dtype: np.dtype[Any], generator: np.random.Generator
) -> Array:
    if kind == "vanishing":
        return _draw_vanishing(spec, shape, dtype, generator)
    if spec.range is not None:
        least, most = (float(bound) for bound in spec.value_bounds())
        share = generator.random(shape)
        share = share**_TAIL_POWER if kind == "long-tailed" else share
        values = np.clip(least * (1.0 - share) + most * share, least, most)  # most - least may overflow
    elif kind == "random":
        values = generator.standard_normal(shape)
    elif kind == "long-tailed":
        values = np.clip(generator.standard_t(_TAIL_DEGREES, shape), -_OUTLIER_LIMIT, _OUTLIER_LIMIT)
    else:
        values = np.clip(_LARGE_SCALE * generator.standard_normal(shape), -_OUTLIER_LIMIT, _OUTLIER_LIMIT)
    return np.asarray(values.astype(dtype))


def _draw_vanishing(
    spec: InputSpec, shape: tuple[int, ...], dtype: np.dtype[Any], generator: np.random.Generator
) -> Array:
    """Draw zeros of either sign and tiny numbers, about half of each, with up to eight subnormal numbers among them.

    Tiny is the smallest normal number to the power of 2/3: 5e-26 in float32. Multiplied by a weight it stays normal
    (down to weights of 1e-12), and its square is 0 rather than subnormal. float16 has no room for both; PyTorch
    computes it in float32. A value out of range changes its sign, or else is 0.
    """
    size, limits = math.prod(shape), np.finfo(dtype)
    values = float(limits.smallest_normal) ** (2 / 3) * (1.0 + generator.random(size))
    values[generator.integers(0, 2, size) == 0] = 0.0
    subnormal = generator.choice(size, min(_MAX_SUBNORMALS, -(-size // 2)), replace=False)
    step = _BFLOAT16_SUBNORMAL if spec.dtype == "bfloat16" else float(limits.smallest_subnormal)
    values[subnormal] = step * generator.integers(1, 100, subnormal.size)
    values *= 2.0 * generator.integers(0, 2, size) - 1.0
    if spec.range is not None:
        least, most = (float(bound) for bound in spec.value_bounds())
        values = np.where((least <= values) & (values <= most), values, -values)
        values = np.where((least <= values) & (values <= most), values, 0.0)
    return np.asarray(values.astype(dtype).reshape(shape))
