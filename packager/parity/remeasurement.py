"""Evaluate the module in every way on one test case, before an artifact that fails on it is called wrong."""

from __future__ import annotations

from packager.model.loader import LoadedModel
from packager.parity.amendments import get_scale
from packager.parity.cases.sample_grid import InputCase
from packager.parity.noise_measurement import compare_evaluations
from packager.parity.noise_variants import evaluate_every_way
from packager.parity.numerics.verdict import CaseNoise, ReferenceCase
from packager.project.manifest import Project


def remeasure_case(project: Project, model: LoadedModel, case: InputCase, expected: ReferenceCase) -> CaseNoise:
    """Return how far every evaluation is from the module's outputs on a test case, relative to |expected| + scale.

    By output name, for the float outputs, and by evaluation.
    """
    evaluations = evaluate_every_way(project, model, case, expected.outputs)
    outputs = {case.name: expected.outputs}
    noise: dict[str, dict[str, float]] = {}
    for name, tolerance in expected.tolerances.items():
        parts = compare_evaluations(evaluations, outputs, name, {case.name: get_scale(tolerance)})
        noise[name] = {evaluation: differences[case.name] for evaluation, differences in parts.items()}
    return noise
