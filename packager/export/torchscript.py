"""Convert the eager module to TorchScript: trace or script it, freeze it, save it to the same bytes every time.

`torch.jit` is deprecated, so whatever it cannot do is done without it: `packager.export.exported_program` is the other
way to run a model without its Python code. A trace records the operations of
one call, so it keeps only one side of a branch on data. A script compiles the source and keeps the branch, if it
compiles at all.

`torch.jit.save` writes a ZIP archive that differs from run to run (pytorch#42163, #112425): debug files with source
positions, a `serialization_id`, the file's own name as the folder inside, and class names that count how many classes
were made before (`___torch_mangle_14`). None of these affects what the program computes; `save` rewrites the archive
without them.

`torch.jit.optimize_for_inference` is left to the loader: its result is specific to the machine, and cannot be loaded
from a file (the weights that it packs are not saved).
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from packager.common import deterministic_zip
from packager.common.paths import PACKAGE
from packager.export import control_flow, weights
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import (
    ExporterFailed,
    FlatOutputs,
    disable_attention_fast_path,
    retry_with_plain_is_causal,
    to_exporter_failed,
)
from packager.export.graph.messages import StageRecord
from packager.export.rounded_sizes import watch_rounding
from packager.model import precision

_CODE_ALLOWANCE_BYTES = 1 << 20  # more than a program's code and archive need besides the weights
# Without the underscore that operators working in place have.
_DECISION_OPERATORS = frozenset({
    "topk", "sort", "msort", "argsort", "argmax", "argmin", "kthvalue", "median", "nanmedian", "mode", "nonzero",
    "nonzero_numpy", "unique", "unique_consecutive", "_unique2", "unique_dim", "count_nonzero", "any", "all",
    "round", "floor", "ceil", "trunc", "fix", "frac", "sign", "sgn", "signbit", "floor_divide", "remainder", "fmod",
    "bucketize", "searchsorted", "histc", "heaviside", "threshold", "hardshrink", "grid_sampler",
    "gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "greater_equal", "less_equal", "not_equal", "isclose",
    "equal", "allclose", "logical_not", "logical_and", "logical_or", "logical_xor",
})  # fmt: skip
# Their second output is indices, which many callers ignore.
_INDEX_OPERATORS = frozenset({
    "max", "min", "cummax", "cummin", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d",
    "fractional_max_pool3d",
})  # fmt: skip
# How many operands of each are numbers: sizes, or what forward() computes of them.
_ARITHMETIC = {"prim::NumToTensor": 1, "aten::neg": 1, "aten::add": 2, "aten::sub": 2, "aten::rsub": 2, "aten::mul": 2,
               "aten::div": 2}  # fmt: skip
_ROUNDINGS = {"aten::ceil": 1, "aten::floor": 1, "aten::to": 1, "aten::floor_divide": 2, "aten::remainder": 2}
_INTEGER_TYPES = ("Bool", "Byte", "Char", "Short", "Int", "Long")
_MANGLED = re.compile(rb"___torch_mangle_\d+")


@dataclass(frozen=True)
class TorchScriptProgram:
    """A TorchScript module, how it was made, and the data-dependent control flow that was fixed at trace time.

    `has_discrete_decisions` tells whether it may decide something by floats: an order, an index, a comparison, a
    step. `stages` records its comparison with the eager module on the probe cases. `script_failure` is why a trace
    that was wrong there could not be replaced by a script. `fixes_rounded_sizes` says that the trace made numbers of
    sizes that forward() rounds.
    """

    method: Literal["trace", "script"]
    module: torch.jit.ScriptModule
    specialized: SpecializedControlFlow
    has_discrete_decisions: bool
    stages: tuple[StageRecord, ...] = ()
    script_failure: ExporterFailed | None = None
    fixes_rounded_sizes: bool = False


def trace(
    module: torch.nn.Module,
    names: Sequence[str] | None,
    inputs: tuple[torch.Tensor, ...],
    folder: Path,
    *,
    keep_rounded_sizes: bool = False,
) -> TorchScriptProgram:
    """Trace one call of the module; `names` and `folder` are the manifest's outputs and the user's code.

    `keep_rounded_sizes` traces what math.ceil and math.floor do with sizes. Raises `ExporterFailed`.
    """
    with ExitStack() as stack:
        get_control_flow = stack.enter_context(control_flow.record_control_flow())
        has_rounded = stack.enter_context(watch_rounding(keep=keep_rounded_sizes))
        stack.enter_context(torch.no_grad())
        stack.enter_context(disable_attention_fast_path())
        _reserve_modulelist_name()
        try:
            flat = FlatOutputs(module, names).eval()
            traced = retry_with_plain_is_causal(partial(torch.jit.trace, flat, inputs, check_trace=False))
        except Exception as error:
            raise to_exporter_failed(error, folder) from error
    fixed = get_control_flow(_count_slice_bounds(traced.inlined_graph))
    specialized = replace(fixed, rounded_size_lines=_find_rounded_sizes(traced.inlined_graph))
    decides = bool(specialized.user_lines) or _has_discrete_decisions(traced.inlined_graph)
    fixes = has_rounded() and not keep_rounded_sizes
    return TorchScriptProgram("trace", traced, specialized, decides, fixes_rounded_sizes=fixes)


def script(module: torch.nn.Module, folder: Path) -> TorchScriptProgram:
    """Compile the module's source, branches included. Raises `ExporterFailed`."""
    _reserve_modulelist_name()
    try:
        with precision.without_hooks(module):
            scripted = torch.jit.script(module)
    except Exception as error:
        _forget_compiled_classes()
        raise to_exporter_failed(error, folder) from error
    specialized = SpecializedControlFlow(rounded_size_lines=_find_rounded_sizes(scripted.inlined_graph))
    return TorchScriptProgram("script", scripted, specialized, _has_discrete_decisions(scripted.inlined_graph))


def _has_discrete_decisions(graph: Any) -> bool:
    return any(_is_decision(node) for node in _iter_nodes(graph))


def _find_rounded_sizes(graph: Any) -> tuple[str, ...]:
    """List the lines that compute a size with a number that float32 cannot represent exactly, such as 0.7.

    That is a scale of F.interpolate, a step of torch.arange with a bound that is not constant, or what forward()
    computes of sizes before it rounds. There, a quotient that is multiplied counts as such a number.
    """
    lines = set()
    for node in _iter_nodes(graph):
        inputs = list(node.inputs())
        if node.kind().startswith(("aten::upsample_", "aten::_upsample_")):
            inputs = list(inputs[-1].node().inputs())  # the scales, if there are any
        elif node.kind() in ("aten::ceil", "aten::floor"):
            inputs = _list_size_operands(inputs[0])
            if inputs and _scales_quotient(node.inputsAt(0)):
                lines.add(_find_user_line(node.sourceRange()))
        elif node.kind() != "aten::arange" or all(value.node().kind() == "prim::Constant" for value in inputs[:3]):
            continue
        numbers = [number for value in inputs if isinstance(number := _get_number(value), float)]
        if any(ctypes.c_float(number).value != number for number in numbers):
            lines.add(_find_user_line(node.sourceRange()))
    return tuple(sorted(lines))


def _get_number(value: Any) -> Any:
    """Return a constant as a number, be it one or a tensor of one element, as a trace writes operands of sizes."""
    constant = value.toIValue()
    return constant.item() if isinstance(constant, torch.Tensor) and constant.dim() == 0 else constant


def _list_size_operands(value: Any) -> list[Any]:
    """List the sizes and constants in an arithmetic expression of them; nothing if it has other values."""
    if value.node().kind() == "prim::Constant" or value.type().kind() == "IntType":
        return [value]
    operands = [_list_size_operands(operand) for operand in _get_operands(value, _ARITHMETIC | _ROUNDINGS)]
    return [operand for listed in operands for operand in listed] if all(operands) else []


def _get_operands(value: Any, operations: Mapping[str, int]) -> list[Any]:
    """Return the operands of the operation that a value is the result of, if that is one of these."""
    node = value.node()
    return list(node.inputs())[: operations.get(node.kind(), 0)]


def _scales_quotient(value: Any) -> bool:
    """Tell whether an expression of sizes multiplies a quotient, as `length / 7 * 14` does: that is rounded twice."""
    operands = _get_operands(value, _ARITHMETIC)
    if value.node().kind() == "aten::mul":
        for operand, factor in (operands, operands[::-1]):
            if _has_quotient(operand) and not _is_power_of_two(factor):
                return True
    return any(_scales_quotient(operand) for operand in operands)


def _has_quotient(value: Any) -> bool:
    operands = _get_operands(value, _ARITHMETIC)
    if value.node().kind() == "aten::div" and not _is_power_of_two(operands[1]):
        return True
    return any(_has_quotient(operand) for operand in operands)


def _is_power_of_two(value: Any) -> bool:
    """Tell whether a value is a constant that a division or multiplication by is exact."""
    number = _get_number(value)
    return isinstance(number, int | float) and math.frexp(abs(number))[0] == 1 / 2


def _count_slice_bounds(graph: Any) -> Counter[str]:
    """Count the bounds of slices that the graph computes, by source line."""
    bounds: Counter[str] = Counter()
    for node in _iter_nodes(graph):
        if node.kind() == "aten::slice":
            start_and_end = list(node.inputs())[2:4]
            computed = sum(value.node().kind() != "prim::Constant" for value in start_and_end)
            bounds.update([_find_user_line(node.sourceRange())] * computed)
    return bounds


def _find_user_line(source: str) -> str:
    """Find the innermost line of a node's stack that is neither torch's nor packager's.

    A trace records `FILE(LINE): function`, the innermost call first; a script records what a Python traceback shows.
    """
    frames = re.findall(r"^(.+?)\((\d+)\): ", source, re.MULTILINE)
    for path, line in frames or reversed(re.findall(r'File "([^"]+)", line (\d+)', source)):
        library, name = control_flow.name_source_file(path)
        if not (library and name.startswith("torch/")) and not path.startswith(f"{PACKAGE}{os.sep}"):
            return f"{name}:{line}"
    return "forward()"


def _iter_nodes(block: Any) -> Iterator[Any]:
    """Iterate over the nodes of a TorchScript graph or block, those of inner blocks included."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _iter_nodes(inner)


def _is_decision(node: Any) -> bool:
    """Tell whether a node may turn floats into something discrete.

    A tensor of unknown dtype counts as floats, and an operator that is not torch's as a decision.
    """
    namespace, _, name = node.kind().partition("::")
    if namespace != "aten":
        return namespace not in ("prim", "onnx")
    input_types = [value.type() for value in node.inputs() if value.type().kind() == "TensorType"]
    if not any(kind.scalarType() in (None, "Half", "BFloat16", "Float", "Double") for kind in input_types):
        return False
    if name in ("to", "type_as", "type", "int", "long", "Int", "Bool", "item"):
        output_types = [value.type() for value in node.outputs()]
        return any(kind.kind() != "TensorType" or kind.scalarType() in _INTEGER_TYPES for kind in output_types)
    if name in ("div", "div_", "divide", "divide_"):
        return len(list(node.inputs())) > 2 and list(node.inputs())[2].type().kind() != "NoneType"  # rounded
    if name in _INDEX_OPERATORS:
        return any(value.uses() for value in list(node.outputs())[1:])
    return name in _DECISION_OPERATORS or name.removesuffix("_") in _DECISION_OPERATORS or "quantize" in name


def _forget_compiled_classes() -> None:
    """Let torch.jit compile every class of modules from its beginning the next time.

    It keeps the classes of a module that it could not compile, each with the methods that it had compiled by then. Of
    the same class a second time, it would say "Can't redefine method", and no more what is wrong with it. torch's own
    tests forget in the same way (torch/testing/_internal/jit_utils.py).
    """
    from torch.jit import _recursive

    recursive: Any = _recursive
    recursive.concrete_type_store = recursive.ConcreteTypeStore()


@functools.cache
def _reserve_modulelist_name() -> None:
    """Use up the one ModuleList of this process whose class name is not mangled.

    The ONNX exporter recognizes a ModuleList by that name, and calls the nodes inside it `layers.0`; those inside any
    later one, of the same program or the next, it calls `0`. Now all of them are called `0`.
    """
    torch.jit.script(torch.nn.ModuleList())


def save(program: TorchScriptProgram, path: Path, *, fold: bool, folder: Path) -> None:
    """Freeze the program and write it to `path`, the same bytes every time.

    `fold` lets freezing fold batch normalization into convolutions. `folder` holds the user's code. Raises
    `ExporterFailed`, and OSError if the disk is full.
    """
    raw = path.with_name(path.name + ".raw")
    reserve_disk_space(raw, weights.count_bytes(program.module))
    try:
        frozen = torch.jit.freeze(program.module.eval(), optimize_numerics=fold)
        torch.jit.save(frozen, raw)
    except RuntimeError as error:
        raise to_exporter_failed(error, folder) from error
    _free_weights(frozen.graph)
    del frozen
    write_canonical(raw, path)
    raw.unlink()


def _free_weights(graph: Any) -> None:
    """Free the weights, which freezing has turned into constants of this graph.

    torch keeps the graph of every compiled method until the process ends: for ResNet-50, 94 MB to the end of its build.
    """
    while list(graph.outputs()):
        graph.eraseOutput(0)
    for node in reversed(list(graph.nodes())):
        node.destroy()


def reserve_disk_space(path: Path, weight_bytes: int) -> None:
    """Raise OSError now if the disk is too full: the C++ of torch.jit.save would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, weight_bytes + _CODE_ALLOWANCE_BYTES)


def write_canonical(saved: Path, target: Path) -> None:
    """Copy an archive of torch.jit.save without what differs from run to run: see the module's docstring."""
    numbers: dict[bytes, bytes] = {}

    def renumber(match: re.Match[bytes]) -> bytes:
        return numbers.setdefault(match[0], b"___torch_mangle_%d" % len(numbers))

    with zipfile.ZipFile(saved) as archive, target.open("wb") as stream:
        renamed: dict[str, tuple[str, bytes | None]] = {}
        for name in sorted(archive.namelist()):
            if name.endswith((".debug_pkl", "/.data/serialization_id")):
                continue
            inner = name.partition("/")[2]
            text = inner.endswith(".py") or inner in ("data.pkl", "constants.pkl")
            content = _MANGLED.sub(renumber, archive.read(name)) if text else None
            renamed[_MANGLED.sub(renumber, inner.encode()).decode()] = (name, content)

        def files() -> Iterator[tuple[str, int, list[bytes]]]:
            for inner, (name, content) in sorted(renamed.items()):
                data = archive.read(name) if content is None else content
                yield f"model/{inner}", len(data), [data]

        deterministic_zip.write_zip(stream, files())
