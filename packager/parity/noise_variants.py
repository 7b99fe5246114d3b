"""Evaluate the module in other ways that are equal in mathematics: the difference is what its arithmetic costs.

    float64       the same module in double precision. Its rounding errors are a billion times smaller, so it serves as
                  the true result.
    perturbed     only if float64 is refused: every parameter moved by one unit in the last place, up or down at random.
                  A backward stable evaluation is exact for inputs perturbed by so much, so the difference bounds its
                  error (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 1.5).
    one thread    the order of summation changes
    functions     onnxruntime's own elementwise functions run in the place of torch's (`runtime_functions`)
    row by row    a batch is split, so different kernels do the same work
    plain         torch's own kernels run in the place of oneDNN's: convolutions and recurrent layers take a different
                  way to the same sums

On a single test case, `evaluate_every_way` adds three, of which the first costs more:

    rounded       the result of every operator is moved by one unit in the last place (`rounding`)
    flushed       subnormal numbers count as zero, as on some processors
    unfused       torch's layers for attention run separate operators, as they do on processors without a fast path; the
                  fast path gives NaN where a mask hides every key, and they give zeros
                  (https://github.com/pytorch/pytorch/pull/190486)

An artifact rearranges the same arithmetic (other kernels, fused operators, another order of summation), so its error is
of the same size. The module itself is left as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from packager.export.exporters import disable_attention_fast_path
from packager.export.weights import count_bytes
from packager.model.loader import LoadedModel
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import get_state, run_with_state, widen_tensor
from packager.parity.forward import to_numpy as to_numpy
from packager.parity.noise_cases import MAX_ROWS, NoiseCases
from packager.parity.numerics.compare import Array
from packager.parity.rounding import run_with_rounded_results
from packager.parity.runtime_functions import measure_function_error, run_with_runtime_functions
from packager.parity.widening import LARGE_BYTES, WidenedWeights, widen_masks
from packager.project.manifest import Project

# The names of the evaluations: parity.json has them, and docs/parity.md lists them.
FLOAT64 = "float64"
PERTURBED_PARAMETERS = "parameters one unit in the last place away"
ONE_THREAD = "one thread"
ROW_BY_ROW = "row by row"
ROUNDED_RESULTS = "the results of all operators one unit in the last place away"
FLUSHED_SUBNORMALS = "subnormal numbers flushed to zero"
UNFUSED_ATTENTION = "attention without torch's fast path"
PLAIN_KERNELS = "torch's own kernels"
RUNTIME_FUNCTIONS = "onnxruntime's own"  # with the functions and their accuracy

_LAYERS_WITH_FAST_PATH = (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its name, and its outputs by case and output name. `note` says why it replaces another one."""

    name: str
    outputs: Mapping[str, Mapping[str, Array]]
    note: str = ""


def evaluate_variants(
    project: Project, model: LoadedModel, noise_cases: NoiseCases, outputs: Mapping[str, Mapping[str, Array]]
) -> tuple[Evaluation, ...]:
    """Evaluate the module on the chosen test cases in every way that is available, and that forward() does not refuse.

    `outputs` are those of the module as it is, by case and output name. The first evaluation is float64, or perturbed,
    and has all of `float64_cases` (or none, if both were refused). Arrays have the shapes of `outputs`; those of
    float64 are float64 where the module's are float32.
    """
    float64 = noise_cases.float64_cases
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's stubs
    serial = (*noise_cases.serial_cases, *(() if has_onednn else noise_cases.other_kind_cases))
    batches = [
        case for case in noise_cases.batch_cases if 2 <= _count_rows(project, case, outputs[case.name]) <= MAX_ROWS
    ][:1]
    plain = (*noise_cases.plain_cases, *noise_cases.other_kind_cases) if has_onednn else ()
    return (
        _evaluate_float64(project, model, float64),
        *_evaluate_runtime_functions(project, model, float64),
        *(
            _evaluate(ONE_THREAD, serial, partial(_run_on_one_thread, project, model))
            if torch.get_num_threads() > 1
            else ()
        ),
        *_evaluate(ROW_BY_ROW, batches, lambda case: _run_row_by_row(project, model, case, outputs[case.name])),
        *_evaluate(PLAIN_KERNELS, plain, partial(_run_without_onednn, project, model)),
    )


def evaluate_every_way(
    project: Project, model: LoadedModel, case: InputCase, outputs: Mapping[str, Array]
) -> tuple[Evaluation, ...]:
    """Evaluate the module on one test case in every way, whatever that costs. `outputs` are those of the module."""
    every_way = NoiseCases((case,), (case,), (case,), (case,), ())
    evaluations = evaluate_variants(project, model, every_way, {case.name: outputs})
    perturbed = partial(run_with_state, project, model.module, perturb_parameters(model.module))
    has_attention = any(isinstance(layer, _LAYERS_WITH_FAST_PATH) for layer in model.module.modules())
    return (
        *evaluations,
        *(_evaluate(PERTURBED_PARAMETERS, [case], perturbed) if evaluations[0].name == FLOAT64 else ()),
        *_evaluate(ROUNDED_RESULTS, [case], partial(run_with_rounded_results, project, model)),
        *_evaluate(FLUSHED_SUBNORMALS, [case], partial(_run_without_subnormals, project, model)),
        *_evaluate(UNFUSED_ATTENTION, [case] if has_attention else [], partial(_run_without_fast_path, project, model)),
    )


def _evaluate(
    name: str, cases: Sequence[InputCase], run: Callable[[InputCase], Mapping[str, Array]]
) -> tuple[Evaluation, ...]:
    """Return the evaluation of these cases; nothing without a case, or if forward() raises an exception."""
    try:
        outputs = {case.name: run(case) for case in cases}
    except Exception:  # noqa: BLE001 (the user's code may refuse any of them; parity.json names those that were measured)
        return ()
    return (Evaluation(name, outputs),) if outputs else ()


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
        own = {} if is_large else get_state(model.module)
        state = {name: widen_tensor(tensor) for name, tensor in own.items()}
        with widen_masks(), WidenedWeights(model.module) if is_large else nullcontext():
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


def _evaluate_runtime_functions(
    project: Project, model: LoadedModel, cases: Sequence[InputCase]
) -> tuple[Evaluation, ...]:
    """Run the test cases with onnxruntime's functions; nothing if the module calls none."""
    operators: set[str] = set()

    def run(case: InputCase) -> Mapping[str, Array]:
        outputs, used = run_with_runtime_functions(project, model, case)
        operators.update(used)
        return outputs

    evaluations = _evaluate(RUNTIME_FUNCTIONS, cases, run)
    accuracy = ", ".join(
        f"{operator} (good to {measure_function_error(operator):.1e})" for operator in sorted(operators)
    )
    return tuple(replace(evaluation, name=f"{evaluation.name} {accuracy}") for evaluation in evaluations if operators)


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


def _run_on_one_thread(project: Project, model: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_with_state(project, model.module, {}, case)
    finally:
        torch.set_num_threads(threads)


def _run_without_onednn(project: Project, model: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    """Run without oneDNN, which has its own kernels for convolutions, recurrent layers and more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch sets TF32's too, which warns
        with torch.backends.mkldnn.flags(enabled=False):
            return run_with_state(project, model.module, {}, case)


def _run_without_fast_path(project: Project, model: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    with disable_attention_fast_path():
        return run_with_state(project, model.module, {}, case)


def _run_without_subnormals(project: Project, model: LoadedModel, case: InputCase) -> Mapping[str, Array]:
    """Run on one thread, since the processor's switch is one of each thread; raises RuntimeError if there is none."""
    if not torch.set_flush_denormal(True):
        raise RuntimeError("this processor cannot flush subnormal numbers")
    try:
        return _run_on_one_thread(project, model, case)
    finally:
        torch.set_flush_denormal(False)
