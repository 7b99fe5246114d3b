"""Evaluate the module in every way on one test case, before an artifact that fails on it is called wrong."""

from __future__ import annotations

import math

import numpy as np

from packager.model.loader import LoadedModel
from packager.parity.amendments import get_scale
from packager.parity.cases.sample_grid import InputCase
from packager.parity.noise_measurement import compare_evaluations
from packager.parity.noise_variants import FLOAT64, evaluate_every_way
from packager.parity.numerics.compare import Array
from packager.parity.numerics.verdict import CaseNoise, ReferenceCase
from packager.project.manifest import Project


def remeasure_case(project: Project, model: LoadedModel, case: InputCase, expected: ReferenceCase) -> CaseNoise:
    """Return how far every evaluation is from the module's outputs on a test case, relative to |expected| + scale.

    By output name, for the float outputs, and by evaluation. The difference is infinite if an element is a number in
    only one of the two: where PyTorch gives NaN and, computing the same in another way, a number, neither is right.
    float64 does not count, as exp(100) is a number there alone.
    """
    evaluations = evaluate_every_way(project, model, case, expected.outputs)
    outputs = {case.name: expected.outputs}
    noise: dict[str, dict[str, float]] = {}
    for name, tolerance in expected.tolerances.items():
        parts = compare_evaluations(evaluations, outputs, name, {case.name: get_scale(tolerance)})
        noise[name] = {evaluation: differences[case.name] for evaluation, differences in parts.items()}
        noise[name] |= {
            evaluation.name: math.inf
            for evaluation in evaluations
            if evaluation.name in parts and evaluation.name != FLOAT64
            if _differ_in_finiteness(evaluation.outputs[case.name][name], expected.outputs[name])
        }
    return noise


def _differ_in_finiteness(array: Array, other: Array) -> bool:
    return not np.array_equal(np.isfinite(array), np.isfinite(other))
