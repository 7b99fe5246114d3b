"""Run the user's module on test cases, on the CPU: as it is, or with other parameters in their place.

Outputs are NumPy arrays by name, in the module's own dtypes. `packager.common.output_tree` names them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from packager.common import output_tree
from packager.errors import ForwardChangesWeights, ForwardFailed, NotRepeatable, OutputsUnsupported, find_close_name
from packager.export.exporters import disable_attention_fast_path
from packager.model.importing import format_user_frame
from packager.model.inputs import bind_inputs
from packager.model.loader import LoadedModel
from packager.parity.cases import generators, sample_grid
from packager.parity.cases.sample_grid import Grid, InputCase
from packager.parity.numerics.compare import Array, ElementTolerance, ShapesDiffer, compare, is_float
from packager.parity.numerics.tolerances import derive_tolerance, estimate_scales, get_minimum_noise
from packager.parity.remedies import find_remedy
from packager.project.manifest import Project


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a CPU tensor as a C-contiguous array of the same shape and dtype; it may share the tensor's memory."""
    array: Array = tensor.detach().resolve_conj().resolve_neg().contiguous().numpy()
    return array


def bind_case(project: Project, case: InputCase) -> tuple[torch.Tensor, ...]:
    """Return the inputs of a test case as the tensors that forward() takes: copies, in the manifest's order."""
    return bind_inputs(project, list(case.inputs.values()))


def run_first_case(project: Project, model: LoadedModel, case: InputCase) -> tuple[LoadedModel, dict[str, Array]]:
    """Run the module for the first time, as `run_case` does; one that returns bfloat16 computes in float32 from now on.

    Returns the model with its `conversion`, and arrays by output name. Raises what `run_case` does.
    """
    outputs = _run_case(project, model, case)
    if model.conversion is None and any(tensor.dtype == torch.bfloat16 for tensor in outputs.values()):
        model = model.in_float32()
        outputs = _run_case(project, model, case)
    return model, _convert_outputs(project, outputs)


def run_case(project: Project, model: LoadedModel, case: InputCase) -> dict[str, Array]:
    """Run the module on a test case, in inference mode. Returns arrays by output name.

    Raises:
        ForwardFailed: forward() raised an exception; the error shows the last line of the user's code.
        OutputsUnsupported: forward() returned something other than tensors, tensors that clash with the names in the
            manifest or with each other, or tensors that NumPy or onnxruntime lacks a type for.
    """
    return _convert_outputs(project, _run_case(project, model, case))


def _run_case(project: Project, model: LoadedModel, case: InputCase) -> dict[str, torch.Tensor]:
    location = project.field_location("inputs")
    try:
        return _call_module(project, model.module, case)
    except output_tree.NotATensor as error:
        hint = "return tensors, alone or in tuples, dicts or dataclasses"
        raise OutputsUnsupported(location, str(error), hint) from None
    except output_tree.DuplicateOutputName as error:
        raise OutputsUnsupported(location, str(error), "rename one of them in forward()") from None
    except output_tree.OutputNamesMismatch as error:
        unknown = [name for name in error.requested if name not in error.returned]
        generic = "give every output a name, or use keys that forward() returns"
        close = find_close_name(unknown[0], error.returned) if unknown else None
        raise OutputsUnsupported(project.field_location("outputs"), str(error), close or generic) from None
    except (Exception, SystemExit) as error:
        shapes = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in case.inputs.items())
        sample = f"{case.name} ({shapes}), values: {case.value_description}"
        why, remedy = format_user_frame(error, project.folder), find_remedy(project, case, error)
        raise ForwardFailed(location, sample, why, remedy) from error


def _convert_outputs(project: Project, outputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Return outputs as arrays, by name. Raises `OutputsUnsupported` for tensors that NumPy or onnxruntime lacks."""
    location = project.field_location("inputs")
    for name, tensor in outputs.items():
        if tensor.is_complex():
            why = f"{name} is a {tensor.dtype} tensor; onnxruntime does not support complex numbers"
            raise OutputsUnsupported(location, why, "return torch.view_as_real(…) of it")
        if tensor.dtype == torch.bfloat16 or tensor.layout != torch.strided:
            why = f"{name} is a {tensor.dtype} tensor of layout {tensor.layout}; numpy has no such array"
            how = ".float()" if tensor.layout == torch.strided else ".to_dense()"
            raise OutputsUnsupported(location, why, f"convert it in forward(), for instance with {how}")
    return {name: to_numpy(tensor) for name, tensor in outputs.items()}


def _call_module(project: Project, module: torch.nn.Module, case: InputCase) -> dict[str, torch.Tensor]:
    """Call forward() and name its outputs. Raises the errors of `output_tree`, or what forward() raises."""
    with torch.inference_mode():
        outputs = output_tree.flatten_outputs(module(*bind_case(project, case)))
        for name, output in outputs.items():
            if not isinstance(output, torch.Tensor):  # NumPy arrays have a dtype and a shape too
                raise output_tree.NotATensor(name, type(output).__name__)
        return output_tree.select_outputs(outputs, project.manifest.outputs)


def run_with_state(
    project: Project,
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    case: InputCase,
    *,
    widen: bool = False,
) -> Mapping[str, Array]:
    """Run the module with these parameters and buffers, by name, in the place of its own; the module keeps its own.

    With `widen`, float inputs are converted to float64. Returns arrays by output name. Whatever forward() raises is
    passed on.
    """
    inputs = bind_case(project, case)
    if widen:
        inputs = tuple(widen_tensor(tensor) for tensor in inputs)
    with torch.inference_mode(), replaced_state(module, state):
        value = module(*inputs)
    outputs = output_tree.select_outputs(output_tree.flatten_outputs(value), project.manifest.outputs)
    return {name: to_numpy(tensor) for name, tensor in outputs.items()}


def compile_nothing() -> AbstractContextManager[Any]:
    """Let torch.cond run without being compiled while a TorchDispatchMode is active.

    torch.compile, which it calls, skips code that it meets under such a mode. From then on it compiles the code inside
    that alone, and fails (torch 2.13). A module that has not called it before needs nothing, and imports nothing: that
    would take a second.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def widen_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a float tensor in float64, a complex one in complex128; other tensors as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def get_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers of a module by name, also those that its state_dict leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextmanager
def replaced_state(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give the module these parameters and buffers, by name, in the place of its own for the time of the block.

    `torch.func.functional_call` does the same, but leaves the new tensors in a submodule that has two names (it takes
    them for the originals the second time), and in the list that a recurrent layer keeps of its weights.
    """
    own = get_state(module)
    replacements = {id(own[name]): tensor for name, tensor in state.items()}
    replaced: list[tuple[MutableMapping[str, Any], str, Any]] = [
        (tensors, name, tensor)
        for submodule in module.modules()
        for tensors in (submodule._parameters, submodule._buffers)
        for name, tensor in tensors.items()
        if id(tensor) in replacements
    ]
    try:
        for tensors, name, tensor in replaced:
            tensors[name] = replacements[id(tensor)]
        _list_rnn_weights(module)
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor
        _list_rnn_weights(module)


def _list_rnn_weights(module: torch.nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, torch.nn.RNNBase):
            layer._init_flat_weights()


def check_repeatable(project: Project, model: LoadedModel, grid: Grid, outputs: Mapping[str, Array]) -> None:
    """Run the probe case again and compare it with `outputs`, which it gave after the example case had run.

    A module that returns something different has no reference to compare an artifact with. It runs on a copy that was
    never called (if the module can be copied), so that a module that keeps what its first call computed shows too: an
    artifact would hold that state. It runs twice in a row, because a state may be reset whenever the size of the batch
    changes, as it does between example and probe. Float outputs may differ by the least tolerance of an artifact:
    kernels round in other ways if the weights of the copy are aligned differently, as they are if a .safetensors file
    was mapped.

    Raises:
        ForwardChangesWeights: forward() wrote to the parameters.
        NotRepeatable: an output differs.
    """
    changed = model.changed_parameters()
    if changed:
        raise ForwardChangesWeights(project.field_location("model"), changed)
    uncalled = replace(model, module=model.pristine_copy())
    for _ in range(2):
        repeated = run_case(project, uncalled, grid.probe_case)
        for name, array in outputs.items():
            if name not in repeated or not _is_same_output(array, repeated[name]):
                raise NotRepeatable(project.field_location("model"), name, grid.probe_case.name)


def _is_same_output(array: Array, repeated: Array) -> bool:
    tolerance = ElementTolerance(0.0, 0.0)
    if is_float(array):
        tolerance = derive_tolerance(get_minimum_noise(array.dtype), estimate_scales([array])[0], array.dtype)
    try:
        return compare(array, repeated, tolerance).within_tolerance
    except ShapesDiffer:
        return False


def drop_refused_masks(project: Project, model: LoadedModel, grid: Grid) -> tuple[Grid, dict[str, dict[str, Array]]]:
    """Remove rows of zeros from the masks of each test case on which forward() raises an exception because of them.

    A row of zeros in a mask means attention over nothing, which is undefined, and a manifest cannot say that every row
    of a mask has a one. Returns the grid, and the outputs of the cases with such rows that ran, by case and output
    name. `measure_reference` reports masks that were removed.

    Raises:
        OutputsUnsupported: as `run_case` does.
    """
    outputs: dict[str, dict[str, Array]] = {}
    if not generators.has_mask(tuple(project.manifest.inputs.values())):
        return grid, outputs
    cases = list(grid.cases)
    for index, case in enumerate(cases):
        if "low" in case.value_kinds:
            try:
                outputs[case.name] = run_case(project, model, case)
            except ForwardFailed:
                cases[index] = sample_grid.redraw_without_empty_masks(project, case)
    return replace(grid, cases=tuple(cases)), outputs


def drop_nothing_but_padding(
    project: Project, model: LoadedModel, grid: Grid
) -> tuple[Grid, dict[str, dict[str, Array]]]:
    """Leave out the constant test cases on which only the fast path of nn.TransformerEncoder raises an exception.

    It packs a batch without its padding, and raises if nothing is left, as with ids that are all padding. Without the
    fast path the same layers return numbers, so an artifact that returns them is not wrong. Returns the grid, and the
    outputs of the constant cases that ran, by case and output name. `measure_reference` reports those left out.

    Raises:
        OutputsUnsupported: as `run_case` does.
    """
    outputs: dict[str, dict[str, Array]] = {}
    if not any(isinstance(layer, torch.nn.TransformerEncoder) for layer in model.module.modules()):
        return grid, outputs
    refused = []
    for case in grid.cases:
        if case.is_constant:
            try:
                outputs[case.name] = run_case(project, model, case)
            except ForwardFailed:
                if _runs_without_fast_path(project, model, case):
                    refused.append(case.name)
    cases = tuple(case for case in grid.cases if case.name not in refused)
    return replace(grid, cases=cases, padding_cases=tuple(refused)), outputs


def _runs_without_fast_path(project: Project, model: LoadedModel, case: InputCase) -> bool:
    try:
        with disable_attention_fast_path():
            run_case(project, model, case)
    except ForwardFailed:
        return False
    return True
