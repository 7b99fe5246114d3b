"""Convert a module to a different dtype: the one that `model.dtype` names, or float32 in the place of bfloat16.

NumPy has no bfloat16, and onnxruntime has next to no kernels for it on a CPU. Every bfloat16 number is a float32 number
too, so a module in bfloat16 is packaged in float32: its weights are the same numbers, and its arithmetic rounds less.

Other weights are not enough. Inputs may still arrive in the narrower dtype, and forward() may name it itself
(`x.to(torch.bfloat16)`, `x.half()`). Hooks around forward() take care of both, in the eager module as well as in
whatever is traced or exported from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_NARROW_DTYPES = frozenset({torch.bfloat16, torch.float16})
_CAST_METHODS = {"bfloat16": torch.bfloat16, "half": torch.float16}


@dataclass(frozen=True)
class Conversion:
    """The dtype that a module was converted to, `float32`, and those that it had before.

    `is_requested` says whether that is what `model.dtype` asks for.
    """

    own: tuple[str, ...]
    target: str
    is_requested: bool

    def describe(self) -> str:
        """Return the sentence that tells the user."""
        own = " and ".join(self.own)
        if self.is_requested:
            return f"the module was converted from {own} to {self.target}, as model.dtype says"
        return (
            f"the module computes in {own}: it is packaged in {self.target}, which holds its weights exactly and "
            f"rounds less; its outputs come as {self.target}"
        )

    def describe_reference(self) -> str:
        """Return what the artifacts are compared with, in words that follow `the reference is`."""
        own = " and ".join(self.own)
        if self.is_requested:
            return f"the PyTorch module, eager, converted from {own} to {self.target} as model.dtype says, on the CPU"
        return (
            f"the PyTorch module, eager, in {self.target} instead of its own {own}, on the CPU: its weights are exact "
            f"in {self.target}, and its outputs in {own} are a rounding of these"
        )


def convert_module(module: torch.nn.Module, dtype: str | None) -> Conversion | None:
    """Convert a module in place to the dtype `model.dtype`; without one, to float32 whatever is bfloat16.

    Returns None if nothing had to be converted. Integers, booleans and complex numbers stay as they are.
    """
    target = torch.float32 if dtype is None else _get_dtype(dtype)
    present = {tensor.dtype for tensor in _iterate_floats(module)}
    own = {torch.bfloat16} & present if dtype is None else present - {target}
    if not own:
        return None
    module._apply(lambda tensor: tensor.to(target) if tensor.dtype in own else tensor)  # type: ignore[no-untyped-call]  # torch's stubs
    _hook_forward(module, frozenset(own))
    return Conversion(tuple(sorted(map(_name_dtype, own))), _name_dtype(target), dtype is not None)


def describe_widened(state: Mapping[str, torch.Tensor]) -> Conversion | None:
    """Return the conversion that transformers makes when it loads these weights in float32; None if they are so."""
    narrow = sorted({_name_dtype(tensor.dtype) for tensor in state.values() if tensor.dtype in _NARROW_DTYPES})
    return Conversion(tuple(narrow), "float32", False) if narrow else None


def compute_in_float32(module: torch.nn.Module) -> Conversion:
    """Make a module in float32 stay there where forward() names bfloat16, as for its outputs."""
    _hook_forward(module, frozenset({torch.bfloat16}))
    return Conversion(("bfloat16",), "float32", False)


@contextmanager
def without_hooks(module: torch.nn.Module) -> Iterator[None]:
    """Remove the hooks of a converted module in the block: torch.jit.script() would compile them."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    hooks = [(hooks, key, hook) for hooks in (before, after) for key, hook in hooks.items() if _is_ours(hook)]
    for registered, key, _ in hooks:
        del registered[key]
    try:
        yield
    finally:
        for registered, key, hook in hooks:
            registered[key] = hook


def _hook_forward(module: torch.nn.Module, own: frozenset[torch.dtype]) -> None:
    hooks = _ForwardHooks(own & _NARROW_DTYPES)
    module.register_forward_pre_hook(hooks.before)
    module.register_forward_hook(hooks.after, always_call=True)


def _is_ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), _ForwardHooks)


class _ForwardHooks:
    """Widen the inputs of forward(), and replace the narrow dtypes that it names.

    The dtype in their place is that of the module's weights at the time of the call, which is float64 where the noise
    is measured.
    """

    def __init__(self, narrow: frozenset[torch.dtype]) -> None:
        self._narrow = narrow
        self._active: list[_ReplaceDtypes] = []

    def before(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Widen float inputs, which is exact. Runs before forward()."""
        target = next((tensor.dtype for tensor in _iterate_floats(module)), torch.float32)
        self._active.append(_ReplaceDtypes(self._narrow, target))
        self._active[-1].__enter__()  # type: ignore[no-untyped-call]  # torch's stubs
        return tuple(_widen(value, target) for value in inputs)

    def after(self, _module: torch.nn.Module, _inputs: tuple[Any, ...], _outputs: Any) -> None:
        """Let torch use every dtype again. Runs after forward(), whether or not it raised an exception."""
        if self._active:
            self._active.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's stubs


class _ReplaceDtypes(torch.overrides.TorchFunctionMode):
    """While active, torch's functions get `target` for any dtype in `narrow`, and torch.autocast has no effect."""

    def __init__(self, narrow: frozenset[torch.dtype], target: torch.dtype) -> None:
        super().__init__()
        self._narrow = narrow
        self._target = target

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with the other dtype."""
        if _CAST_METHODS.get(getattr(function, "__name__", "")) in self._narrow:
            return args[0].to(self._target)
        kwargs = {name: self._replace(value) for name, value in (kwargs or {}).items()}
        with torch._C._DisableAutocast():
            return function(*(self._replace(value) for value in args), **kwargs)

    def _replace(self, value: Any) -> Any:
        return self._target if isinstance(value, torch.dtype) and value in self._narrow else value


def _widen(value: Any, target: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(target) if is_float and value.dtype.itemsize < target.itemsize else value


def _iterate_floats(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    tensors = itertools.chain(module.parameters(), module.buffers())
    return (tensor for tensor in tensors if tensor.is_floating_point())


def _get_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
