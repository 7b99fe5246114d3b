"""Evaluate the module with onnxruntime's elementwise functions in the place of torch's.

A runtime has its own approximations: onnxruntime's Sigmoid is good to 8e-8 absolutely, which is much of a probability
of 1e-6, where torch's is good to a relative 1e-7. Each function that the module calls is run by onnxruntime itself, on
the module's own values, so its error reaches the outputs the way it will in the artifact.

A function counts only if it is as accurate as float32 allows: up to 4 machine epsilons of max(1, |value|) from float64
on a grid of its range. So a kernel that is wrong is not excused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper
from torch.utils._python_dispatch import TorchDispatchMode

from packager.model.loader import LoadedModel
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import run_with_state
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
_MAX_ERROR_IN_EPSILONS = 4
_OPSET, _IR_VERSION = 17, 8
_GRID = np.concatenate([np.linspace(-90, 90, 1 << 14), np.geomspace(1e-30, 1e30, 1 << 12)]).astype(np.float32)


def run_with_runtime_functions(
    project: Project, model: LoadedModel, case: InputCase
) -> tuple[Mapping[str, Array], frozenset[str]]:
    """Run the module with onnxruntime's functions. Returns arrays by output name, and the ONNX operators that ran."""
    with _RuntimeFunctions() as functions:
        outputs = run_with_state(project, model.module, {}, case)
    return outputs, frozenset(functions.used)


@cache
def measure_function_error(operator: str) -> float:
    """Return the largest |onnxruntime - float64| / max(1, |float64|) of an ONNX operator on a grid of its range."""
    grid = _GRID[_GRID > 0] if operator == "Log" else _GRID
    exact = _EXACT[operator](torch.from_numpy(grid).double()).numpy()
    counted = np.abs(exact) < np.finfo(np.float32).max  # exp overflows
    actual, exact = _run_operator(operator, grid)[counted], exact[counted]
    return float((np.abs(actual - exact) / np.maximum(1.0, np.abs(exact))).max())


class _RuntimeFunctions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stubs
    """While active, onnxruntime computes the elementwise functions of float32 tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stubs
        self.used: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, or the function of onnxruntime that exporters write in its place."""
        name = function.overloadpacket.__name__
        write = _DECOMPOSITIONS.get(name.rstrip("_"))
        if write is None or not _is_plain_float32(args[0]) or function._overloadname == "out":
            return function(*args, **(kwargs or {}))
        result = write(self._apply, *args, **(kwargs or {}))
        return args[0].copy_(result) if name.endswith("_") else result

    def _apply(self, operator: str, tensor: torch.Tensor) -> torch.Tensor:
        """Apply an elementwise ONNX operator."""
        if measure_function_error(operator) > _MAX_ERROR_IN_EPSILONS * np.finfo(np.float32).eps:
            return _EXACT[operator](tensor)
        self.used.add(operator)
        return torch.from_numpy(_run_operator(operator, tensor.detach().contiguous().numpy()))


Apply = Callable[[str, torch.Tensor], torch.Tensor]


def _gelu(apply: Apply, x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    if approximate == "none":
        return 0.5 * x * (1.0 + apply("Erf", x / math.sqrt(2.0)))
    return 0.5 * x * (1.0 + apply("Tanh", math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _softplus(apply: Apply, x: torch.Tensor, beta: float = 1, threshold: float = 20) -> torch.Tensor:
    return torch.where(x * beta > threshold, x, apply("Softplus", x * beta) / beta)


def _glu(apply: Apply, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    value, gate = x.chunk(2, dim)
    return value * apply("Sigmoid", gate)


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
}
"""What exporters write for each operator of torch, by its name."""


def _is_plain_float32(tensor: Any) -> bool:
    is_dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return is_dense and tensor.dtype == torch.float32


def _run_operator(operator: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = _open_operator(operator).run(None, {"x": values.reshape(-1)})[0]
    return result.reshape(values.shape)


@cache
def _open_operator(operator: str) -> onnxruntime.InferenceSession:
    """Open a session on a graph of one operator, from a float32 vector x to a vector y."""
    vectors = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], operator, vectors[:1], vectors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
