"""The user's module on every case, and how far an artifact may be from it.

The expected outputs are those of the eager module as the user wrote it, in its own dtypes. How far
an artifact may be from them is measured, not typed in: the module is evaluated again in ways that are
equal in mathematics (`packager.parity.noise`), and the largest difference is its noise floor on these
inputs. Any rearrangement of the same arithmetic (another kernel, a fused operator, another order of
summation) makes an error of that kind, so an artifact passes within a small multiple of it. Where the
module runs in float64, artifacts are held to that too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from packager.common import output_tree
from packager.errors import (
    DecidedByTies,
    DecisionDoesNotFit,
    ForwardChangesWeights,
    ForwardFailed,
    NoiseTooLarge,
    NotRepeatable,
    OutputsUnsupported,
    did_you_mean,
)
from packager.model.importing import format_user_frame
from packager.model.inputs import bind_inputs
from packager.model.loader import LoadedModel
from packager.parity import noise
from packager.parity.cases import generators, sample_grid
from packager.parity.cases.sample_grid import Grid, InputCase
from packager.parity.noise import FLOAT64, ROW_BY_ROW, Evaluation, NoiseCases
from packager.parity.numerics.compare import Array, ElementTolerance, ShapesDiffer, compare
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.tolerances import (
    MAX_TOLERANCE_SHARE,
    NOISE_MULTIPLE,
    derive_noise_floors,
    derive_tolerance,
    estimate_scales,
    get_minimum_noise,
    measure_relative_difference,
)
from packager.parity.numerics.verdict import ReferenceCase
from packager.parity.results import OutputNoise, Reference
from packager.project.manifest import ExplicitTolerance, Project

# Noise is measured on so many cases at most, which together have at most so many input elements,
# absolutely and in multiples of the (small) example's: float64 costs several times what float32 does.
_MAX_NOISE_CASES = 64
_MAX_NOISE_CASES_LARGE_MODEL = 8
_LARGE_PARAMETERS = 1 << 20
_MAX_NOISE_INPUT_ELEMENTS = 1 << 19
_MAX_NOISE_EXAMPLES = 64
_FEW_INPUT_ELEMENTS = 1 << 16  # are few enough in any case
_MAX_ROW_NOISE_RATIO = 100  # times the other noise: rows that differ by more depend on each other
_NOT_COPIED = "what forward() keeps from its first call, as the module cannot be copied"
_ROWS_OF_ZEROS = "rows of zeros in a mask, on which forward() raises"

EagerRun = tuple[InputCase, Mapping[str, Array]]


def call_module(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], names: Sequence[str] | None
) -> dict[str, torch.Tensor]:
    """The module's outputs by name. Raises `outputs.NotTensors`, `outputs.NamesDoNotFit`, or what forward() raises."""
    with torch.inference_mode():
        flat = output_tree.flatten_outputs(module(*inputs))
        for name, one in flat.items():
            if not isinstance(one, torch.Tensor):  # numpy's arrays have a dtype and a shape too
                raise output_tree.NotATensor(name, type(one).__name__)
        return output_tree.select_outputs(flat, names)


def run_case(project: Project, source: LoadedModel, case: InputCase) -> dict[str, Array]:
    """One forward pass, with every way in which it can fail put in words.

    Raises `ForwardFailed` with the last line of the user's code, or `OutputsUnsupported`.
    """
    where = project.field_location("inputs")
    try:
        found = call_module(source.module, bind_inputs(project, list(case.inputs.values())), project.manifest.outputs)
    except output_tree.NotATensor as error:
        raise OutputsUnsupported(
            where, str(error), "return tensors, alone or in tuples, dicts or dataclasses"
        ) from None
    except output_tree.DuplicateOutputName as error:
        raise OutputsUnsupported(where, str(error), "rename one of them in forward()") from None
    except output_tree.OutputNamesMismatch as error:
        raise OutputsUnsupported(project.field_location("outputs"), str(error), "one name for each, or keys") from None
    except (Exception, SystemExit) as error:
        described = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in case.inputs.items())
        sample = f"{case.name} ({described}), whose values are {case.value_description}"
        raise ForwardFailed(where, sample, format_user_frame(error, project.folder)) from error
    for name, tensor in found.items():
        if tensor.is_complex():
            why = f"{name} is a {tensor.dtype} tensor; onnxruntime has none"
            raise OutputsUnsupported(where, why, "return torch.view_as_real(…) of it")
        if tensor.dtype == torch.bfloat16 or tensor.layout != torch.strided:
            why = f"{name} is a {tensor.dtype} tensor of layout {tensor.layout}; numpy has no such array"
            how = ".float()" if tensor.layout == torch.strided else ".to_dense()"
            raise OutputsUnsupported(where, why, f"convert it in forward(), for instance with {how}")
    return {name: noise.to_numpy(tensor) for name, tensor in found.items()}


def drop_refused_masks(project: Project, source: LoadedModel, grid: Grid) -> tuple[Grid, dict[str, dict[str, Array]]]:
    """The grid without rows of zeros in a mask where forward() raises on them; and what it gives for them elsewhere.

    Attention over nothing is undefined, and no manifest can say that a mask has a one in each row. That those rows
    were left out stands in `Reference.undecided`. Raises as `first_outputs` does, but `ForwardFailed`.
    """
    low = next((case for case in grid.cases if case.value_kinds == ("low",)), None)
    if low is None or not generators.has_mask(tuple(project.manifest.inputs.values())):
        return grid, {}
    try:
        return grid, {low.name: run_case(project, source, low)}
    except ForwardFailed:
        return sample_grid.redraw_without_empty_masks(project, grid), {}


def check_repeatable(project: Project, source: LoadedModel, grid: Grid, outputs: Mapping[str, Array]) -> None:
    """Run the contrast again, and refuse a module that gives something else: no artifact could be compared with it.

    `known` is what it gave after the example had run. Now it is run on a copy that was never called, where there is
    one, so that what a first call computes and keeps shows too: an artifact would hold it as it was after the first
    sample. Rounding may differ from call to call by the least noise. Raises `NotRepeatable` or `ForwardChangesWeights`.
    """
    changed = source.changed_parameters()
    if changed:
        raise ForwardChangesWeights(project.field_location("model"), changed)
    copied = replace(source, module=source.pristine_copy())
    for called in (
        (copied, source) if grid.probe_case is grid.example_case else (copied,)
    ):  # by then nothing else had run
        _check_same_outputs(project, run_case(project, called, grid.probe_case), grid.probe_case, outputs)


def _check_same_outputs(
    project: Project, again: Mapping[str, Array], case: InputCase, known: Mapping[str, Array]
) -> None:
    for name, array in known.items():
        least = get_minimum_noise(array.dtype) if _is_float(array) else 0.0
        allowed = ElementTolerance(0.0, least)
        try:
            same = name in again and compare(array, again[name], allowed).within_tolerance
        except ShapesDiffer:
            same = False
        if not same:
            raise NotRepeatable(project.field_location("model"), name, case.name)


@dataclass(frozen=True)
class NoiseMeasurement:
    """What was evaluated before the artifacts are made: again, and the outputs by case that are known by now."""

    evaluations: tuple[Evaluation, ...]
    outputs: Mapping[str, Mapping[str, Array]]


def measure_noise(
    project: Project, source: LoadedModel, grid: Grid, outputs: Mapping[str, Mapping[str, Array]]
) -> NoiseMeasurement:
    """Evaluate the module again on a few cases, for its noise; not with an explicit tolerance.

    `known` are outputs by case that are there already. Raises as `first_outputs` does, or `NotRepeatable`.
    """
    contrast = grid.probe_case
    for case in (
        grid.example_case,
        contrast,
    ):  # in this order: the first call is one, and the copy's first call the other
        if case.name not in outputs:
            outputs = {**outputs, case.name: run_case(project, source, case)}
    check_repeatable(project, source, grid, outputs[contrast.name])
    if isinstance(project.manifest.parity.tolerance, ExplicitTolerance):
        return NoiseMeasurement((), outputs)
    chosen = _choose_noise_cases(grid, source.parameters)
    found = {case.name: outputs.get(case.name) or run_case(project, source, case) for case in chosen.all_cases()}
    again = noise.evaluate_variants(project, source, chosen, found)
    return NoiseMeasurement(again, {**outputs, **found})


def resolve_decisions(project: Project, found: Mapping[str, Array]) -> dict[str, DecisionRule]:
    """What the manifest declares some of these outputs to be for; one forward pass is enough to tell whether it fits.

    Raises `OutputsUnsupported` where an output has the name of an input, or `DecisionDoesNotFit`.
    """
    shared = [name for name in found if name in project.manifest.inputs]
    if shared:
        why = f"{shared[0]!r} is the name of an input and of an output of forward()"
        raise OutputsUnsupported(project.field_location("inputs", shared[0]), why, "name the outputs in the manifest")
    parity = project.manifest.parity
    # Each side may be a floor off, and a floor from the truth. Of an explicit limit it is the same share: with the
    # whole of it, whatever decision follows from numbers that it allows would hang on a tie.
    tie = 2 / NOISE_MULTIPLE
    fitting = {}
    for name in parity.decisions:
        one, where = parity.decision_for(name), project.field_location("parity", "decisions", name)
        assert one is not None
        if name not in found:
            raise DecisionDoesNotFit(where, f"there is no output {name!r}", did_you_mean(name, list(found)))
        if not _is_float(found[name]):
            raise DecisionDoesNotFit(where, f"{name} is {found[name].dtype}", "decisions are taken on float scores")
        if not one.rule.startswith("threshold") and not -found[name].ndim <= one.axis < found[name].ndim:
            why = f"{name} has {found[name].ndim} axes, and no axis {one.axis}"
            raise DecisionDoesNotFit(where, why, "axis counts from 0, or from the last as -1")
        fitting[name] = DecisionRule(one.rule, one.axis, tie)
    return fitting


def measure_reference(
    project: Project,
    source: LoadedModel,
    grid: Grid,
    measurement: NoiseMeasurement,
    *,
    probe: tuple[ReferenceCase, ...],
    has_discrete_decisions: bool,
) -> Reference:
    """Run the module on every case, and say how far an artifact may be; `known` is what `early` gave.

    `decides` is whether the module takes decisions (an order, an index, a step) that may hang on a tie.
    Raises as `first_outputs` does, `NoiseTooLarge` where the floor is so high that nothing could be told
    apart, or `DecidedByTies`.
    """
    runs: list[EagerRun] = [
        (case, measurement.outputs.get(case.name) or run_case(project, source, case)) for case in grid.cases
    ]
    names = tuple(runs[0][1])
    for case, found in runs:
        if tuple(found) != names:
            why = f"{', '.join(found)} at {dict(case.sizes)}, {', '.join(names)} at {dict(grid.cases[0].sizes)}"
            raise OutputsUnsupported(project.field_location("inputs"), why, "return the same outputs at every size")
    decisions = resolve_decisions(project, runs[0][1])
    undecided: tuple[str, ...] = ()
    if has_discrete_decisions:
        runs, undecided = _replace_tied_cases(project, source, runs)
    if source.pristine is None:
        undecided = (*undecided, _NOT_COPIED)
    if any(case.value_kinds == ("low, unmasked",) for case in grid.cases):
        undecided = (*undecided, _ROWS_OF_ZEROS)
    expectations, measured = _make_reference_cases(project, measurement, runs, decisions)
    return Reference(expectations, measured, names, tuple(case for case, _ in runs), undecided, probe)


def measure_probe(
    project: Project, source: LoadedModel, grid: Grid, measurement: NoiseMeasurement, *, has_discrete_decisions: bool
) -> tuple[ReferenceCase, ...]:
    """What is known before the other cases ran: one case, so that every stage on the way can be compared with it.

    None where a tie decides what comes out there, or nothing comes out. Raises `NoiseTooLarge`.
    """
    runs: list[EagerRun] = [
        (case, measurement.outputs[case.name]) for case in grid.cases if case.name in measurement.outputs
    ]
    found = measurement.outputs[grid.probe_case.name]
    if not any(array.size for array in found.values()):
        return ()
    if has_discrete_decisions and _find_tied_output(found, noise.run_nudged(project, source, grid.probe_case)):
        return ()
    expectations, _ = _make_reference_cases(project, measurement, runs, {})
    return tuple(one for one in expectations if one.name == grid.probe_case.name)


def _make_reference_cases(
    project: Project, floor: NoiseMeasurement, runs: Sequence[EagerRun], decisions: Mapping[str, DecisionRule]
) -> tuple[tuple[ReferenceCase, ...], dict[str, OutputNoise]]:
    judged = {name: _derive_tolerances(project, floor, runs, name) for name in runs[0][1]}
    oracle = next((one.outputs for one in floor.evaluations if one.name == FLOAT64), {})
    expectations = tuple(
        ReferenceCase(
            case.name,
            case.inputs,
            found,
            {name: limits[case.name] for name, (_, limits) in judged.items()},
            case.sizes,
            _to_float64_outputs(found, oracle.get(case.name, {})) if found is floor.outputs.get(case.name) else {},
            decisions,
        )
        for case, found in runs
    )
    return expectations, {name: one for name, (one, _) in judged.items() if one is not None}


def _derive_tolerances(
    project: Project, floor: NoiseMeasurement, runs: Sequence[EagerRun], name: str
) -> tuple[OutputNoise | None, dict[str, ElementTolerance]]:
    """How far one output may be, by case, and the noise behind it where that was measured."""
    tolerance, arrays = project.manifest.parity.tolerance, [found[name] for _, found in runs]
    cases = [case.name for case, _ in runs]
    if not _is_float(arrays[0]):
        return None, dict.fromkeys(cases, ElementTolerance(0.0, 0.0))
    if isinstance(tolerance, ExplicitTolerance):
        return None, dict.fromkeys(cases, ElementTolerance(tolerance.atol, tolerance.rtol))
    small = dict(zip(cases, estimate_scales(arrays), strict=True))
    measured, by_case = _measure_output_noise(project, floor, {case.name: found for case, found in runs}, name, small)
    return measured, {case: derive_tolerance(by_case[case], small[case]) for case in cases}


def _to_float64_outputs(found: Mapping[str, Array], oracle: Mapping[str, Array]) -> dict[str, Array]:
    """The float outputs in float64, where they are of the same shape; as they are where only one side is finite."""
    return {
        name: np.where(np.isfinite(array) & np.isfinite(oracle[name]), oracle[name], array.astype(np.float64))
        for name, array in found.items()
        if _is_float(array) and name in oracle and oracle[name].shape == array.shape
    }


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"


# -- noise ----------------------------------------------------------------------------------


def _measure_output_noise(
    project: Project,
    floor: NoiseMeasurement,
    found: Mapping[str, Mapping[str, Array]],
    name: str,
    scale: Mapping[str, float],
) -> tuple[OutputNoise, dict[str, float]]:
    """The floor of one output, and that of each case. Raises `NoiseTooLarge`."""
    parts: dict[str, dict[str, float]] = {}
    for again in floor.evaluations:
        shares = {
            case: measure_relative_difference(found[case][name], other[name], scale[case])
            for case, other in again.outputs.items()
            if case in found and found[case] is floor.outputs.get(case)  # and not drawn anew
            if name in other and other[name].shape == found[case][name].shape
        }
        if shares:
            parts[again.name] = shares
    least = get_minimum_noise(next(iter(found.values()))[name].dtype)
    others = [share for key, shares in parts.items() if key != ROW_BY_ROW for share in shares.values()]
    if max(parts.get(ROW_BY_ROW, {}).values(), default=0.0) > _MAX_ROW_NOISE_RATIO * max([least, *others]):
        del parts[ROW_BY_ROW]  # the rows depend on each other: not the same computation
    measured: dict[str, float] = {}
    for shares in parts.values():
        measured.update({case: max(share, measured.get(case, 0.0)) for case, share in shares.items()})
    wide = floor.evaluations[0].outputs or measured
    by_case = derive_noise_floors(
        {case: share for case, share in measured.items() if case in wide},
        {case: share for case, share in measured.items() if case not in wide},
        list(found),
        least,
    )
    relative = max(by_case.values())
    largest = {key: max(shares.values()) for key, shares in parts.items()}
    noise = OutputNoise(relative, min(by_case.values()), largest, floor.evaluations[0].note)
    if NOISE_MULTIPLE * relative >= MAX_TOLERANCE_SHARE:
        raise NoiseTooLarge(project.field_location("parity"), name, f"{relative:.2g}", noise.description)
    return noise, by_case


def _replace_tied_cases(
    project: Project, source: LoadedModel, runs: Sequence[EagerRun]
) -> tuple[list[EagerRun], tuple[str, ...]]:
    """The cases on which the module's decisions hang on no tie; others are drawn anew, or left out, and said to be.

    Raises `DecidedByTies` where that is most of them.
    """
    kept: list[EagerRun] = []
    said, example = [], ""
    for original, first in runs:
        case: InputCase | None = original
        found, undecided = first, ""
        while case is not None:
            undecided = _find_tied_output(found, noise.run_nudged(project, source, case))
            if not undecided:
                kept.append((case, found))
                break
            case = sample_grid.redraw_less_tied(project, case)
            found = found if case is None else run_case(project, source, case)
        if case is None:
            example = f"{original.name} ({original.value_description}), where a tie decides {undecided}"
            said.append(f"the case {example}")
        elif case is not original:
            said.append(
                f"{original.value_description} together (case {original.name}), where a tie decides what comes out"
            )
    if 2 * len(kept) < len(runs):
        raise DecidedByTies(project.field_location("parity"), example, len(kept), len(runs))
    return kept, tuple(said)


def _find_tied_output(found: Mapping[str, Array], nudged: Mapping[str, Array]) -> str:
    """The first output that a nudge changes by more than rounding does; empty where none is."""
    for name, array in found.items():
        other = nudged[name]
        if other.shape != array.shape:
            return name
        if not _is_float(array):
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
    """Whether NaN and infinities stand in the same places: what is not chosen is often masked with one."""
    left, right = array.astype(np.float64), other.astype(np.float64)
    return bool(((np.isfinite(left) & np.isfinite(right)) | (left == right) | (np.isnan(left) & np.isnan(right))).all())


def _choose_noise_cases(grid: Grid, parameters: int) -> NoiseCases:
    """Where even the example is large, a small case in float64, and the others in a cheaper way; else many cases."""
    if grid.example_case.element_count > _FEW_INPUT_ELEMENTS:
        wide = [min(grid.probe_case, grid.example_case, key=_size_key)]
        batches = [case for case in sorted((grid.probe_case, grid.example_case), key=_size_key) if _has_few_rows(case)]
    else:
        wide = _choose_largest(grid, parameters)
        # Some case has to be of a few rows, which can be evaluated one by one: else the example, which is small.
        if not any(_has_few_rows(case) for case in wide):
            wide.append(grid.example_case)
        batches = wide
    return NoiseCases(tuple(wide), tuple(batches), tuple(_choose_other_kinds(grid.cases, wide)))


def _choose_largest(grid: Grid, parameters: int) -> list[InputCase]:
    """The largest cases that can be afforded twice, as noise grows with size."""
    limit = min(
        _MAX_NOISE_INPUT_ELEMENTS, max(_FEW_INPUT_ELEMENTS, _MAX_NOISE_EXAMPLES * grid.example_case.element_count)
    )
    most = _MAX_NOISE_CASES if parameters <= _LARGE_PARAMETERS else _MAX_NOISE_CASES_LARGE_MODEL
    chosen: list[InputCase] = []
    elements = 0
    for case in sorted(grid.cases, key=_size_key, reverse=True):
        if elements + case.element_count <= limit and len(chosen) < most:
            chosen.append(case)
            elements += case.element_count
    return chosen


def _choose_other_kinds(cases: Sequence[InputCase], measured: Sequence[InputCase]) -> list[InputCase]:
    """A case for each kind of values that none of those measured has, as noise depends on them.

    An image of zeros had ten times the noise of a random one (ResNet-50 with two classes).
    """
    seen = {kind for case in measured for kind in _get_value_kinds(case)}
    found = []
    for case in sorted(cases, key=_size_key):
        if not seen.issuperset(_get_value_kinds(case)):
            seen.update(_get_value_kinds(case))
            found.append(case)
    return found


def _get_value_kinds(case: InputCase) -> tuple[str, ...]:
    return case.value_kinds or (case.value_description,)


def _has_few_rows(case: InputCase) -> bool:
    first = next(iter(case.inputs.values()))
    return first.ndim > 0 and 2 <= len(first) <= noise.MAX_ROWS


def _size_key(case: InputCase) -> tuple[int, str]:
    return case.element_count, case.name
