"""Plan what is measured: batch sizes, sizes of the other dims, numbers of threads, and the values of the inputs.

The values are those of a case of the bundle's evidence, or of a file, repeated or cut along the named dims. So they
stay within the ranges of the manifest, which config.json does not have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packager.common.array_files import Array
from packager.errors import DataDoesNotFit, did_you_mean

_DEFAULT_BATCHES = (1, 8, 32)
_DEFAULT_SIZE = 128  # of a dim other than the batch
_MAX_ROW_BYTES = 4 << 20  # with default sizes
_TOO_LARGE = 100.0  # more than any factor between two sizes, as a power of 2

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class SourceCase:
    """Inputs that values are taken from: a case of the evidence, with the kind of its values, or a file."""

    name: str
    fill: str
    inputs: Mapping[str, Array]
    is_file: bool = False


@dataclass(frozen=True)
class Case:
    """One set of inputs to measure: how many rows it has, the sizes of the named dims, and the arrays by input name.

    A bundle without a batch dim has one case, of one row.
    """

    rows: int
    sizes: Sizes
    source: str
    inputs: Mapping[str, Array]


@dataclass(frozen=True)
class Plan:
    """The cases with the smallest first, and the numbers of threads in ascending order. Every backend runs all."""

    batch_dim: str | None
    cases: tuple[Case, ...]
    threads: tuple[int, ...]


def make_plan(
    config: Mapping[str, Any],
    sources: Sequence[SourceCase],
    *,
    batches: Sequence[int] = (),
    sizes: Sizes,
    threads: Sequence[int] = (),
    cores: int,
) -> Plan:
    """Plan the cases of a bundle; `config` is its config.json.

    Empty `batches` are 1, 8 and 32 within the limits of the batch dim, and empty `threads` 1 and `cores`. `sizes` are
    of other dims; a dim without one has its size in the file, or else 128 within its limits, less if a row would be
    large. Raises `DataDoesNotFit`.
    """
    batch_dim = find_batch_dim(config)
    if batches and batch_dim is None:
        raise DataDoesNotFit("--batch", "the first dim of the first input is fixed", "leave out --batch")
    _check_dims(config, batch_dim, sizes)
    chosen = {**_choose_sizes(config, batch_dim, sources), **sizes}
    cases = []
    for batch in choose_batches(config, batch_dim, batches):
        case_sizes = {**({batch_dim: batch} if batch_dim is not None else {}), **chosen}
        _check_limits(config, case_sizes)
        source = choose_source(config, batch_dim, case_sizes, sources)
        inputs = resize_inputs(config, source.inputs, case_sizes)
        cases.append(Case(batch if batch_dim is not None else 1, case_sizes, source.name, inputs))
    return Plan(batch_dim, tuple(cases), tuple(sorted(set(threads or (1, cores)))))


def find_batch_dim(config: Mapping[str, Any]) -> str | None:
    """Return the dim that counts rows: the first dim of the first input, if it is named."""
    first = config["inputs"][0]["shape"][:1] if config["inputs"] else []
    return first[0] if first and isinstance(first[0], str) else None


def choose_batches(config: Mapping[str, Any], batch_dim: str | None, batches: Sequence[int]) -> list[int]:
    """Return the batch sizes in ascending order: as asked for, or the default ones moved into the limits."""
    if batches or batch_dim is None:
        return sorted(set(batches or (1,)))
    return sorted({_clamp(config["dims"][batch_dim], size) for size in _DEFAULT_BATCHES})


def choose_source(
    config: Mapping[str, Any], batch_dim: str | None, sizes: Sizes, sources: Sequence[SourceCase]
) -> SourceCase:
    """Choose the source whose sizes are nearest, and random values where there is a choice.

    Repeating keeps a length or an index valid and cutting may not, so a source that is too large comes last. Sources
    with an empty array have no values; without any source, the values are zeros.
    """
    usable = [source for source in sources if all(array.size for array in source.inputs.values())]
    if not usable:
        return SourceCase("zeros", "low", {tensor["name"]: _make_zeros(tensor) for tensor in config["inputs"]})

    def rank(source: SourceCase) -> tuple[float, bool, float]:
        actual = read_sizes(config, source.inputs)
        factors = {dim: math.log2(max(actual.get(dim, size), 1) / max(size, 1)) for dim, size in sizes.items()}
        batch = 0.0 if batch_dim is None else abs(factors.pop(batch_dim))
        others = sum(factor + _TOO_LARGE if factor > 0 else -factor for factor in factors.values())
        return others, source.fill != "random", batch

    return min(usable, key=rank)


def read_sizes(config: Mapping[str, Any], inputs: Mapping[str, Array]) -> dict[str, int]:
    """Return the sizes of the named dims in arrays, as far as these have the signature's names and ranks."""
    sizes: dict[str, int] = {}
    for tensor in config["inputs"]:
        array = inputs.get(tensor["name"])
        if array is not None and array.ndim == len(tensor["shape"]):
            pairs = zip(tensor["shape"], array.shape, strict=True)
            sizes.update({dim: size for dim, size in pairs if isinstance(dim, str)})
    return sizes


def resize_inputs(config: Mapping[str, Any], inputs: Mapping[str, Array], sizes: Sizes) -> dict[str, Array]:
    """Repeat or cut arrays along their named dims. What does not fit the signature is left for the loader to refuse."""
    shapes = {tensor["name"]: tensor["shape"] for tensor in config["inputs"]}
    resized = {}
    for name, array in inputs.items():
        shape = shapes.get(name, ())
        for axis, dim in enumerate(shape if len(shape) == array.ndim else ()):
            size = sizes.get(dim, array.shape[axis]) if isinstance(dim, str) else array.shape[axis]
            if size != array.shape[axis]:
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
        resized[name] = np.asarray(array, order="C")
    return resized


def _choose_sizes(config: Mapping[str, Any], batch_dim: str | None, sources: Sequence[SourceCase]) -> dict[str, int]:
    """Choose the sizes of all dims but the batch."""
    dims = {name: limits for name, limits in config["dims"].items() if name != batch_dim}
    for source in sources:
        if source.is_file:
            return {name: size for name, size in read_sizes(config, source.inputs).items() if name in dims}
    default = _DEFAULT_SIZE
    while True:
        chosen = {name: _clamp(limits, default) for name, limits in dims.items()}
        if (
            default == 1
            or _count_row_bytes(config, {**chosen, **({batch_dim: 1} if batch_dim else {})}) <= _MAX_ROW_BYTES
        ):
            return chosen
        default //= 2


def _count_row_bytes(config: Mapping[str, Any], sizes: Sizes) -> int:
    shapes = [[sizes[dim] if isinstance(dim, str) else dim for dim in tensor["shape"]] for tensor in config["inputs"]]
    return sum(8 * math.prod(shape) for shape in shapes)


def _check_dims(config: Mapping[str, Any], batch_dim: str | None, sizes: Sizes) -> None:
    for name in sizes:
        if name == batch_dim:
            raise DataDoesNotFit("--dim", f"{name} is the batch size", "use --batch")
        if name not in config["dims"]:
            names = list(config["dims"])
            raise DataDoesNotFit(
                "--dim", f"the bundle has no dim {name!r}", did_you_mean(name, names) or "leave it out"
            )


def _check_limits(config: Mapping[str, Any], sizes: Sizes) -> None:
    for name, size in sizes.items():
        limits = config["dims"][name]
        if _clamp(limits, size) != size:
            at_most = "" if limits["max"] is None else f" and at most {limits['max']}"
            why = f"{name} is {size}, and must be at least {limits['min']}{at_most}"
            raise DataDoesNotFit("the sizes to measure", why, "choose other sizes with --batch and --dim")


def _clamp(limits: Mapping[str, Any], size: int) -> int:
    smallest, largest = int(limits["min"]), size if limits["max"] is None else int(limits["max"])
    return max(smallest, min(size, largest))


def _make_zeros(tensor: Mapping[str, Any]) -> Array:
    dtype = "float32" if tensor["dtype"] == "bfloat16" else tensor["dtype"]
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in tensor["shape"]], dtype)
