"""The user's module on every case, and what its own arithmetic costs it.

The expected outputs are those of the eager module as the user wrote it, in its own dtypes. How far
an artifact may be from them is measured, not typed in: the module is run a second time in float64,
and the difference, relative to the size of the output, is the noise floor of this model on these
inputs. Any rearrangement of the same float32 arithmetic (another kernel, a fused operator, another
order of summation) makes an error of that kind, so an artifact passes within a small multiple of it.

Where the module cannot run in float64, its float32 parameters are moved by one unit in the last
place instead, which bounds what any backward stable evaluation may do (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd edition, section 1.5). Which of the two was done is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packager import outputs
from packager.errors import ForwardFailed, NoiseTooLarge, NotRepeatable, OutputsUnsupported
from packager.manifest import Project, Tolerance
from packager.parity.compare import Array, Limit, ShapesDiffer, compare
from packager.parity.gate import MULTIPLE, Expectation
from packager.results import Noise, Reference
from packager.samples import Case, Grid
from packager.source import Source, bind, user_frame

_LARGEST_SHARE = 0.25  # a limit of a quarter of the output's own size proves nothing
_LEAST_NOISE_IN_EPSILONS = 4  # where the measured noise is by luck smaller than rounding itself
# Noise is measured on so many cases at most, which together have at most so many input elements,
# absolutely and in multiples of the (small) example's: float64 costs several times what float32 does.
_NOISE_CASES = 4
_NOISE_INPUT_ELEMENTS = 1 << 18
_NOISE_EXAMPLES = 64


def call(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], names: Sequence[str] | None
) -> dict[str, torch.Tensor]:
    """The module's outputs by name. Raises `outputs.NotTensors`, `outputs.NamesDoNotFit`, or what forward() raises."""
    with torch.inference_mode():
        return outputs.select(outputs.flatten(module(*inputs)), names)


def first_outputs(project: Project, source: Source, case: Case) -> dict[str, Array]:
    """One forward pass, with every way in which it can fail put in words.

    Raises `ForwardFailed` with the last line of the user's code, or `OutputsUnsupported`.
    """
    where = project.where("inputs")
    try:
        found = call(source.module, bind(project, list(case.inputs.values())), project.manifest.outputs)
    except outputs.NotTensors as error:
        raise OutputsUnsupported(
            where, str(error), "return tensors, alone or in tuples, dicts or dataclasses"
        ) from None
    except outputs.NamesClash as error:
        raise OutputsUnsupported(where, str(error), "rename one of them in forward()") from None
    except outputs.NamesDoNotFit as error:
        raise OutputsUnsupported(project.where("outputs"), str(error), "one name for each, or keys") from None
    except (Exception, SystemExit) as error:
        described = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in case.inputs.items())
        raise ForwardFailed(where, f"{case.name} ({described})", user_frame(error, project.folder)) from error
    for name, tensor in found.items():
        if tensor.is_complex():
            why = f"{name} is a {tensor.dtype} tensor; onnxruntime has none"
            raise OutputsUnsupported(where, why, "return torch.view_as_real(…) of it")
        if tensor.dtype == torch.bfloat16 or tensor.layout != torch.strided:
            why = f"{name} is a {tensor.dtype} tensor of layout {tensor.layout}; numpy has no such array"
            raise OutputsUnsupported(where, why, "convert it in forward(), for instance with .float()")
    return {name: _to_numpy(tensor) for name, tensor in found.items()}


def check_repeatable(project: Project, source: Source, case: Case, known: Mapping[str, Array]) -> None:
    """Run a case again, and refuse a module that gives something else: no artifact could be compared with it.

    Rounding may differ from call to call by the least noise. Raises `NotRepeatable`.
    """
    again = first_outputs(project, source, case)
    for name, array in known.items():
        least = _least_noise(array) if array.dtype.kind == "f" else 0.0
        limit = Limit(0.0, least)
        try:
            same = name in again and compare(array, again[name], limit).allowed
        except ShapesDiffer:
            same = False
        if not same:
            raise NotRepeatable(project.where("model"), name, case.name)


@dataclass(frozen=True)
class Floor:
    """The noise floor of each float output, and the outputs by case that were computed on the way."""

    noise: Mapping[str, Noise]
    known: Mapping[str, Mapping[str, Array]]


def measure_floor(project: Project, source: Source, grid: Grid, known: Mapping[str, Mapping[str, Array]]) -> Floor:
    """Measure what its own arithmetic costs the module, on a few cases; nothing with an explicit tolerance.

    `known` are outputs by case that are there already. Raises as `first_outputs` does, `NotRepeatable`,
    or `NoiseTooLarge` where the floor is so high that nothing could be told apart.
    """
    contrast = grid.contrast
    if contrast.name not in known:
        known = {**known, contrast.name: first_outputs(project, source, contrast)}
    check_repeatable(project, source, contrast, known[contrast.name])
    if isinstance(project.manifest.parity.tolerance, Tolerance):
        return Floor({}, known)
    chosen = _cases_for_noise(grid)
    found = {case.name: known.get(case.name) or first_outputs(project, source, case) for case in chosen}
    second, measured = _second_evaluation(project, source, chosen)
    noise = {}
    for name, array in found[chosen[0].name].items():
        if array.dtype.kind != "f":
            continue
        differences = [
            _relative_difference(found[case.name][name], other[name])
            for case, other in zip(chosen, second, strict=True)
            if name in other and other[name].shape == found[case.name][name].shape
        ]
        noise[name] = Noise(max([_least_noise(array), *differences]), measured)
        if MULTIPLE * noise[name].relative >= _LARGEST_SHARE:
            raise NoiseTooLarge(project.where("parity"), name, f"{noise[name].relative:.2g}", measured)
    return Floor(noise, {**known, **found})


def measure(project: Project, source: Source, grid: Grid, floor: Floor) -> Reference:
    """Run the module on every case, and say how far an artifact may be. Raises as `first_outputs` does."""
    expected = [floor.known.get(case.name) or first_outputs(project, source, case) for case in grid.cases]
    names = tuple(expected[0])
    for case, found in zip(grid.cases, expected, strict=True):
        if tuple(found) != names:
            why = f"{', '.join(found)} at {dict(case.sizes)}, {', '.join(names)} at {dict(grid.cases[0].sizes)}"
            raise OutputsUnsupported(project.where("inputs"), why, "return the same outputs at every size")
    _check_names(project, names)
    tolerance = project.manifest.parity.tolerance
    overall = {name: max(_scale(found[name]) for found in expected) for name in names}
    expectations = tuple(
        Expectation(
            case.name,
            case.inputs,
            found,
            {name: _limit(tolerance, floor.noise, found, overall, name) for name in names},
        )
        for case, found in zip(grid.cases, expected, strict=True)
    )
    return Reference(expectations, floor.noise, names)


def _check_names(project: Project, names: Sequence[str]) -> None:
    shared = [name for name in names if name in project.manifest.inputs]
    if shared:
        why = f"{shared[0]!r} is the name of an input and of an output of forward()"
        raise OutputsUnsupported(project.where("inputs", shared[0]), why, "name the outputs in the manifest")


def _limit(
    tolerance: Tolerance | str,
    noise: Mapping[str, Noise],
    found: Mapping[str, Array],
    overall: Mapping[str, float],
    name: str,
) -> Limit:
    if found[name].dtype.kind not in "fc":
        return Limit(0.0, 0.0)
    if isinstance(tolerance, Tolerance):
        return Limit(tolerance.atol, tolerance.rtol)
    rtol = MULTIPLE * noise[name].relative
    # A case whose outputs are all (nearly) zero is still judged on the scale of the output as a whole.
    return Limit(rtol * max(_scale(found[name]), overall[name] / 1000), rtol)


def _scale(array: Array) -> float:
    if array.dtype.kind != "f" or array.size == 0:
        return 0.0
    return _typical(array.astype(np.float64))


def _typical(values: NDArray[np.float64]) -> float:
    """What counts as small in an output: the lower quartile of its finite magnitudes, zeros aside.

    Not their mean or RMS: masked logits stand at -1e9 beside real ones, and on that scale nothing shows.
    """
    magnitudes = np.abs(values[np.isfinite(values) & (values != 0.0)])
    return float(np.quantile(magnitudes, 0.25, method="lower")) if magnitudes.size else 0.0


# -- noise ----------------------------------------------------------------------------------


def _cases_for_noise(grid: Grid) -> list[Case]:
    """A few cases, the largest that can be afforded twice, as noise grows with size; the smallest at least."""
    cases = sorted(grid.cases, key=lambda case: (_elements(case), case.name))
    limit = min(_NOISE_INPUT_ELEMENTS, _NOISE_EXAMPLES * _elements(grid.example))
    chosen: list[Case] = []
    elements = 0
    for case in reversed(cases):
        if elements + _elements(case) <= limit and len(chosen) < _NOISE_CASES:
            chosen.append(case)
            elements += _elements(case)
    return chosen or cases[:1]


def _elements(case: Case) -> int:
    return sum(one.size for one in case.inputs.values())


def _least_noise(array: Array) -> float:
    return float(_LEAST_NOISE_IN_EPSILONS * torch.finfo(getattr(torch, str(array.dtype))).eps)


def _relative_difference(found: Array, other: Array) -> float:
    left, right = found.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    if not finite.any():
        return 0.0
    left, right = left[finite], right[finite]
    scale = np.abs(left) + _typical(left)
    difference = np.abs(left - right)
    return float(np.max(np.divide(difference, scale, out=np.zeros_like(scale), where=scale > 0)))


def _second_evaluation(project: Project, source: Source, cases: Sequence[Case]) -> tuple[list[dict[str, Array]], str]:
    """The same cases in float64, or else with parameters one unit in the last place away."""
    module = source.module
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    try:
        wide = {name: one.double() if one.is_floating_point() else one for name, one in state.items()}
        return _with_state(project, module, wide, cases, widen=True), "against float64"
    except Exception as error:  # noqa: BLE001 (the user's code may refuse float64 in any way)
        refused = type(error).__name__
    try:
        moved = {name: _one_ulp_away(one) if one.is_floating_point() else one for name, one in state.items()}
        found = _with_state(project, module, moved, cases, widen=False)
    except Exception as error:  # noqa: BLE001 (the caller records that nothing was measured)
        return [{} for _ in cases], f"not measured: {refused}, {type(error).__name__}"
    return found, f"against parameters one unit in the last place away, as float64 gives {refused}"


def _with_state(
    project: Project, module: torch.nn.Module, state: Mapping[str, torch.Tensor], cases: Sequence[Case], *, widen: bool
) -> list[dict[str, Array]]:
    found = []
    for case in cases:
        inputs: tuple[Any, ...] = bind(project, list(case.inputs.values()))
        if widen:
            inputs = tuple(one.double() if one.is_floating_point() else one for one in inputs)
        with torch.inference_mode():
            value = torch.func.functional_call(module, dict(state), inputs)
        named = outputs.select(outputs.flatten(value), project.manifest.outputs)
        found.append({name: _to_numpy(tensor) for name, tensor in named.items()})
    for one in module.modules():
        if isinstance(one, torch.nn.RNNBase):
            one._init_flat_weights()  # where it keeps them too, functional_call has left those of `state`
    return found


def _one_ulp_away(tensor: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype) * 2 - 1
    return tensor * (1 + sign * torch.finfo(tensor.dtype).eps)


def _to_numpy(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().resolve_conj().resolve_neg().contiguous().numpy()
    return found
