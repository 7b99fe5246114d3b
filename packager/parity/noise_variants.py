"""Evaluate the module in other ways that are equal in mathematics: the difference is what its arithmetic costs.

    float64       the same module in double precision. Its rounding errors are a billion times smaller, so it serves as
                  the true result.
    perturbed     only if float64 is refused: every parameter moved by one unit in the last place, up or down at random.
                  A backward stable evaluation is exact for inputs perturbed by so much, so the difference bounds its
                  error (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 1.5).
    one thread    the order of summation changes
    row by row    a batch is split, so different kernels do the same work
    plain         torch's own kernels run in the place of oneDNN's: convolutions and recurrent layers take a different
                  way to the same sums

An artifact rearranges the same arithmetic (other kernels, fused operators, another order of summation), so its error is
of the same size. The module itself is left as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from packager.export.weights import count_bytes
from packager.model.loader import LoadedModel
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import get_state, run_with_state
from packager.parity.forward import to_numpy as to_numpy
from packager.parity.noise_cases import MAX_ROWS, NoiseCases
from packager.parity.numerics.compare import Array
from packager.parity.widening import LARGE_BYTES, WidenedWeights
from packager.project.manifest import Project

# The names of the evaluations: parity.json has them, and docs/parity.md lists them.
FLOAT64 = "float64"
PERTURBED_PARAMETERS = "parameters one unit in the last place away"
ONE_THREAD = "one thread"
ROW_BY_ROW = "row by row"
PLAIN_KERNELS = "torch's own kernels"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its name, and its outputs by case and output name. `note` says why it replaces another one."""

    name: str
    outputs: Mapping[str, Mapping[str, Array]]
    note: str = ""


def evaluate_variants(
    project: Project, model: LoadedModel, noise_cases: NoiseCases, outputs: Mapping[str, Mapping[str, Array]]
) -> tuple[Evaluation, ...]:
    """Evaluate the module on the chosen test cases in every way that is available.

    `outputs` are those of the module as it is, by case and output name. The first evaluation is float64, or perturbed,
    and has all of `float64_cases` (or none, if both were refused). Arrays have the shapes of `outputs`; those of
    float64 are float64 where the module's are float32.
    """

    def run_cases(cases: Sequence[InputCase]) -> dict[str, Mapping[str, Array]]:
        return {case.name: run_with_state(project, model.module, {}, case) for case in cases}

    first, others = noise_cases.float64_cases[0], noise_cases.other_kind_cases
    evaluations = [_evaluate_float64(project, model, noise_cases.float64_cases)]
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's stubs
    with _use_threads(1) as threads_before:
        if threads_before > 1:
            evaluations.append(Evaluation(ONE_THREAD, run_cases((first, *(() if has_onednn else others)))))
    batches = [
        case for case in noise_cases.batch_cases if 2 <= _count_rows(project, case, outputs[case.name]) <= MAX_ROWS
    ][:1]
    if batches:
        rows = _run_row_by_row(project, model, batches[0], outputs[batches[0].name])
        evaluations.append(Evaluation(ROW_BY_ROW, {batches[0].name: rows}))
    if has_onednn:
        smallest = min((*batches, first), key=lambda case: case.element_count)
        with _disable_onednn():
            evaluations.append(Evaluation(PLAIN_KERNELS, run_cases((smallest, *others))))
    return tuple(evaluations)


def perturb_parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a module, the float ones moved by one unit in the last place."""
    return {
        name: _perturb_one_ulp(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in get_state(module).items()
    }


def _perturb_one_ulp(tensor: torch.Tensor) -> torch.Tensor:
    """Multiply every element by 1 + eps or 1 - eps, at random and the same way each time."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype) * 2 - 1
    return tensor * (1 + sign * torch.finfo(tensor.dtype).eps)


def _evaluate_float64(project: Project, model: LoadedModel, cases: Sequence[InputCase]) -> Evaluation:
    """Run the test cases in float64; or with perturbed parameters, if the module raises an exception in float64."""
    is_large = count_bytes(model.module) > LARGE_BYTES
    try:
        state = {
            name: tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in ({} if is_large else get_state(model.module)).items()
        }
        with WidenedWeights(model.module) if is_large else nullcontext():
            outputs = {case.name: run_with_state(project, model.module, state, case, widen=True) for case in cases}
        return Evaluation(FLOAT64, outputs)
    except Exception as error:  # noqa: BLE001 (the user's code may refuse float64 in any way)
        reason = f"float64 raises {type(error).__name__}"
    try:
        state = perturb_parameters(model.module)
        outputs = {case.name: run_with_state(project, model.module, state, case) for case in cases}
    except Exception as error:  # noqa: BLE001 (recorded: neither was measured)
        return Evaluation(PERTURBED_PARAMETERS, {}, f"{reason} and perturbed parameters raise {type(error).__name__}")
    return Evaluation(PERTURBED_PARAMETERS, outputs, reason)


def _count_rows(project: Project, case: InputCase, outputs: Mapping[str, Array]) -> int:
    """Return how many rows a test case has, if every input and output is a batch of rows that may be 1; else 0."""
    shapes = [spec.shape for spec in project.manifest.inputs.values()]
    batch = shapes[0][0] if shapes[0] else None
    if not isinstance(batch, str) or any(shape[:1] != [batch] for shape in shapes):
        return 0
    size = case.sizes[batch]
    is_batch = all(array.shape[:1] == (size,) for array in outputs.values())
    return size if is_batch and project.manifest.dim_limits()[batch].min <= 1 else 0


def _run_row_by_row(
    project: Project, model: LoadedModel, case: InputCase, outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Run every row alone and concatenate the outputs, without those whose shape depends on the other rows."""
    rows = []
    for row in range(len(next(iter(case.inputs.values())))):
        inputs = {name: array[row : row + 1] for name, array in case.inputs.items()}
        rows.append(run_with_state(project, model.module, {}, replace(case, inputs=inputs)))
    return {
        name: np.concatenate([row_outputs[name] for row_outputs in rows])
        for name, array in outputs.items()
        if all(row_outputs[name].shape == (1, *array.shape[1:]) for row_outputs in rows)
    }


@contextmanager
def _use_threads(count: int) -> Iterator[int]:
    """Let torch use this many threads; yields how many it used before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def _disable_onednn() -> Iterator[None]:
    """Let torch run without oneDNN, which has its own kernels for convolutions, recurrent layers and more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch sets TF32's too, which warns
        with torch.backends.mkldnn.flags(enabled=False):
            yield
