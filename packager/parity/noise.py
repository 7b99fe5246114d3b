"""The module evaluated again, in ways that are equal in mathematics: their distance is what its arithmetic costs.

    float64       the same module in double precision, which is the oracle: nothing but the user's own code
    moved         where float64 is refused: every parameter one unit in the last place away, which bounds what
                  any backward stable evaluation may do (Higham, Accuracy and Stability of Numerical Algorithms,
                  2nd edition, section 1.5)
    one thread    another order of summation
    row by row    a batch in pieces, which makes other kernels do the same work
    plain         torch's own kernels in the place of oneDNN's

Beside them stands one that is almost equal: inputs and parameters nudged by less than anybody could mean.
Where that changes an index, or an output by far more than rounding does, a decision hangs on a tie there, and
no artifact can be held to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from packager.common import output_tree
from packager.model.inputs import bind_inputs
from packager.model.loader import LoadedModel
from packager.parity.cases.generators import has_mask
from packager.parity.cases.sample_grid import InputCase
from packager.parity.numerics.compare import Array
from packager.parity.numerics.tolerances import get_machine_epsilon
from packager.project.manifest import Project, is_integer_dtype

FLOAT64 = "float64"
PERTURBED_PARAMETERS = "parameters one unit in the last place away"
ONE_THREAD = "one thread"
ROW_BY_ROW = "row by row"
PLAIN_KERNELS = "torch's own kernels"
MAX_ROWS = 8
_NUDGE_IN_EPSILONS = 64  # fewer are lost in the first sum, and what was tied stays so
_HALF_NUDGE_IN_EPSILONS = 4  # 64 of float16's would be six percent

_ORDERING_FUNCTIONS = frozenset(
    {"topk", "sort", "msort", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "median"}
)
_SPREAD_STEPS, _SPREAD_STRIDE = 16, 7  # so many roundings at most; neighbours are several apart
_MASK_MAGNITUDE = (
    1e4  # and more is no score, but what a mask puts in the place of one: equal everywhere, and meant to be
)


@dataclass(frozen=True)
class Evaluation:
    """One more evaluation: its outputs by case and name. `note` says why it was taken, where that is not plain."""

    name: str
    outputs: Mapping[str, Mapping[str, Array]]
    note: str = ""


@dataclass(frozen=True)
class NoiseCases:
    """The cases to evaluate again: `wide` in float64, the first of them on one thread too; one of `batches` by rows.

    `others` have values of kinds that none of `wide` has: those are evaluated once, as cheaply as can be.
    """

    float64_cases: tuple[InputCase, ...]
    batch_cases: tuple[InputCase, ...]
    other_kind_cases: tuple[InputCase, ...]

    def all_cases(self) -> list[InputCase]:
        """Every case once."""
        return list(
            {case.name: case for case in (*self.float64_cases, *self.batch_cases, *self.other_kind_cases)}.values()
        )


def evaluate_variants(
    project: Project, source: LoadedModel, noise_cases: NoiseCases, outputs: Mapping[str, Mapping[str, Array]]
) -> tuple[Evaluation, ...]:
    """Evaluate the chosen cases again; `known` are the outputs as the module gives them. The first is of all `wide`."""

    def plain(cases: Sequence[InputCase]) -> dict[str, Mapping[str, Array]]:
        return {case.name: _run_module(project, source, case) for case in cases}

    found = [_evaluate_float64(project, source, noise_cases.float64_cases)]
    own_kernels = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's stubs
    with _use_threads(1) as before:
        if before > 1:
            found.append(
                Evaluation(
                    ONE_THREAD,
                    plain((*noise_cases.float64_cases[:1], *(() if own_kernels else noise_cases.other_kind_cases))),
                )
            )
    batched = [
        case for case in noise_cases.batch_cases if 2 <= _count_rows(project, case, outputs[case.name]) <= MAX_ROWS
    ][:1]
    if batched:
        found.append(Evaluation(ROW_BY_ROW, {batched[0].name: _run_row_by_row(project, source, batched[0], outputs)}))
    if own_kernels:
        few = min((*batched, noise_cases.float64_cases[0]), key=lambda case: case.element_count)
        with _disable_onednn():
            found.append(Evaluation(PLAIN_KERNELS, plain((few, *noise_cases.other_kind_cases))))
    return tuple(found)


def run_nudged(project: Project, source: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    """The outputs with the float inputs, or else the parameters, moved by a few roundings.

    Where there are integers to look up, equal ones give equal scores whatever the parameters are, and so exact ties:
    there what is put in order is moved too.
    """
    inputs = {name: _nudge(project, name, array) for name, array in case.inputs.items()}
    moved, state = replace(case, inputs=inputs), {}
    if all(array.dtype.kind != "f" for array in inputs.values()):
        whole = _get_state(source.module)
        state = {name: _perturb_one_ulp(one) if one.is_floating_point() else one for name, one in whole.items()}
    looked_up = any(is_integer_dtype(one.dtype) and not has_mask([one]) for one in project.manifest.inputs.values())
    with _BreakTies() if looked_up else nullcontext():
        return _run_with_state(project, source.module, state, moved, widen=False)


class _BreakTies(torch.overrides.TorchFunctionMode):
    """While open, what an order is asked of is moved by a few roundings, each element by another number of them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's own answer, on scores that are nowhere equal to the last bit."""
        if getattr(function, "__name__", "") in _ORDERING_FUNCTIONS and args and isinstance(args[0], torch.Tensor):
            args = (_spread_scores(args[0]), *args[1:])
        return function(*args, **(kwargs or {}))


def _spread_scores(scores: torch.Tensor) -> torch.Tensor:
    if not scores.is_floating_point():
        return scores
    steps = (
        torch.arange(scores.numel()).mul(_SPREAD_STRIDE).remainder(_SPREAD_STEPS).reshape(scores.shape).to(scores.dtype)
    )
    sizes = torch.where(scores.abs() < _MASK_MAGNITUDE, scores.abs(), 0)
    return scores + sizes * steps * torch.finfo(scores.dtype).eps


# -- the evaluations ------------------------------------------------------------------------


def _evaluate_float64(project: Project, source: LoadedModel, cases: Sequence[InputCase]) -> Evaluation:
    """The same cases in float64, or else with parameters one unit in the last place away."""
    state = _get_state(source.module)
    try:
        wide = {name: one.double() if one.is_floating_point() else one for name, one in state.items()}
        return Evaluation(
            FLOAT64, {one.name: _run_with_state(project, source.module, wide, one, widen=True) for one in cases}
        )
    except Exception as error:  # noqa: BLE001 (the user's code may refuse float64 in any way)
        refused = type(error).__name__
    try:
        moved = {name: _perturb_one_ulp(one) if one.is_floating_point() else one for name, one in state.items()}
        found = {one.name: _run_with_state(project, source.module, moved, one, widen=False) for one in cases}
    except Exception as error:  # noqa: BLE001 (recorded: nothing was measured in this way)
        return Evaluation(PERTURBED_PARAMETERS, {}, f"float64 gives {refused}, and they {type(error).__name__}")
    return Evaluation(PERTURBED_PARAMETERS, found, f"float64 gives {refused}")


def _run_module(project: Project, source: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    return _run_with_state(project, source.module, {}, case, widen=False)


def _count_rows(project: Project, case: InputCase, known: Mapping[str, Array]) -> int:
    """How many rows a case has, where every input and output seems to be a batch of them that may be one; else 0."""
    shapes = [spec.shape for spec in project.manifest.inputs.values()]
    batch = shapes[0][0] if shapes[0] else None
    if not isinstance(batch, str) or any(shape[:1] != [batch] for shape in shapes):
        return 0
    size = case.sizes[batch]
    whole = all(array.shape[:1] == (size,) for array in known.values())
    return size if whole and project.manifest.dim_limits()[batch].min <= 1 else 0


def _run_row_by_row(
    project: Project, source: LoadedModel, case: InputCase, known: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """The outputs of each row alone, put together; without those whose shape depends on the other rows."""
    size = len(next(iter(case.inputs.values())))
    rows = [
        _run_module(
            project, source, replace(case, inputs={name: one[row : row + 1] for name, one in case.inputs.items()})
        )
        for row in range(size)
    ]
    return {
        name: np.concatenate([row[name] for row in rows])
        for name, array in known[case.name].items()
        if all(row[name].shape == (1, *array.shape[1:]) for row in rows)
    }


@contextmanager
def _use_threads(count: int) -> Iterator[int]:
    """Run with so many of torch's threads; yields how many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def _disable_onednn() -> Iterator[None]:
    """Run without oneDNN, which has kernels of its own for convolutions, recurrent layers and much else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch sets TF32's too, and says what that is for
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _get_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _run_with_state(
    project: Project, module: torch.nn.Module, state: Mapping[str, torch.Tensor], case: InputCase, *, widen: bool
) -> Mapping[str, Array]:
    inputs: tuple[Any, ...] = bind_inputs(project, list(case.inputs.values()))
    if widen:
        inputs = tuple(one.double() if one.is_floating_point() else one for one in inputs)
    try:
        with torch.inference_mode():
            value = torch.func.functional_call(module, dict(state), inputs)
    finally:
        restore_rnn_weights(module)
    named = output_tree.select_outputs(output_tree.flatten_outputs(value), project.manifest.outputs)
    return {name: to_numpy(tensor) for name, tensor in named.items()}


def restore_rnn_weights(module: torch.nn.Module) -> None:
    """Let recurrent layers hold their own weights again: they keep a list, in which functional_call leaves others.

    A trace would take those for constants.
    """
    for one in module.modules():
        if isinstance(one, torch.nn.RNNBase):
            one._init_flat_weights()


def _perturb_one_ulp(tensor: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype) * 2 - 1
    return tensor * (1 + sign * torch.finfo(tensor.dtype).eps)


def _nudge(project: Project, name: str, array: Array) -> Array:
    """Floats moved by some roundings of theirs, or of their range's size, up or down; the others as they are."""
    if array.dtype.kind != "f":
        return array
    spec = project.manifest.inputs[name]
    generator = np.random.default_rng([project.manifest.parity.seed, *name.encode()])
    wide = array.astype(np.float64)
    span = 1.0 if spec.range is None else min(1.0, float(spec.range[1]) - float(spec.range[0]))
    roundings = _NUDGE_IN_EPSILONS if array.dtype.itemsize > 2 else _HALF_NUDGE_IN_EPSILONS
    step = roundings * get_machine_epsilon(array.dtype) * (np.abs(wide) + span)
    signs = 2 * generator.integers(0, 2, array.shape) - 1
    information = np.finfo(str(array.dtype))
    least, most = spec.value_bounds() if spec.range is not None else (information.min, information.max)
    # No farther out than the range, or than a user's own data are; infinities, of masks, stay what they are.
    low, high = np.minimum(wide, float(least)), np.maximum(wide, float(most))
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.where(np.isfinite(wide), np.clip(wide + step * signs, low, high), wide)
    return np.asarray(moved.astype(array.dtype))


def to_numpy(tensor: torch.Tensor) -> Array:
    """A CPU tensor as an array of its dtype, its memory in order."""
    found: Array = tensor.detach().resolve_conj().resolve_neg().contiguous().numpy()
    return found
