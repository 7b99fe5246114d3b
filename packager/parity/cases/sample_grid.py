"""Build the grid of test cases: input specs and a seed in, arrays out.

A test case is one complete set of inputs at one choice of sizes for the named dims. `dim_sizes` chooses the sizes and
`generators` draws the values. The test cases of different sizes hold random values; the test cases of every other kind
of values have one size.

Each array is drawn by a generator of its own, `default_rng([seed, index of the case, *bytes of the input's name])`. So
the same manifest gives the same arrays, and an added input, or a larger `parity.samples`, leaves the other arrays as
they are (an added input may add kinds, and so test cases).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from packager.common.array_files import Array
from packager.parity.cases import dim_sizes, generators, user_data
from packager.parity.cases.generators import ValueKind
from packager.project.manifest import DimLimits, InputSpec, Project

ValueKinds = tuple[ValueKind, ...]

_RANDOM: ValueKinds = ("random",)
_FIRST_EXTRA_CASE = 1000  # the index of the first extra case: a grid has far fewer
_ROWS_PER_KIND = 3  # where rows are cheap
_CHEAP_ROW_BYTES = 1 << 16


@dataclass(frozen=True)
class InputCase:
    """One set of inputs: the sizes of the named dims, the kinds of values, and the arrays by input name.

    With several `value_kinds`, the first rows of the batch have one each, and the others are random. They are empty for
    the user's own data. The name is the index of the case with three digits or more, or `data`.
    """

    name: str
    sizes: Mapping[str, int]
    value_kinds: ValueKinds
    inputs: Mapping[str, Array]

    @property
    def value_description(self) -> str:
        """The kinds of values, in words."""
        return ", ".join(self.value_kinds) or "data"

    @property
    def is_constant(self) -> bool:
        """Whether every row has the same value everywhere: zeros, or one end of the range."""
        return bool(self.value_kinds) and set(self.value_kinds) <= set(generators.CONSTANT_KINDS)

    @property
    def element_count(self) -> int:
        """How many elements all inputs have together."""
        return sum(array.size for array in self.inputs.values())


@dataclass(frozen=True)
class Grid:
    """All test cases of a build.

    `example_case` is the one that is traced. `probe_case` differs from it in the size of every dim that can vary, or
    else in its values: it is compared first. `skipped_sizes` describes the sizes that are too large to try, and
    `skipped_cases` the test cases that cost too much. `padding_cases` are the names of those that were left out because
    they are nothing but padding.
    """

    cases: tuple[InputCase, ...]
    example_case: InputCase
    probe_case: InputCase
    skipped_sizes: tuple[str, ...] = field(default=())
    skipped_cases: tuple[str, ...] = field(default=())
    padding_cases: tuple[str, ...] = field(default=())


def build_grid(project: Project) -> Grid:
    """Build the test cases of a manifest, in a fixed order.

    Raises:
        DataDoesNotFit: `parity.data` cannot be read, or does not fit the inputs.
    """
    manifest = project.manifest
    limits = manifest.dim_limits()
    example_sizes = dim_sizes.choose_example_sizes(limits)
    varied = _plan_varied_cases(manifest.inputs, limits, example_sizes)
    sizes, skipped = dim_sizes.choose_sizes(limits, example_sizes, manifest.inputs, [planned for planned, _ in varied])
    # In the largest cases masks are whole, so that every position counts.
    large_kinds: ValueKinds = ("whole",) if generators.has_mask(tuple(manifest.inputs.values())) else _RANDOM
    planned_cases = [
        (chosen, large_kinds if max(chosen.values(), default=0) > dim_sizes.MODERATE_SIZE else _RANDOM)
        for chosen in sizes
    ] + varied
    small = dim_sizes.choose_small_sizes(manifest.inputs, limits)
    rows = sum(dim_sizes.count_rows(manifest.inputs, planned) for planned, _ in planned_cases)
    while rows < manifest.parity.samples:
        planned_cases.append((small, _RANDOM))
        rows += dim_sizes.count_rows(manifest.inputs, small)
    cases = [_make_case(project, planned, kinds, index) for index, (planned, kinds) in enumerate(planned_cases)]
    example = next(case for case in cases if case.sizes == example_sizes)
    probe = max(
        (case for case in cases if case.value_kinds == _RANDOM),
        key=lambda case: (
            sum(case.sizes[dim] != size for dim, size in example_sizes.items()),
            0 not in case.sizes.values(),  # an empty array compares nothing
            case is not example,
        ),
    )
    if manifest.parity.data is not None:
        data_sizes, arrays = user_data.load_data(project, manifest.parity.data)
        cases.append(InputCase("data", data_sizes, (), arrays))
    return Grid(tuple(cases), example, probe, skipped)


def drop_expensive_cases(project: Project, grid: Grid, estimate: Callable[[InputCase], float], budget: float) -> Grid:
    """Keep the test cases that fit the budget together; `estimate` returns the cost of one, in the unit of the budget.

    The example, the probe and the user's own data are always kept, and as many others as it takes to reach the samples
    that the manifest asks for. Test cases of varied values come first, then sizes, then constant values, the cheaper
    ones first. A batch that costs too much is halved until it fits.
    """
    inputs, parity = project.manifest.inputs, project.manifest.parity
    required = (grid.example_case.name, grid.probe_case.name)
    kept = {case.name: case for case in grid.cases if case.name in required or not case.value_kinds}
    left = budget - sum(estimate(case) for case in kept.values())
    missing = parity.samples if "samples" in parity.model_fields_set else 0
    missing -= sum(dim_sizes.count_rows(inputs, case.sizes) for case in kept.values() if case.value_kinds)
    skipped = []
    for case in sorted(grid.cases, key=lambda case: (_rank_values(case), estimate(case), case.name)):
        if case.name in kept:
            continue
        for smaller in (case, *_halve_batch(project, case)):
            if estimate(smaller) <= left or missing > 0:
                kept[case.name] = smaller
                left -= estimate(smaller)
                missing -= dim_sizes.count_rows(inputs, smaller.sizes)
                break
        if kept.get(case.name) is not case:
            skipped.append(_describe_case(case))
    cases = tuple(kept[case.name] for case in grid.cases if case.name in kept)
    return replace(grid, cases=cases, skipped_cases=tuple(dict.fromkeys(skipped)))


def _rank_values(case: InputCase) -> int:
    """Return when a test case is chosen: 0 if its values are varied, 1 if they are random, 2 if they are constant."""
    if set(case.value_kinds) <= {"random", "whole"}:
        return 1
    return 2 if case.is_constant else 0


def _halve_batch(project: Project, case: InputCase) -> Iterator[InputCase]:
    """Yield the test case with half its batch, a quarter, and so on, as long as the batch is a large one."""
    batch = dim_sizes.get_batch_dim(project.manifest.inputs)
    size = 0 if batch is None else case.sizes[batch]
    while batch is not None and size // 2 > max(_ROWS_PER_KIND, project.manifest.dim_limits()[batch].min):
        size //= 2
        yield redraw_case(project, case.name, {**case.sizes, batch: size}, case.value_kinds)


def _describe_case(case: InputCase) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in case.sizes.items())
    return f"{case.value_description} values" + (f" at {sizes}" if sizes else "")


def redraw_without_empty_masks(project: Project, case: InputCase) -> InputCase:
    """Draw the test case again with whole masks in the place of those that are empty because all values are low."""
    kinds: ValueKinds = tuple("low, unmasked" if kind == "low" else kind for kind in case.value_kinds)
    return redraw_case(project, case.name, case.sizes, kinds)


def draw_extra_case(project: Project, number: int, rows: int) -> InputCase:
    """Draw the `number`-th test case beyond the grid, with a batch of up to `rows`.

    The even ones are random, the odd ones of the other kinds in turn, without the constant ones. Integers of a small
    range continue where the last random extra case stopped, so that soon every value has been drawn.
    """
    inputs, limits = project.manifest.inputs, project.manifest.dim_limits()
    kinds = [
        kind for kind in generators.select_kinds(tuple(inputs.values())) if kind not in generators.CONSTANT_KINDS
    ] or ["random"]
    small, batch = dim_sizes.choose_small_sizes(inputs, limits), dim_sizes.get_batch_dim(inputs)
    sizes = small if batch is None else {**small, batch: dim_sizes.clamp(rows, limits[batch])}
    kind: ValueKind = "random" if number % 2 == 0 else kinds[number // 2 % len(kinds)]
    return redraw_case(project, f"{_FIRST_EXTRA_CASE + number}", sizes, (kind,))


def redraw_case(project: Project, name: str, sizes: Mapping[str, int], kinds: ValueKinds) -> InputCase:
    """Draw the test case of this name, these sizes and kinds: the same arrays every time. `name` is a number."""
    return _make_case(project, sizes, kinds, int(name))


def redraw_less_tied(project: Project, case: InputCase) -> InputCase | None:
    """Draw a test case of the same sizes in which fewer values are equal.

    It first loses its constant kinds, then all kinds but random. Returns None if nothing is left to lose, and for the
    user's own data.
    """
    if case.value_kinds in ((), _RANDOM, ("whole",)):
        return None
    kept = tuple(kind for kind in case.value_kinds if kind not in generators.CONSTANT_KINDS)
    kinds = kept if kept and kept != case.value_kinds else _RANDOM
    return _make_case(project, case.sizes, kinds, int(case.name))


def _plan_varied_cases(
    inputs: Mapping[str, InputSpec], limits: Mapping[str, DimLimits], example: Mapping[str, int]
) -> list[tuple[dict[str, int], ValueKinds]]:
    """Plan the test cases that vary the values: sizes and kinds.

    Every kind has a row in a batch of others, and random values have a case whose batch is a prime. If rows are cheap,
    every kind has a case of a few rows of its own too. Constant kinds always have, as their noise can be ten times that
    of others.
    """
    kinds = generators.select_kinds(tuple(inputs.values()))
    small, batch = dim_sizes.choose_small_sizes(inputs, limits), dim_sizes.get_batch_dim(inputs)
    if batch is None:
        return [(small, (kind,)) for kind in kinds]
    prime = {**small, batch: dim_sizes.clamp(dim_sizes.next_prime(example[batch]), limits[batch])}
    if dim_sizes.count_case_bytes(inputs, prime) > dim_sizes.MAX_CASE_BYTES:
        prime = small
    constant = tuple(kind for kind in kinds if kind in generators.CONSTANT_KINDS)
    others = tuple(kind for kind in kinds if kind not in generators.CONSTANT_KINDS)
    alone: list[tuple[dict[str, int], ValueKinds]] = [(small, (kind,)) for kind in constant]
    if dim_sizes.count_case_bytes(inputs, {**small, batch: 1}) <= _CHEAP_ROW_BYTES:
        few = {**small, batch: dim_sizes.clamp(_ROWS_PER_KIND, limits[batch])}
        mixed = [part for part in _split_kinds((*kinds, *_RANDOM), prime[batch]) if len(part) > 1]
        return [(prime, _RANDOM), *((few, (kind,)) for kind in others), *alone, *((prime, part) for part in mixed)]
    varied = _split_kinds((*others, *_RANDOM), prime[batch])
    mixed = [part for part in _split_kinds(constant, prime[batch]) if len(part) > 1]
    return [*((prime, part) for part in varied), *alone, *((prime, part) for part in mixed)]


def _split_kinds(kinds: ValueKinds, rows: int) -> list[ValueKinds]:
    """Split kinds into parts that each fit a batch of so many rows."""
    return [kinds[start : start + max(1, rows)] for start in range(0, len(kinds), max(1, rows))]


def _make_case(project: Project, sizes: Mapping[str, int], kinds: ValueKinds, index: int) -> InputCase:
    inputs, seed = project.manifest.inputs, project.manifest.parity.seed
    batch = dim_sizes.get_batch_dim(inputs)
    arrays = {}
    for name, spec in inputs.items():
        shape = dim_sizes.resolve_shape(spec.shape, sizes)
        if index >= _FIRST_EXTRA_CASE and kinds == _RANDOM and generators.is_enumerable(spec):
            generator = np.random.default_rng([seed, _FIRST_EXTRA_CASE, *name.encode()])  # one order for all of them
            arrays[name] = generators.enumerate_values(spec, shape, (index - _FIRST_EXTRA_CASE) // 2, generator)
        else:
            generator = np.random.default_rng([seed, index, *name.encode()])
            arrays[name] = _draw_input(spec, shape, kinds, batch, generator)
    return InputCase(f"{index:03}", dict(sizes), kinds, arrays)


def _draw_input(
    spec: InputSpec, shape: tuple[int, ...], kinds: ValueKinds, batch: str | None, generator: np.random.Generator
) -> Array:
    """Draw one input: as a whole, or row by row with the kinds in turn; at random if it has no rows among others' rows.

    Integers without rows, such as the edges of a graph, are extremes where rows are: few indices, again and again.
    Vanishing values are drawn as a whole, so that the few subnormal numbers are few in the array and not in each row.
    """
    has_rows = spec.shape[:1] == [batch]
    if kinds == _RANDOM or batch is None or (has_rows and kinds == ("vanishing",)):
        return generators.draw_values(spec, shape, kinds[0], generator)
    if has_rows and shape[0] > 0:
        rows = kinds * shape[0] if len(kinds) == 1 else (*kinds, *_RANDOM * shape[0])
        return np.stack([generators.draw_values(spec, shape[1:], kind, generator) for kind in rows[: shape[0]]])
    kind: ValueKind = "extremes" if "extremes" in kinds and generators.is_enumerable(spec) else "random"
    return generators.draw_values(spec, shape, kind, generator)
