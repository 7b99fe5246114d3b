"""Evaluate the module with onnxruntime's functions and normalizations in the place of torch's.

A runtime has its own approximations: onnxruntime's Sigmoid is good to 8e-8 absolutely, which is much of a probability
of 1e-6, where torch's is good to a relative 1e-7. Its InstanceNormalization sums in another order, and divides what
rounding left of a constant channel by almost nothing. Each function that the module calls is run by onnxruntime itself,
on the module's own values, so its error reaches the outputs the way it will in the artifact.

A function counts only if it is as accurate as float32 allows: up to 4 machine epsilons of max(1, |value|) from float64
on a grid of its range, or on normal numbers. So a kernel that is wrong is not excused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch.utils._python_dispatch import TorchDispatchMode

from packager.common.ort import onnxruntime
from packager.model.loader import LoadedModel
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import compile_nothing, run_with_state
from packager.parity.numerics.compare import Array
from packager.project.manifest import Project

_EXACT: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Softplus": torch.nn.functional.softplus,
}
_NORMALIZATIONS = ("InstanceNormalization", "LayerNormalization")
_EPSILON = 1e-5  # of a normalization whose accuracy is measured
_MAX_ERROR_IN_EPSILONS = 4
_OPSET, _IR_VERSION = 17, 8
_GRID = np.concatenate([np.linspace(-90, 90, 1 << 14), np.geomspace(1e-30, 1e30, 1 << 12)]).astype(np.float32)


def run_with_runtime_functions(
    project: Project, model: LoadedModel, case: InputCase
) -> tuple[Mapping[str, Array], frozenset[str]]:
    """Run the module with onnxruntime's functions. Returns arrays by output name, and the ONNX operators that ran."""
    with compile_nothing(), _RuntimeFunctions() as functions:
        outputs = run_with_state(project, model.module, {}, case)
    return outputs, frozenset(functions.used)


@cache
def measure_function_error(operator: str) -> float:
    """Return the largest |onnxruntime - float64| / max(1, |float64|) of an ONNX operator on a grid of its range."""
    if operator in _NORMALIZATIONS:
        values = np.random.default_rng(0).standard_normal((4, 8, 257)).astype(np.float32)
        wide = values.astype(np.float64)
        exact = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + _EPSILON)
        actual = _normalize_array(operator, values, _EPSILON)
    else:
        values = _GRID[_GRID > 0] if operator == "Log" else _GRID
        exact = _EXACT[operator](torch.from_numpy(values).double()).numpy()
        actual = _run_operator(operator, {}, values)
    counted = np.abs(exact) < np.finfo(np.float32).max  # exp overflows
    return float((np.abs(actual[counted] - exact[counted]) / np.maximum(1.0, np.abs(exact[counted]))).max())


class _NoCounterpart(Exception):
    """onnxruntime has no function that computes the same, or none as accurate."""


class _RuntimeFunctions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stubs
    """While active, onnxruntime computes the elementwise functions of float32 tensors."""

    supports_higher_order_operators = True  # such as torch.cond, which runs as a whole

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stubs
        self.used: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, or the function of onnxruntime that exporters write in its place."""
        name = getattr(function, "overloadpacket", function).__name__
        write = _DECOMPOSITIONS.get(name.rstrip("_"))
        if write is None or not _is_plain_float32(args[0]) or function._overloadname == "out":
            return function(*args, **(kwargs or {}))
        try:
            result = write(self._apply, *args, **(kwargs or {}))
        except _NoCounterpart:
            return function(*args, **(kwargs or {}))
        return args[0].copy_(result) if name.endswith("_") else result

    def _apply(self, operator: str, tensor: torch.Tensor, epsilon: float | None = None) -> torch.Tensor:
        """Apply an elementwise ONNX operator, or normalize the last axis of (rows, channels, elements)."""
        if measure_function_error(operator) > _MAX_ERROR_IN_EPSILONS * np.finfo(np.float32).eps:
            raise _NoCounterpart
        self.used.add(operator)
        values = tensor.detach().contiguous().numpy()
        if epsilon is None:
            return torch.from_numpy(_run_operator(operator, {}, values))
        return torch.from_numpy(_normalize_array(operator, values, epsilon))


Apply = Callable[..., torch.Tensor]


def _gelu(apply: Apply, x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    if approximate == "none":
        return 0.5 * x * (1.0 + apply("Erf", x / math.sqrt(2.0)))
    return 0.5 * x * (1.0 + apply("Tanh", math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _softplus(apply: Apply, x: torch.Tensor, beta: float = 1, threshold: float = 20) -> torch.Tensor:
    return torch.where(x * beta > threshold, x, apply("Softplus", x * beta) / beta)


def _glu(apply: Apply, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    value, gate = x.chunk(2, dim)
    return value * apply("Sigmoid", gate)


def _layer_norm(
    apply: Apply,
    x: torch.Tensor,
    shape: list[int],
    weight: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    *_: Any,
) -> torch.Tensor:
    y = apply("LayerNormalization", x.reshape(1, -1, math.prod(shape)), epsilon).reshape(x.shape)
    return _scale(y, weight, bias)


def _group_norm(
    apply: Apply, x: torch.Tensor, groups: int, weight: Any = None, bias: Any = None, epsilon: float = 1e-5, *_: Any
) -> torch.Tensor:
    channels = (-1, *(1 for _ in x.shape[2:]))
    y = apply("InstanceNormalization", x.reshape(len(x), groups, -1), epsilon).reshape(x.shape)
    return _scale(y, *(None if tensor is None else tensor.reshape(channels) for tensor in (weight, bias)))


def _instance_norm(apply: Apply, x: torch.Tensor, weight: Any, bias: Any, *settings: Any) -> torch.Tensor:
    _mean, _variance, uses_input, _momentum, epsilon, _cudnn = settings
    if not uses_input:
        raise _NoCounterpart
    return _group_norm(apply, x, x.shape[1], weight, bias, epsilon)


def _scale(y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


_DECOMPOSITIONS: Mapping[str, Callable[..., torch.Tensor]] = {
    "sigmoid": lambda apply, x: apply("Sigmoid", x),
    "tanh": lambda apply, x: apply("Tanh", x),
    "erf": lambda apply, x: apply("Erf", x),
    "exp": lambda apply, x: apply("Exp", x),
    "log": lambda apply, x: apply("Log", x),
    "sin": lambda apply, x: apply("Sin", x),
    "cos": lambda apply, x: apply("Cos", x),
    "silu": lambda apply, x: x * apply("Sigmoid", x),
    "mish": lambda apply, x: x * apply("Tanh", _softplus(apply, x)),
    "gelu": _gelu,
    "softplus": _softplus,
    "glu": _glu,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
}
"""What exporters write for each operator of torch, by its name."""


def _is_plain_float32(tensor: Any) -> bool:
    if not isinstance(tensor, torch.Tensor) or tensor.is_nested:
        return False
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _normalize_array(operator: str, values: NDArray[np.float32], epsilon: float) -> NDArray[np.float32]:
    """Normalize the last axis of (rows, channels, elements) to mean 0 and variance 1."""
    size = values.shape[2] if operator == "LayerNormalization" else values.shape[1]
    ones, zeros = np.ones(size, np.float32), np.zeros(size, np.float32)
    return _run_operator(operator, {"epsilon": epsilon}, values, ones, zeros)


def _run_operator(operator: str, attributes: Mapping[str, float], *inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    names = "abc"[: len(inputs)]
    session = _open_operator(operator, tuple(attributes.items()), names)
    result: NDArray[np.float32] = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return result


@cache
def _open_operator(
    operator: str, attributes: tuple[tuple[str, float], ...], names: str
) -> onnxruntime.InferenceSession:
    """Open a session on a graph of one operator with float32 inputs of any shape."""
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = helper.make_node(operator, list(names), ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes)
    graph = helper.make_graph([node], operator, inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
