"""Measure the noise floor: how far evaluations that are equal in mathematics are from the module's own outputs.

`measure_noise` runs the evaluations before anything is exported. `measure_output_noise` derives the noise floors of one
output from them, once the outputs of all test cases are known:

    noise(case) = max over evaluations of max over elements of |output - other| / (|other| + scale)

`packager.parity.numerics.tolerances` says what the scale is, how a case without every evaluation gets its noise floor,
and how large the tolerance is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from packager.model.loader import LoadedModel
from packager.parity.amendments import is_too_large
from packager.parity.cases.sample_grid import Grid
from packager.parity.cost import NOISE_SHARE, OPERATIONS, ForwardCost
from packager.parity.forward import check_repeatable, run_case
from packager.parity.noise_cases import choose_noise_cases
from packager.parity.noise_variants import ROW_BY_ROW, RUNTIME_FUNCTIONS, Evaluation, evaluate_variants
from packager.parity.numerics.compare import Array, is_float
from packager.parity.numerics.tolerances import (
    SMALL_QUANTILE,
    derive_noise_floors,
    estimate_scales,
    get_minimum_noise,
    measure_relative_difference,
)
from packager.parity.numerics.verdict import CaseNoise
from packager.parity.results import OutputNoise
from packager.project.manifest import ExplicitTolerance, Project

_MAX_ROW_NOISE_RATIO = 100
"""Row by row, a module whose rows depend on each other computes something else: its differences are no noise. That
shows in a difference of more than this many times the largest of the other evaluations."""

_LARGER_QUANTILES = (0.5, 0.75, 0.9, 0.99)
"""Which elements set the scale of an output whose small ones are below the accuracy of onnxruntime's functions. At
least one in a hundred is larger."""

_MAX_ROUNDS = 3
"""How often test cases are chosen, if the module's own arithmetic is uncertain on those chosen before."""


@dataclass(frozen=True)
class NoiseMeasurement:
    """The evaluations of the module, and the outputs of the module itself that are known by now, by case and name.

    There are no evaluations if the tolerance is explicit.
    """

    evaluations: tuple[Evaluation, ...]
    outputs: Mapping[str, Mapping[str, Array]]

    def list_fully_measured_cases(self) -> set[str]:
        """Return the names of the cases with every evaluation; without float64, those with the first that there is."""
        return set(next((evaluation.outputs for evaluation in self.evaluations if evaluation.outputs), {}))


def measure_noise(
    project: Project,
    model: LoadedModel,
    grid: Grid,
    outputs: Mapping[str, Mapping[str, Array]],
    cost: ForwardCost,
) -> NoiseMeasurement:
    """Evaluate the module in other ways on a few test cases, unless the tolerance is explicit.

    If its arithmetic is uncertain on all that were evaluated in every way, others are: those prove nothing, and an
    expensive module may have a single one. `outputs` are those already known, by case and output name; they are not
    computed again.

    Raises:
        ForwardFailed, OutputsUnsupported: as `run_case` does.
        ForwardChangesWeights, NotRepeatable: as `check_repeatable` does.
    """
    for case in (
        grid.example_case,
        grid.probe_case,
    ):  # the module's first call; check_repeatable's first is the probe
        if case.name not in outputs:
            outputs = {**outputs, case.name: run_case(project, model, case)}
    check_repeatable(project, model, grid, outputs[grid.probe_case.name])
    if isinstance(project.manifest.parity.tolerance, ExplicitTolerance):
        return NoiseMeasurement((), outputs)
    measurement = NoiseMeasurement((), outputs)
    for _ in range(_MAX_ROUNDS):
        measurement = _measure_more(project, model, grid, cost, measurement)
        cases = measurement.list_fully_measured_cases()
        if not cases or not cases <= _find_uncertain_cases(measurement).keys():
            break
        grid = _leave_out(grid, {name for evaluation in measurement.evaluations for name in evaluation.outputs})
        if not grid.cases:
            break
    return measurement


def _measure_more(
    project: Project, model: LoadedModel, grid: Grid, cost: ForwardCost, known: NoiseMeasurement
) -> NoiseMeasurement:
    """Evaluate the module on a few test cases of a grid, and add that to what is known."""
    noise_cases = choose_noise_cases(grid, cost.estimate, NOISE_SHARE * OPERATIONS[project.manifest.parity.effort])
    measured = {
        case.name: known.outputs.get(case.name) or run_case(project, model, case) for case in noise_cases.all_cases()
    }
    evaluations = {evaluation.name: evaluation for evaluation in known.evaluations}
    for evaluation in evaluate_variants(project, model, noise_cases, measured):
        earlier = evaluations.get(evaluation.name, evaluation)
        outputs = {**earlier.outputs, **evaluation.outputs}
        evaluations[evaluation.name] = replace(evaluation, outputs=outputs)
    return NoiseMeasurement(tuple(evaluations.values()), {**known.outputs, **measured})


def _find_uncertain_cases(measurement: NoiseMeasurement) -> dict[str, CaseNoise]:
    """Find those among the test cases whose outputs are known."""
    return find_uncertain_cases(compare_outputs(measurement, measurement.outputs))


@dataclass(frozen=True)
class OutputDifferences:
    """How far every evaluation of one float output is from the module's own output.

    `scales` are by case, in the unit of the output. `parts` are the relative differences by evaluation and case. If
    smaller elements are below the accuracy of onnxruntime's functions, `limited_by` is the evaluation that has them.
    """

    scales: Mapping[str, float]
    parts: Mapping[str, Mapping[str, float]]
    limited_by: str = ""


def compare_outputs(
    measurement: NoiseMeasurement, outputs: Mapping[str, Mapping[str, Array]]
) -> dict[str, OutputDifferences]:
    """Compare the evaluations of every float output with the module's own outputs; returns them by output.

    `outputs` are by case and output name.
    """
    names = [name for name, array in next(iter(outputs.values())).items() if is_float(array)]
    return {name: _compare_output(measurement, outputs, name) for name in names}


def _compare_output(
    measurement: NoiseMeasurement, outputs: Mapping[str, Mapping[str, Array]], name: str
) -> OutputDifferences:
    """Compare one output, relative to the size of a small element, or of a larger one if those are uncertain.

    Most scores of a confident detector are tails of a sigmoid. onnxruntime's Sigmoid is good to 1e-7 of the whole
    range, which is a million times a score of 1e-13. So if that alone, and not the module's own arithmetic, makes more
    than half of the cases uncertain, small elements are compared with the accuracy that larger ones have. Those are
    chosen large enough that the noise of the tails does not widen the relative tolerance, which large ones have too.
    """
    small = _compare_elements(measurement, outputs, name, SMALL_QUANTILE)
    inaccurate = _find_inaccurate_functions(small.parts)
    if not inaccurate:
        return small
    larger = [_compare_elements(measurement, outputs, name, quantile) for quantile in _LARGER_QUANTILES]
    certain = [differences for differences in larger if not _find_inaccurate_functions(differences.parts)]
    noise = [_get_typical_noise(differences.parts, inaccurate) for differences in certain]
    for differences, value in zip(certain, noise, strict=True):
        if value <= 2 * min(noise):
            return replace(differences, limited_by=inaccurate)
    return small


def _get_typical_noise(parts: Mapping[str, Mapping[str, float]], functions: str) -> float:
    """Return the median of the noise of the cases that were evaluated with onnxruntime's functions."""
    noise = [max(by_case.get(case, 0.0) for by_case in parts.values()) for case in parts[functions]]
    return max(get_minimum_noise(np.dtype(np.float32)), float(np.median(noise)))


def _compare_elements(
    measurement: NoiseMeasurement, outputs: Mapping[str, Mapping[str, Array]], name: str, quantile: float
) -> OutputDifferences:
    """Compare one output relative to the size of the elements at a quantile."""
    estimates = estimate_scales([arrays[name] for arrays in outputs.values()], quantile)
    scales = dict(zip(outputs, estimates, strict=True))
    known = _select_unchanged(measurement, outputs)
    return OutputDifferences(scales, compare_evaluations(measurement.evaluations, known, name, scales))


def _find_inaccurate_functions(parts: Mapping[str, Mapping[str, float]]) -> str:
    """Return the evaluation with onnxruntime's functions if it alone makes more than half of its cases uncertain."""
    own = {
        case for evaluation, by_case in parts.items() if not evaluation.startswith(RUNTIME_FUNCTIONS)
        for case, difference in by_case.items() if is_too_large(difference)
    }  # fmt: skip
    for evaluation, by_case in parts.items():
        if evaluation.startswith(RUNTIME_FUNCTIONS):
            inaccurate = {case for case, difference in by_case.items() if is_too_large(difference)} - own
            return evaluation if 2 * len(inaccurate) > len(by_case) else ""
    return ""


def _leave_out(grid: Grid, names: set[str]) -> Grid:
    """Return a grid without these test cases; its example is the smallest of the others."""
    cases = tuple(case for case in grid.cases if case.name not in names)
    smallest = min(cases, key=lambda case: case.element_count, default=grid.example_case)
    return replace(grid, cases=cases, example_case=smallest, probe_case=smallest)


def find_uncertain_cases(outputs: Mapping[str, OutputDifferences]) -> dict[str, CaseNoise]:
    """Find the test cases on which the module's own arithmetic is so uncertain that they prove nothing.

    Returns the noise of each such case by output and evaluation.
    """
    noise: dict[str, dict[str, dict[str, float]]] = {}
    for name, output in outputs.items():
        for evaluation, differences in output.parts.items():
            for case, difference in differences.items():
                if is_too_large(difference):
                    noise.setdefault(case, {}).setdefault(name, {})[evaluation] = difference
    return dict(noise)


def measure_output_noise(
    measurement: NoiseMeasurement, differences: OutputDifferences, dtype: np.dtype[Any]
) -> tuple[OutputNoise, dict[str, float]]:
    """Derive the noise floors of one float output of this dtype: in summary, and by test case."""
    measured: dict[str, float] = {}
    for by_case in differences.parts.values():
        measured.update({case: max(noise, measured.get(case, 0.0)) for case, noise in by_case.items()})
    float64 = measurement.evaluations[0]
    complete = float64.outputs or measured  # cases with every evaluation; without float64, those with any
    floors = derive_noise_floors(
        {case: noise for case, noise in measured.items() if case in complete},
        {case: noise for case, noise in measured.items() if case not in complete},
        list(differences.scales),
        get_minimum_noise(dtype),
    )
    largest = {evaluation: max(by_case.values()) for evaluation, by_case in differences.parts.items()}
    return OutputNoise(max(floors.values()), min(floors.values()), largest, float64.note), floors


def _select_unchanged(
    measurement: NoiseMeasurement, outputs: Mapping[str, Mapping[str, Array]]
) -> dict[str, Mapping[str, Array]]:
    """Return the outputs of the cases that were evaluated and not drawn again since."""
    return {case: arrays for case, arrays in outputs.items() if arrays is measurement.outputs.get(case)}


def compare_evaluations(
    evaluations: Sequence[Evaluation],
    outputs: Mapping[str, Mapping[str, Array]],
    name: str,
    scales: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Return the relative difference of one output by evaluation and case, without evaluations that lack it.

    Row by row, a module whose rows depend on each other computes something else: that is left out too.
    """
    parts: dict[str, dict[str, float]] = {}
    for evaluation in evaluations:
        by_case = {
            case: measure_relative_difference(outputs[case][name], other[name], scales[case])
            for case, other in evaluation.outputs.items()
            if case in outputs and name in other and other[name].shape == outputs[case][name].shape
            if is_float(outputs[case][name])
        }
        if by_case:
            parts[evaluation.name] = by_case
    others = [noise for evaluation, by_case in parts.items() if evaluation != ROW_BY_ROW for noise in by_case.values()]
    least = get_minimum_noise(np.dtype(np.float32))
    if max(parts.get(ROW_BY_ROW, {}).values(), default=0.0) > _MAX_ROW_NOISE_RATIO * max([least, *others]):
        del parts[ROW_BY_ROW]
    return parts
