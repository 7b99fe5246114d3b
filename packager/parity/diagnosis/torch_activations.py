"""Record the activations of the user's module: every operator that runs, with its module and the user's line.

PyTorch hands each operator to a `TorchDispatchMode` before it runs, whether a layer, a functional or a tensor's method
calls it. In inference mode these are the operators that people write (linear, layer_norm,
scaled_dot_product_attention), not the smaller ones that they are made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packager.common import output_tree
from packager.export.exporters import disable_attention_fast_path
from packager.model.code_dependencies import relative_inside
from packager.parity.diagnosis.activations import (
    INPUT_OPERATOR,
    Activation,
    Activations,
    ActivationsUnavailable,
    measure_typical_magnitude,
)
from packager.parity.diagnosis.budget import UNLIMITED, Budget, OutOfTime
from packager.parity.forward import compile_nothing, get_state, replaced_state, widen_tensor
from packager.parity.numerics.compare import Array
from packager.parity.numerics.tolerances import get_minimum_noise, measure_relative_difference

_NON_NUMPY_DTYPES = (torch.bfloat16, torch.complex32)


@dataclass(frozen=True)
class ModuleCall:
    """The user's module and the inputs of one case; `names` are the manifest's outputs, `folder` the user's code.

    A run of the module raises `OutOfTime` at the first operator after the budget is spent.
    """

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    names: Sequence[str] | None
    folder: Path
    budget: Budget = UNLIMITED


def record_module(call: ModuleCall, max_bytes: int) -> tuple[Activations, frozenset[str]]:
    """Record all values that depend on the inputs, and the paths of the modules that were called.

    Raises `ActivationsUnavailable` if the values take more than `max_bytes`, and what forward() raises.
    """
    return _record(call, call.module, call.inputs, max_bytes)


def measure_activation_noise(call: ModuleCall, activations: Activations, max_bytes: int) -> list[float | None]:
    """Measure the noise floor of each value: its largest difference from float64, relative to its own magnitude.

    None for values that are not floats, and for all values if the module does not run in float64, takes more than
    `max_bytes` there, or runs different operators.
    """
    module = call.module
    wide_state = {name: widen_tensor(tensor) for name, tensor in get_state(module).items()}
    wide_inputs = {name: widen_tensor(tensor) for name, tensor in call.inputs.items()}

    def forward(*inputs: torch.Tensor) -> Any:
        with replaced_state(module, wide_state):
            return module(*inputs)

    try:
        wide, _ = _record(call, forward, wide_inputs, max_bytes)
    except OutOfTime:
        raise
    except Exception:  # noqa: BLE001 (the user's code may refuse float64 in any way: then nothing is measured)
        return [None] * len(activations.values)
    if [value.operator for value in wide.values] != [value.operator for value in activations.values]:
        return [None] * len(activations.values)
    return [
        _measure_noise(value.array, wide_value.array)
        for value, wide_value in zip(activations.values, wide.values, strict=True)
    ]


def _measure_noise(array: Array | None, wide: Array | None) -> float | None:
    if array is None or wide is None or array.dtype.kind != "f" or array.shape != wide.shape:
        return None
    difference = measure_relative_difference(array, wide, measure_typical_magnitude(array))
    return max(get_minimum_noise(array.dtype), difference)


def _record(
    call: ModuleCall, forward: Callable[..., Any], inputs: Mapping[str, torch.Tensor], max_bytes: int
) -> tuple[Activations, frozenset[str]]:
    recorder = _Recorder(call.folder, max_bytes, call.budget)
    with (
        compile_nothing(),
        torch.inference_mode(),
        disable_attention_fast_path(),
        _track_modules(call.module, recorder),
    ):
        for name, tensor in inputs.items():
            recorder.add(name, INPUT_OPERATOR, (), [tensor])
        with recorder:
            returned = forward(*inputs.values())
    tensors = output_tree.select_outputs(output_tree.flatten_outputs(returned), call.names)
    outputs = {
        name: recorder.computed[id(tensor)] for name, tensor in tensors.items() if id(tensor) in recorder.computed
    }
    return Activations(tuple(recorder.values), outputs), frozenset(recorder.called)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own metaclass hook
    """Record every operator that computes something from the inputs."""

    def __init__(self, folder: Path, max_bytes: int, budget: Budget) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.values: list[Activation] = []
        self.computed: dict[int, int] = {}  # id of a tensor → index of its value
        self.modules: list[str] = []  # running, the innermost last
        self.called: set[str] = set()
        self._written: dict[int, int] = {}  # address of a storage → index of the last value written into it in place
        self._alive: list[torch.Tensor] = []  # ids are unique only among living tensors
        self._folder = folder
        self._user_files: dict[str, Path | None] = {}
        self._bytes_left = max_bytes
        self._budget = budget

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._budget.check()
        reads = sorted({index for tensor in _iter_tensors((args, kwargs or {})) for index in self._find_values(tensor)})
        returned = func(*args, **(kwargs or {}))
        if reads:
            first = len(self.values)
            operator = str(func._schema.name).removeprefix("aten::")
            self.add("", operator, tuple(reads), list(_iter_tensors(returned)))
            if func._schema.is_mutable:
                for argument, tensor in zip(func._schema.arguments, args, strict=False):
                    if isinstance(tensor, torch.Tensor) and argument.alias_info and argument.alias_info.is_write:
                        self._written[tensor.untyped_storage().data_ptr()] = max(first, len(self.values) - 1)
        return returned

    def add(self, name: str, operator: str, reads: tuple[int, ...], results: Sequence[torch.Tensor]) -> None:
        """Add a value for each result of an operator. Raises `ActivationsUnavailable` if they take too much memory."""
        source_line = self._find_user_line() if operator != INPUT_OPERATOR else None
        module = self.modules[-1] if self.modules else None
        for tensor in results:
            self._bytes_left -= tensor.numel() * tensor.element_size()
            if self._bytes_left < 0:
                raise ActivationsUnavailable("the module's activations take too much memory")
            self.computed[id(tensor)] = len(self.values)
            self._alive.append(tensor)
            self.values.append(Activation(name, operator, reads, _to_array(tensor), module, source_line))

    def _find_values(self, tensor: torch.Tensor) -> Iterator[int]:
        """Find the values in a tensor: the one that it was computed as, and the last one written into it since."""
        computed = self.computed.get(id(tensor))
        if computed is not None:
            yield computed
        written = self._written.get(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else None
        if written is not None and (computed is None or written > computed):
            yield written

    def _find_user_line(self) -> str | None:
        """Find the innermost line of the user's code on the stack: `model.py:41`."""
        frame = inspect.currentframe()
        while frame is not None:
            name = frame.f_code.co_filename
            if name not in self._user_files:
                self._user_files[name] = relative_inside(name, self._folder)
            path = self._user_files[name]
            if path is not None:
                return f"{path.as_posix()}:{frame.f_lineno}"
            frame = frame.f_back
        return None


@contextmanager
def _track_modules(module: torch.nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which module is running; TorchScript calls its submodules from C++, so those stay unknown."""
    hooks = []
    for name, submodule in module.named_modules():
        if isinstance(submodule, torch.jit.ScriptModule):
            continue

        def enter(_module: torch.nn.Module, _inputs: object, name: str = name) -> None:
            recorder.modules.append(name)
            recorder.called.add(name)

        def leave(_module: torch.nn.Module, _inputs: object, _outputs: object) -> None:
            recorder.modules.pop()

        hooks.append(submodule.register_forward_pre_hook(enter))
        hooks.append(submodule.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _iter_tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _iter_tensors(item)


def _to_array(tensor: torch.Tensor) -> Array | None:
    if tensor.dtype in _NON_NUMPY_DTYPES or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    copy: Array = tensor.detach().resolve_conj().resolve_neg().clone().contiguous().numpy()
    return copy
