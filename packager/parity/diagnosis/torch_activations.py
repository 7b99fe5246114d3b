"""The user's module as a flow: every operator that PyTorch runs, with the module and the user's line that asked for it.

PyTorch hands each operator to a `TorchDispatchMode` before it runs, whoever calls it: a layer, a functional, a
method of a tensor. In inference mode these are the operators that people write (linear, layer_norm,
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
from packager.model.code_dependencies import relative_inside
from packager.parity.diagnosis.activations import (
    INPUT_OPERATOR,
    Activation,
    Activations,
    ActivationsUnavailable,
    measure_typical_magnitude,
)
from packager.parity.numerics.compare import Array
from packager.parity.numerics.tolerances import get_minimum_noise, measure_relative_difference

_NON_NUMPY_DTYPES = (torch.bfloat16, torch.complex32)


@dataclass(frozen=True)
class ModuleCall:
    """The user's module with one case; `names` are the manifest's outputs, `folder` holds the user's code."""

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    names: Sequence[str] | None
    folder: Path


def record_module(call: ModuleCall, most_bytes: int) -> tuple[Activations, frozenset[str]]:
    """All values on the way from the inputs, and the paths of the modules that were called.

    Raises `NotSeen` where the values are too many, and what forward() raises.
    """
    return _record(call, call.module, call.inputs, most_bytes)


def measure_activation_noise(eager: ModuleCall, activations: Activations, most_bytes: int) -> list[float | None]:
    """The noise floor of each value, as outputs have one: its difference from float64, relative to its own size.

    None where it has none: integers, and where the module does something else in float64 or does not run in it.
    """
    state = {**dict(eager.module.named_parameters()), **dict(eager.module.named_buffers())}
    wide = {name: _to_float64(one) for name, one in state.items()}
    inputs = {name: _to_float64(one) for name, one in eager.inputs.items()}

    def call(*given: torch.Tensor) -> Any:
        return torch.func.functional_call(eager.module, wide, given)

    try:
        other, _ = _record(eager, call, inputs, most_bytes)
    except Exception:  # noqa: BLE001 (the user's code may refuse float64 in any way: then nothing is measured)
        return [None] * len(activations.values)
    finally:
        for one in eager.module.modules():
            if isinstance(one, torch.nn.RNNBase):
                one._init_flat_weights()  # where it keeps them too, functional_call has left the wide ones
    if [one.operator for one in other.values] != [one.operator for one in activations.values]:
        return [None] * len(activations.values)
    return [_measure_floor(one.array, two.array) for one, two in zip(activations.values, other.values, strict=True)]


def _to_float64(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _measure_floor(array: Array | None, other: Array | None) -> float | None:
    if array is None or other is None or array.dtype.kind != "f" or array.shape != other.shape:
        return None
    return max(
        get_minimum_noise(array.dtype), measure_relative_difference(array, other, measure_typical_magnitude(array))
    )


def _record(
    eager: ModuleCall, call: Callable[..., Any], inputs: Mapping[str, torch.Tensor], most_bytes: int
) -> tuple[Activations, frozenset[str]]:
    recorder = _Recorder(eager.folder, most_bytes)
    with torch.inference_mode(), _disable_fast_path(), _track_modules(eager.module, recorder):
        for name, tensor in inputs.items():
            recorder.add(name, INPUT_OPERATOR, (), [tensor])
        with recorder:
            returned = call(*inputs.values())
    flat = output_tree.select_outputs(output_tree.flatten_outputs(returned), eager.names)
    places = {name: recorder.computed.get(id(tensor)) for name, tensor in flat.items()}
    found = {name: place for name, place in places.items() if place is not None}
    return Activations(tuple(recorder.values), found), frozenset(recorder.called)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own metaclass hook
    """Notes every operator that computes something from the inputs."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.values: list[Activation] = []
        self.computed: dict[int, int] = {}  # a tensor's id → the value that it is
        self.modules: list[str] = []  # at work, the innermost last
        self.called: set[str] = set()
        self._written: dict[int, int] = {}  # a storage → the last value written into it in place
        self._held: list[torch.Tensor] = []  # an id is a tensor's own as long as it lives
        self._folder = folder
        self._files: dict[str, Path | None] = {}
        self._left = most_bytes

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = list(_iter_tensors((args, kwargs or {})))
        reads = sorted({place for tensor in given for place in self._read(tensor)})
        returned = func(*args, **(kwargs or {}))
        if reads:
            made = list(_iter_tensors(returned))
            first = len(self.values)
            self.add("", str(func._schema.name).removeprefix("aten::"), tuple(reads), made)
            if func._schema.is_mutable:
                for argument, tensor in zip(func._schema.arguments, args, strict=False):
                    if isinstance(tensor, torch.Tensor) and argument.alias_info and argument.alias_info.is_write:
                        self._written[tensor.untyped_storage().data_ptr()] = max(first, len(self.values) - 1)
        return returned

    def add(self, name: str, operator: str, reads: tuple[int, ...], made: Sequence[torch.Tensor]) -> None:
        """One operator's results, each a value."""
        place = self._find_user_line() if operator != INPUT_OPERATOR else None
        module = self.modules[-1] if self.modules else None
        for tensor in made:
            self._left -= tensor.numel() * tensor.element_size()
            if self._left < 0:
                raise ActivationsUnavailable("the values on the way take more memory than is spent on looking at them")
            self.computed[id(tensor)] = len(self.values)
            self._held.append(tensor)
            self.values.append(Activation(name, operator, reads, _to_array(tensor), module, place))

    def _read(self, tensor: torch.Tensor) -> Iterator[int]:
        """The values that a tensor holds: the one that it was computed as, and what was written into it since."""
        place = self.computed.get(id(tensor))
        if place is not None:
            yield place
        written = self._written.get(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else None
        if written is not None and (place is None or written > place):
            yield written

    def _find_user_line(self) -> str | None:
        """The innermost line of the user's own code on the stack: `model.py:41`."""
        frame = inspect.currentframe()
        while frame is not None:
            name = frame.f_code.co_filename
            if name not in self._files:
                self._files[name] = relative_inside(name, self._folder)
            found = self._files[name]
            if found is not None:
                return f"{found.as_posix()}:{frame.f_lineno}"
            frame = frame.f_back
        return None


@contextmanager
def _disable_fast_path() -> Iterator[None]:
    """Without the fast path of nn.MultiheadAttention and the encoder, in which a whole layer is one operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _track_modules(module: torch.nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which module is at work. TorchScript calls its own from C++, and so tells of none."""
    hooks = []
    for name, one in module.named_modules():
        if isinstance(one, torch.jit.ScriptModule):
            continue

        def enter(_module: torch.nn.Module, _given: object, name: str = name) -> None:
            recorder.modules.append(name)
            recorder.called.add(name)

        def leave(_module: torch.nn.Module, _given: object, _made: object) -> None:
            recorder.modules.pop()

        hooks.append(one.register_forward_pre_hook(enter))
        hooks.append(one.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _iter_tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _iter_tensors(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _iter_tensors(one)


def _to_array(tensor: torch.Tensor) -> Array | None:
    if tensor.dtype in _NON_NUMPY_DTYPES or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    copy: Array = tensor.detach().resolve_conj().resolve_neg().clone().contiguous().numpy()
    return copy
