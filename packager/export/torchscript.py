"""The eager module → TorchScript: traced or scripted, frozen, saved to the same bytes every time.

`torch.jit` is deprecated and still what runs a model without its Python code. A trace records the
operations of one call, so a branch on data is lost in it; a script compiles the source and keeps
the branch, where it can compile it at all.

`torch.jit.save` writes a ZIP that differs from run to run (pytorch#42163, #112425): debug files
with source positions, a `serialization_id`, the file's own name as the folder inside, and class
names that count how many classes were made before (`___torch_mangle_14`). None of these matters
to what the program computes; `save` writes the archive anew without them.

`torch.jit.optimize_for_inference` is left to the loader: what it makes is for the machine at hand,
and a saved file of it loads no more (the weights it packs are not saved).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from packager.common import deterministic_zip
from packager.errors import Problem
from packager.export import control_flow
from packager.export.control_flow import SpecializedControlFlow
from packager.export.exporters import ExporterFailed, FlatOutputs, to_exporter_failed
from packager.export.graph.messages import StageRecord

_CODE_ALLOWANCE_BYTES = 1 << 20  # more than the program's code and its archive take beside the weights
# By name without the underscore of what works in place. A pool's or a maximum's indices are the second output.
_DECISION_OPERATORS = frozenset({
    "topk", "sort", "msort", "argsort", "argmax", "argmin", "kthvalue", "median", "nanmedian", "mode", "nonzero",
    "nonzero_numpy", "unique", "unique_consecutive", "_unique2", "unique_dim", "count_nonzero", "any", "all",
    "round", "floor", "ceil", "trunc", "fix", "frac", "sign", "sgn", "signbit", "floor_divide", "remainder", "fmod",
    "bucketize", "searchsorted", "histc", "heaviside", "threshold", "hardshrink", "grid_sampler",
    "gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "greater_equal", "less_equal", "not_equal", "isclose",
    "equal", "allclose", "logical_not", "logical_and", "logical_or", "logical_xor",
})  # fmt: skip
_INDEX_OPERATORS = frozenset({
    "max", "min", "cummax", "cummin", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d",
    "fractional_max_pool3d",
})  # fmt: skip
_INTEGER_TYPES = ("Bool", "Byte", "Char", "Short", "Int", "Long")
_MANGLED = re.compile(rb"___torch_mangle_\d+")


@dataclass(frozen=True)
class TorchScriptProgram:
    """A TorchScript module, how it was made, and the lines whose branch or number, taken from data, a trace keeps.

    `decides` is whether it may take a decision on floats: an order, an index, a comparison, a step. `stages` is
    how it was compared with the module before anything was made of it, and `unscriptable` why there is no script in
    the place of a trace that was wrong then.
    """

    method: Literal["trace", "script"]
    module: torch.jit.ScriptModule
    specialized: SpecializedControlFlow
    has_discrete_decisions: bool
    stages: tuple[StageRecord, ...] = ()
    script_failure: Problem | None = None


def trace(
    module: torch.nn.Module, names: Sequence[str] | None, inputs: tuple[torch.Tensor, ...], folder: Path
) -> TorchScriptProgram:
    """Record one call. Raises `ExporterFailed`."""
    with control_flow.record_control_flow() as taken, torch.no_grad():
        _reserve_modulelist_name()
        try:
            flat = FlatOutputs(module, names).eval()
            traced = torch.jit.trace(flat, inputs, check_trace=False)  # type: ignore[no-untyped-call]  # torch's stubs
        except Exception as error:
            raise to_exporter_failed(error, folder) from error
    frozen = replace(taken(), rounded_size_lines=_find_rounded_sizes(traced.inlined_graph))
    return TorchScriptProgram(
        "trace", traced, frozen, bool(frozen.user_lines) or _has_discrete_decisions(traced.inlined_graph)
    )


def script(module: torch.nn.Module, folder: Path) -> TorchScriptProgram:
    """Compile the module's source. Raises `ExporterFailed`."""
    _reserve_modulelist_name()
    try:
        scripted = torch.jit.script(module)
    except Exception as error:
        raise to_exporter_failed(error, folder) from error
    return TorchScriptProgram(
        "script",
        scripted,
        SpecializedControlFlow(rounded_size_lines=_find_rounded_sizes(scripted.inlined_graph)),
        _has_discrete_decisions(scripted.inlined_graph),
    )


def _has_discrete_decisions(graph: Any) -> bool:
    return any(_is_decision(node) for node in _iter_nodes(graph))


def _find_rounded_sizes(graph: Any) -> tuple[str, ...]:
    """Lines that make a size by a number that float32 has not: a scale of F.interpolate, a step of torch.arange."""
    found = set()
    for node in _iter_nodes(graph):
        given = list(node.inputs())
        if node.kind().startswith(("aten::upsample_", "aten::_upsample_")):
            given = list(given[-1].node().inputs())  # the scales, where it has them
        elif node.kind() != "aten::arange" or all(one.node().kind() == "prim::Constant" for one in given[:3]):
            continue
        numbers = [one.toIValue() for one in given if one.type().kind() == "FloatType"]
        if any(number is not None and ctypes.c_float(number).value != number for number in numbers):
            found.add(_find_user_line(node.sourceRange()))
    return tuple(sorted(found))


def _find_user_line(source: str) -> str:
    """The innermost line of a node's stack that is not torch's: `FILE(LINE): function` in a trace, else as Python's."""
    traced = re.findall(r"^(\S+)\((\d+)\): ", source, re.MULTILINE)
    for path, line in traced or reversed(re.findall(r'File "([^"]+)", line (\d+)', source)):
        library, name = control_flow.name_source_file(path)
        if not (library and name.startswith("torch/")):
            return f"{name}:{line}"
    return "forward()"


def _iter_nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _iter_nodes(inner)


def _is_decision(node: Any) -> bool:
    """A tensor whose dtype is not known may be one of floats; an operator that is not torch's may decide."""
    space, _, name = node.kind().partition("::")
    if space != "aten":
        return space not in ("prim", "onnx")
    types = [one.type() for one in node.inputs() if one.type().kind() == "TensorType"]
    of_floats = any(one.scalarType() in (None, "Half", "BFloat16", "Float", "Double") for one in types)
    if not of_floats:
        return False
    if name in ("to", "type_as", "type", "int", "long", "Int", "Bool", "item"):
        made = [one.type() for one in node.outputs()]
        return any(one.kind() != "TensorType" or one.scalarType() in _INTEGER_TYPES for one in made)
    if name in ("div", "div_", "divide", "divide_"):
        return len(list(node.inputs())) > 2 and list(node.inputs())[2].type().kind() != "NoneType"  # rounded
    if name in _INDEX_OPERATORS:
        return any(one.uses() for one in list(node.outputs())[1:])
    return name in _DECISION_OPERATORS or name.removesuffix("_") in _DECISION_OPERATORS or "quantize" in name


@functools.cache
def _reserve_modulelist_name() -> None:
    """Let no program of this process have the first ModuleList, whose name is not mangled.

    The ONNX exporter knows a ModuleList by that name, and calls the nodes inside it `layers.0`; those in
    the second, and in the first of the second program, it calls `0`. Now it calls them all so.
    """
    torch.jit.script(torch.nn.ModuleList())


def save(program: TorchScriptProgram, path: Path, *, fold: bool, folder: Path) -> None:
    """Freeze the program and write it to `path`, the same bytes every time.

    `fold` lets freezing fold batch normalization into convolutions. Raises `ExporterFailed`.
    """
    raw = path.with_name(path.name + ".raw")
    _reserve_disk_space(raw, sum(one.numel() * one.element_size() for one in program.module.state_dict().values()))
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
    """Free the weights, which freezing made constants of this graph.

    torch keeps the graph of every method that was ever compiled until the process ends: ResNet-50's 94 MB, to the end
    of its build.
    """
    while list(graph.outputs()):
        graph.eraseOutput(0)
    for node in reversed(list(graph.nodes())):
        node.destroy()


def _reserve_disk_space(path: Path, weight_bytes: int) -> None:
    """Raise the OSError of a full disk beforehand: where torch.jit.save meets one, its C++ ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, weight_bytes + _CODE_ALLOWANCE_BYTES)


def write_canonical(saved: Path, target: Path) -> None:
    """Write the archive anew without what changes from run to run: see the module's docstring."""
    numbers: dict[bytes, bytes] = {}

    def renumber(found: re.Match[bytes]) -> bytes:
        return numbers.setdefault(found[0], b"___torch_mangle_%d" % len(numbers))

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
                found = archive.read(name) if content is None else content
                yield f"model/{inner}", len(found), [found]

        deterministic_zip.write_zip(stream, files())


__all__ = ["ExporterFailed", "TorchScriptProgram", "write_canonical", "save", "script", "trace"]
