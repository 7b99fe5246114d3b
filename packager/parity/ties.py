"""Replace or leave out the test cases on which a tie decides the outputs.

If a module orders, indexes or branches, a tie may decide the result: two scores that are equal, or nearly. PyTorch and
a correct artifact may then break it differently, so no artifact can be judged by such a case. Inputs moved by a few
roundings (`packager.parity.nudges`) show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from packager.errors import DecidedByTies, OutputsNan
from packager.model.loader import LoadedModel
from packager.parity.cases import sample_grid
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import run_case
from packager.parity.nudges import run_nudged
from packager.parity.numerics.compare import Array, is_float
from packager.parity.numerics.tolerances import (
    MAX_TOLERANCE_SHARE,
    NOISE_MULTIPLE,
    estimate_scales,
    measure_relative_difference,
)
from packager.project.manifest import Project

EagerRun = tuple[InputCase, Mapping[str, Array]]
"""A test case, and what the module returned for it, by output name."""


def replace_tied_cases(
    project: Project, model: LoadedModel, runs: Sequence[EagerRun]
) -> tuple[list[EagerRun], tuple[str, ...]]:
    """Keep the test cases on which no tie decides an output.

    The others are generated again with values of which fewer are equal, or left out if that does not help. Returns the
    cases with their outputs, and a note on each that was replaced or left out.

    Raises:
        DecidedByTies: less than half of the cases are kept.
        OutputsNan: as above, where most of the others are left out because of NaN rather than a tie.
    """
    kept: list[EagerRun] = []
    notes: list[str] = []
    examples: dict[bool, list[str]] = {True: [], False: []}  # by whether NaN is the cause
    for original, original_outputs in runs:
        case: InputCase | None = original
        outputs, causes = original_outputs, []
        while case is not None:
            nudged = run_nudged(project, model, case)
            tied_output = find_tied_output(outputs, nudged)
            causes.append((_find_unsteady_nan(outputs, nudged), tied_output))
            if not tied_output:
                kept.append((case, outputs))
                break
            case = sample_grid.redraw_less_tied(project, case)
            outputs = outputs if case is None else run_case(project, model, case)
        if case is original:
            continue
        (nan_output, _), (_, tied_output) = causes[0], causes[-1]
        cause = f"a tie decides {'the outputs' if case is not None else tied_output}"
        if nan_output:
            cause = f"rounding errors decide whether PyTorch's own {nan_output} is NaN"
        example = f"{original.name} ({original.value_description}), where {cause}"
        if case is None:
            examples[bool(nan_output)].append(example)
        outcome = "it is left out" if case is None else "it was generated again with other values"
        notes.append(f"case {example}: {outcome}")
    if 2 * len(kept) < len(runs):
        error = OutputsNan if len(examples[True]) > len(examples[False]) else DecidedByTies
        example = (examples[True] if error is OutputsNan else examples[False])[-1]
        raise error(project.field_location("parity"), example, len(kept), len(runs))
    return kept, tuple(notes)


def _find_unsteady_nan(outputs: Mapping[str, Array], nudged: Mapping[str, Array]) -> str:
    """Return the name of the first float output with a NaN that a nudge moves; empty if there is none.

    No tie makes a NaN, unlike an infinity, which often masks what was not selected.
    """
    return next(
        (
            name
            for name, array in outputs.items()
            if is_float(array)
            and nudged[name].shape == array.shape
            and np.any(np.isnan(array) != np.isnan(nudged[name]))
        ),
        "",
    )


def find_tied_output(outputs: Mapping[str, Array], nudged: Mapping[str, Array]) -> str:
    """Return the name of the first output that a nudge changes by more than rounding does; empty if none does.

    That is an output of a different shape, or with a different integer, boolean, NaN or infinity, or with a float that
    differs by more than the largest tolerance there can be.
    """
    for name, array in outputs.items():
        other = nudged[name]
        if other.shape != array.shape:
            return name
        if not is_float(array):
            if not np.array_equal(array, other):
                return name
        elif (
            not _same_nonfinite(array, other)
            or NOISE_MULTIPLE * measure_relative_difference(array, other, estimate_scales([array])[0])
            >= MAX_TOLERANCE_SHARE
        ):
            return name
    return ""


def _same_nonfinite(array: Array, other: Array) -> bool:
    """Return whether NaN and infinities are in the same positions: they often mask what was not selected."""
    left, right = array.astype(np.float64), other.astype(np.float64)
    return bool(((np.isfinite(left) & np.isfinite(right)) | (left == right) | (np.isnan(left) & np.isnan(right))).all())
