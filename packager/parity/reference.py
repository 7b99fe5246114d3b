"""Measure the reference: what the module returns for every test case, and how far an artifact may be from it.

The expected outputs are those of the eager module as the user wrote it, in its own dtypes. The tolerance is not a
constant: it follows from the noise of the module's own arithmetic on these inputs (`noise_measurement`). An artifact is
also compared with the module run in float64, on the test cases where it was.

The builder calls the functions of this module, and those of `forward` and `noise_measurement` through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from packager.errors import DecisionDoesNotFit, NoiseTooLarge, OutputsUnsupported, did_you_mean
from packager.model.loader import LoadedModel
from packager.parity.amendments import describe_uncertain_case, find_largest_noise
from packager.parity.cases.sample_grid import Grid
from packager.parity.forward import check_repeatable as check_repeatable
from packager.parity.forward import drop_nothing_but_padding as drop_nothing_but_padding
from packager.parity.forward import drop_refused_masks as drop_refused_masks
from packager.parity.forward import run_case as run_case
from packager.parity.forward import run_first_case as run_first_case
from packager.parity.noise_measurement import NoiseMeasurement as NoiseMeasurement
from packager.parity.noise_measurement import (
    OutputDifferences,
    compare_outputs,
    find_uncertain_cases,
    measure_output_noise,
)
from packager.parity.noise_measurement import measure_noise as measure_noise
from packager.parity.noise_variants import FLOAT64
from packager.parity.nudges import run_nudged
from packager.parity.numerics.compare import Array, ElementTolerance, is_float
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.tolerances import NOISE_MULTIPLE, derive_tolerance
from packager.parity.numerics.verdict import CaseNoise, ReferenceCase
from packager.parity.results import OutputNoise, Reference
from packager.parity.ties import EagerRun, find_tied_output, replace_tied_cases
from packager.project.manifest import ExplicitTolerance, Project

_TIE_SHARE = 2 / NOISE_MULTIPLE
"""How close two scores are at a tie, as a share of their tolerance.

PyTorch and the artifact may each be one noise floor from the true result, so two noise floors apart, of the
tolerance's eight. Of an explicit tolerance it is the same share: if it were the whole, every decision that the
tolerance lets change would count as a tie.
"""

_KEPT_STATE = "state that forward() keeps from its first call: the module cannot be copied"
_EMPTY_MASKS = "rows of zeros in a mask: forward() raises an exception on them"
_NOTHING_BUT_PADDING = "nothing but padding: the fast path of nn.TransformerEncoder raises an exception on it"
_NOTHING_BUT_EMPTY_MASKS = "a mask of nothing but zeros: forward() raises an exception on it"


def resolve_decisions(project: Project, outputs: Mapping[str, Array]) -> dict[str, DecisionRule]:
    """Check the decisions that the manifest declares against the outputs of one forward pass; returns them by output.

    Raises:
        OutputsUnsupported: an output has the name of an input.
        DecisionDoesNotFit: there is no such output, it is not a float output, or it lacks the axis.
    """
    shared = [name for name in outputs if name in project.manifest.inputs]
    if shared:
        why = f"{shared[0]!r} is the name of an input and of an output of forward()"
        raise OutputsUnsupported(project.field_location("inputs", shared[0]), why, "name the outputs in the manifest")
    parity = project.manifest.parity
    decisions = {}
    for name in parity.decisions:
        spec, location = parity.decision_for(name), project.field_location("parity", "decisions", name)
        assert spec is not None
        if name not in outputs:
            raise DecisionDoesNotFit(location, f"there is no output {name!r}", did_you_mean(name, list(outputs)))
        array = outputs[name]
        if not is_float(array):
            raise DecisionDoesNotFit(location, f"{name} is {array.dtype}", "decisions are taken on float scores")
        if not spec.rule.startswith("threshold") and not -array.ndim <= spec.axis < array.ndim:
            why = f"axis {spec.axis} is out of range: {name} has rank {array.ndim}"
            raise DecisionDoesNotFit(location, why, "axis 0 is the first, axis -1 the last")
        decisions[name] = DecisionRule(spec.rule, spec.axis, _TIE_SHARE)
    return decisions


def measure_reference(
    project: Project,
    model: LoadedModel,
    grid: Grid,
    measurement: NoiseMeasurement,
    *,
    probe: tuple[ReferenceCase, ...],
    has_discrete_decisions: bool,
) -> Reference:
    """Run the module on every test case and derive the tolerance of every output.

    `measurement` holds the evaluations, and outputs that need not be computed again. `probe` is what `measure_probe`
    returned. `has_discrete_decisions` says whether the module has operations whose result a tie may decide: an order,
    an index, a step.

    Raises:
        ForwardFailed, OutputsUnsupported: as `run_case` does; also if the outputs differ from size to size.
        DecisionDoesNotFit: as `resolve_decisions` does.
        DecidedByTies: as `replace_tied_cases` does.
        NoiseTooLarge: as `_drop_uncertain_cases` does.
    """
    runs: list[EagerRun] = [
        (case, measurement.outputs.get(case.name) or run_case(project, model, case)) for case in grid.cases
    ]
    names = tuple(runs[0][1])
    for case, outputs in runs:
        if tuple(outputs) != names:
            why = f"{', '.join(outputs)} at {dict(case.sizes)}, {', '.join(names)} at {dict(grid.cases[0].sizes)}"
            raise OutputsUnsupported(project.field_location("inputs"), why, "return the same outputs at every size")
    decisions = resolve_decisions(project, runs[0][1])
    uncompared: tuple[str, ...] = ()
    if has_discrete_decisions:
        runs, uncompared = replace_tied_cases(project, model, runs)
    if grid.skipped_cases:
        expensive = f"too expensive for the effort {project.manifest.parity.effort!r}"
        uncompared = (*uncompared, f"{', '.join(grid.skipped_cases)}: {expensive}")
    if model.pristine is None:
        uncompared = (*uncompared, _KEPT_STATE)
    refused = [case for case in grid.cases if "low, unmasked" in case.value_kinds]
    if refused:
        is_mixed = any(len(case.value_kinds) > 1 for case in refused)
        uncompared = (*uncompared, _EMPTY_MASKS if is_mixed else _NOTHING_BUT_EMPTY_MASKS)
    if grid.padding_cases:
        uncompared = (*uncompared, _NOTHING_BUT_PADDING)
    runs, differences, uncertain = _drop_uncertain_cases(project, measurement, runs, len(grid.cases))
    reference_cases, noise, coarse = _make_reference_cases(project, measurement, runs, differences, decisions)
    uncompared = (*uncompared, *uncertain, *coarse)
    return Reference(reference_cases, noise, names, tuple(case for case, _ in runs), uncompared, probe)


def measure_probe(
    project: Project, model: LoadedModel, grid: Grid, measurement: NoiseMeasurement, *, has_discrete_decisions: bool
) -> tuple[ReferenceCase, ...]:
    """Return the probe case with its tolerances, before the other test cases run, so that every pass can be compared.

    The tolerances follow from the outputs known so far. Returns nothing if that case proves nothing: a tie decides its
    outputs, they are empty, or the module's own arithmetic is uncertain there.

    Raises:
        NoiseTooLarge: as `_drop_uncertain_cases` does.
    """
    runs: list[EagerRun] = [
        (case, measurement.outputs[case.name]) for case in grid.cases if case.name in measurement.outputs
    ]
    outputs = measurement.outputs[grid.probe_case.name]
    if not any(array.size for array in outputs.values()):
        return ()
    if has_discrete_decisions and find_tied_output(outputs, run_nudged(project, model, grid.probe_case)):
        return ()
    runs, differences, _ = _drop_uncertain_cases(project, measurement, runs, len(grid.cases))
    reference_cases, _, _ = _make_reference_cases(project, measurement, runs, differences, {})
    return tuple(case for case in reference_cases if case.name == grid.probe_case.name)


def _drop_uncertain_cases(
    project: Project, measurement: NoiseMeasurement, runs: Sequence[EagerRun], case_count: int
) -> tuple[list[EagerRun], dict[str, OutputDifferences], tuple[str, ...]]:
    """Leave out the test cases on which the module's own arithmetic is uncertain.

    Returns the others, how far the evaluations are from their outputs, by output (nothing if the tolerance is
    explicit), and notes.

    Raises:
        NoiseTooLarge: those are more than half of all `case_count`, or all that were evaluated in every way.
    """
    if isinstance(project.manifest.parity.tolerance, ExplicitTolerance):
        return list(runs), {}, ()
    dropped: dict[str, CaseNoise] = {}
    kept, measured = list(runs), measurement.list_fully_measured_cases()
    differences = compare_outputs(measurement, {case.name: arrays for case, arrays in kept})
    # The scale follows from all that are compared, so once some are left out, others may be uncertain.
    while more := find_uncertain_cases(differences):
        dropped.update(more)
        if 2 * len(dropped) > case_count or measured <= set(dropped):
            output, difference, evaluation = find_largest_noise(dropped)
            location = project.field_location("parity")
            raise NoiseTooLarge(location, output, f"{difference:.2g}", evaluation, len(dropped), case_count)
        kept = [(case, arrays) for case, arrays in kept if case.name not in dropped]
        differences = compare_outputs(measurement, {case.name: arrays for case, arrays in kept})
    notes = [
        describe_uncertain_case(case.name, case.value_description, dropped[case.name])
        for case, _ in runs
        if case.name in dropped
    ]
    return kept, differences, tuple(notes)


def _make_reference_cases(
    project: Project,
    measurement: NoiseMeasurement,
    runs: Sequence[EagerRun],
    differences: Mapping[str, OutputDifferences],
    decisions: Mapping[str, DecisionRule],
) -> tuple[tuple[ReferenceCase, ...], dict[str, OutputNoise], tuple[str, ...]]:
    """Return the reference cases of these runs, the noise by output name where it was measured, and notes."""
    derived = {name: _derive_tolerances(project, measurement, runs, name, differences) for name in runs[0][1]}
    float64 = next((variant.outputs for variant in measurement.evaluations if variant.name == FLOAT64), {})
    reference_cases = tuple(
        ReferenceCase(
            case.name,
            case.inputs,
            outputs,
            {name: tolerances[case.name] for name, (_, tolerances) in derived.items()},
            case.sizes,
            # A case that was generated again has other outputs than those that ran in float64.
            _to_float64_outputs(outputs, float64.get(case.name, {}))
            if outputs is measurement.outputs.get(case.name)
            else {},
            decisions,
        )
        for case, outputs in runs
    )
    notes = tuple(
        _describe_small_elements(name, output, derived[name][1])
        for name, output in differences.items()
        if output.limited_by
    )
    return reference_cases, {name: noise for name, (noise, _) in derived.items() if noise is not None}, notes


def _describe_small_elements(
    name: str, differences: OutputDifferences, tolerances: Mapping[str, ElementTolerance]
) -> str:
    """Say which elements of an output are too small to be compared, and why."""
    smallest = max(tolerance.atol for tolerance in tolerances.values())
    return f"elements of {name} smaller than {smallest:.2g}: below the accuracy of {differences.limited_by}"


def _derive_tolerances(
    project: Project,
    measurement: NoiseMeasurement,
    runs: Sequence[EagerRun],
    name: str,
    differences: Mapping[str, OutputDifferences],
) -> tuple[OutputNoise | None, dict[str, ElementTolerance]]:
    """Return the tolerance of one output by case, and the noise behind it if that was measured.

    Integers and booleans must match exactly, whatever tolerance the manifest gives.
    """
    explicit, dtype = project.manifest.parity.tolerance, runs[0][1][name].dtype
    cases = [case.name for case, _ in runs]
    if not is_float(runs[0][1][name]):
        return None, dict.fromkeys(cases, ElementTolerance(0.0, 0.0))
    if isinstance(explicit, ExplicitTolerance):
        return None, dict.fromkeys(cases, ElementTolerance(explicit.atol, explicit.rtol))
    noise, floors = measure_output_noise(measurement, differences[name], dtype)
    return noise, {case: derive_tolerance(floors[case], differences[name].scales[case], dtype) for case in cases}


def _to_float64_outputs(outputs: Mapping[str, Array], float64: Mapping[str, Array]) -> dict[str, Array]:
    """Return the float64 outputs that have the shape of the module's float outputs.

    An element that is NaN or infinite on either side is the module's own: exp(100) overflows in float32 alone, and that
    is no error of an artifact.
    """
    return {
        name: np.where(np.isfinite(array) & np.isfinite(float64[name]), float64[name], array.astype(np.float64))
        for name, array in outputs.items()
        if is_float(array) and name in float64 and float64[name].shape == array.shape
    }
