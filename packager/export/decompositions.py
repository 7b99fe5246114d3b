"""Replace operators that an exporter lacks by equal ones that it has, while a module is traced for it.

For the TorchScript exporter the replacement happens inside of the trace. torch.jit records a call in the dispatcher,
under the key "Tracer", so a function that is registered there runs instead of being recorded, and the operators that
it calls are. A fallthrough registered there makes the tracer pass over an operator that torch itself composes of
others, so that it records those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch._C._onnx import TensorProtoDataType
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.onnx import symbolic_helper, symbolic_opset9, symbolic_opset11, symbolic_opset13
from torch.onnx._internal.torchscript_exporter import registration
from torch.onnx.utils import register_custom_op_symbolic, unregister_custom_op_symbolic

from packager.export import adaptive_pooling, constant_branches, recurrent_layers, repeated_indices
from packager.export.masked_attention import attend_to_nothing
from packager.export.operators import ALIASES, CONCATENATIONS, ONNX_OPERATORS, OPERATORS, STACKS

Kernels = Mapping[OpOverload, Any]
T = TypeVar("T")

_SYMBOLIC_OPSET = 13
"""The lowest opset that a manifest may ask for."""

_ATTENTION_OPSET = 14
"""The opset from which the TorchScript exporter knows attention."""

_COL2IM_OPSET = 18
"""The opset from which ONNX has Col2Im."""


def retry_with_decompositions(export: Callable[[], T]) -> T:
    """Call `export`, which traces a module and converts it; each time it lacks an operator, again without that one.

    Raises what `export` raises; if a replacement fails, the error about the operator that it was for.
    """
    kernels: dict[OpOverload, Any] = {_list_overloads(name)[0]: function for name, function in STACKS.items()}
    lacking: torch.onnx.errors.UnsupportedOperatorError | None = None
    while True:
        try:
            with improve_symbolics(), _replace_while_traced(kernels):
                return export()
        except torch.onnx.errors.UnsupportedOperatorError as error:
            lacking = error
            replacements = _find_kernels(error)
            if replacements.keys() <= kernels.keys():
                raise
            kernels.update(replacements)
        except OSError:
            raise  # the disk failed, not the exporter
        except Exception:
            if lacking is None:
                raise
            raise lacking from None


def _find_kernels(error: torch.onnx.errors.UnsupportedOperatorError) -> Kernels:
    """Return what replaces the operator that an error names, by overload; nothing if that is not known."""
    name = re.search(r"\w+::\w+", str(error))
    if name is None:
        return {}
    aliases = [alias for alias, operator in ALIASES.items() if operator == name[0]]
    overloads = [overload for operator in (name[0], *aliases) for overload in _list_overloads(operator)]
    kernels = {overload: _find_kernel(overload) for overload in overloads}
    return {overload: kernel for overload, kernel in kernels.items() if kernel is not None}


def decompose(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program without the operators that the exporter of torch.export lacks."""
    names = {name.partition(".")[0] for name in OPERATORS}
    overloads = [overload for name in names for overload in _list_overloads(name)]
    table = {overload: OPERATORS[_get_name(overload)] for overload in overloads if _get_name(overload) in OPERATORS}
    decomposed: torch.export.ExportedProgram = program.run_decompositions(table)
    return decomposed


def promote_concatenations(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program that casts tensors of different dtypes before it joins them; the given one if it joins none."""
    functions = {**CONCATENATIONS, **STACKS}
    overloads = {_list_overloads(name)[0]: function for name, function in functions.items()}
    joins = [node for node in program.graph.nodes if node.target in overloads]
    if all(len({value.meta["val"].dtype for value in node.args[0]}) == 1 for node in joins):
        return program

    def skip_equal(function: Callable[..., Any]) -> Callable[..., Any]:
        def join(tensors: list[torch.Tensor], *options: Any, **named_options: Any) -> Any:
            if len({tensor.dtype for tensor in tensors}) == 1:
                return NotImplemented  # the operator stays
            return function(tensors, *options, **named_options)

        return join

    table = {overload: skip_equal(function) for overload, function in overloads.items()}
    promoted: torch.export.ExportedProgram = program.run_decompositions(table)
    return promoted


def _list_overloads(name: str) -> list[OpOverload]:
    """List the overloads of an operator, such as "aten::diff", that take tensors; none if it does not exist."""
    namespace, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return [overload for overload in overloads if torch._C._dispatch_has_kernel(_get_name(overload))]


def _get_name(overload: OpOverload) -> str:
    return str(overload.name())  # type: ignore[no-untyped-call]  # torch's stubs


def _find_kernel(overload: OpOverload) -> Any:
    """Return a function that is equal to an operator, `fallthrough_kernel` if torch composes it, or None."""
    function = OPERATORS.get(_get_name(overload)) or decomposition_table.get(overload)
    if function is not None:
        return function
    composite = ["CompositeImplicitAutograd"]
    if overload.namespace != "aten":  # torch's "prims" and operators of libraries, whose functions are in Python
        composite.append("CompositeExplicitAutograd")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return torch.library.fallthrough_kernel if any(has_kernel(_get_name(overload), key) for key in composite) else None


@contextmanager
def _replace_while_traced(kernels: Kernels) -> Iterator[None]:
    with ExitStack() as stack:
        libraries: dict[str, torch.library.Library] = {}
        for overload, kernel in kernels.items():
            namespace = overload.namespace
            if namespace not in libraries:
                libraries[namespace] = stack.enter_context(torch.library._scoped_library(namespace, "IMPL"))
            libraries[namespace].impl(overload, kernel, "Tracer")  # type: ignore[no-untyped-call]  # torch's stubs
        yield


@contextmanager
def improve_symbolics() -> Iterator[None]:
    """Let the TorchScript exporter know operators of ONNX that it lacks, and correct those that it gets wrong."""
    symbolics = {(name, _SYMBOLIC_OPSET): _make_symbolic(onnx_name) for name, onnx_name in ONNX_OPERATORS.items()}
    symbolics |= {
        (f"aten::__i{name}_", _SYMBOLIC_OPSET): _make_alias(f"aten::__{name}_") for name in ("and", "or", "xor")
    }
    symbolics["aten::cumsum", _SYMBOLIC_OPSET] = _cumsum
    symbolics["aten::movedim", _SYMBOLIC_OPSET] = _movedim
    symbolics["aten::permute", _SYMBOLIC_OPSET] = _permute
    symbolics["aten::repeat_interleave", _SYMBOLIC_OPSET] = _repeat_interleave
    symbolics["aten::unflatten", _SYMBOLIC_OPSET] = _unflatten
    symbolics["aten::col2im", _COL2IM_OPSET] = _col2im
    for library in (recurrent_layers, adaptive_pooling, constant_branches):
        symbolics |= {(name, _SYMBOLIC_OPSET): symbolic for name, symbolic in library.list_symbolics().items()}
    symbolics["aten::scaled_dot_product_attention", _ATTENTION_OPSET] = attend_to_nothing
    symbolics |= repeated_indices.list_symbolics()
    with _register(symbolics), _register(_list_aliases()):
        yield


@contextmanager
def _register(symbolics: Mapping[tuple[str, int], Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for (name, opset), symbolic in symbolics.items():
            register_custom_op_symbolic(name, symbolic, opset)
            stack.callback(unregister_custom_op_symbolic, name, opset)
        yield


def _make_symbolic(onnx_name: str) -> Callable[..., Any]:
    return lambda graph, tensor: graph.op(onnx_name, tensor)


def _list_aliases() -> Mapping[tuple[str, int], Callable[..., Any]]:
    """Return a symbolic for each alias of an operator that the exporter knows, unless it knows the alias as well."""
    is_known = registration.registry.is_registered_op
    return {
        (alias, _SYMBOLIC_OPSET): _make_alias(name)
        for alias, name in ALIASES.items()
        if is_known(name, _SYMBOLIC_OPSET) and not is_known(alias, _SYMBOLIC_OPSET)
    }


def _make_alias(name: str) -> Callable[..., Any]:
    def convert(graph: Any, *arguments: Any) -> Any:
        symbolics: Any = registration.registry.get_function_group(name)
        return symbolics.get(graph.opset)(graph, *arguments)

    return convert


@symbolic_helper.parse_args("v", "t", "t")
def _movedim(graph: Any, tensor: Any, source: torch.Tensor, destination: torch.Tensor) -> Any:
    """Count dims from the start, as in `_permute`."""
    rank = tensor.type().dim()
    return symbolic_opset9.movedim(graph, tensor, source % rank, destination % rank)


@symbolic_helper.parse_args("v", "is")
def _permute(graph: Any, tensor: Any, dims: Sequence[int]) -> Any:
    """Count dims from the start, as ONNX does; a graph with the negative ones of torch's own symbolic does not load."""
    return symbolic_opset9.permute(graph, tensor, [dim % len(dims) for dim in dims])


def _repeat_interleave(graph: Any, tensor: Any, repeats: Any, dim: Any = None, output_size: Any = None) -> Any:
    """Copy the constant that holds the dim: torch's own symbolic adds the rank to it in place, for all of its users."""
    dim = symbolic_helper._maybe_get_scalar(dim)  # type: ignore[no-untyped-call]  # torch's stubs
    dim = dim.clone() if isinstance(dim, torch.Tensor) else dim
    return symbolic_opset13.repeat_interleave(graph, tensor, repeats, dim, output_size)


def _cumsum(graph: Any, tensor: Any, dim: Any, dtype: Any) -> Any:
    """Count in int64, as torch does; ONNX cannot add booleans, and torch's own symbolic does not cast them."""
    if tensor.type().scalarType() in ("Bool", "Byte", "Char", "Short", "Int"):
        tensor = graph.op("Cast", tensor, to_i=TensorProtoDataType.INT64)
    return symbolic_opset11.cumsum(graph, tensor, dim, dtype)


def _unflatten(graph: Any, tensor: Any, dim: Any, sizes: Any) -> Any:
    """Unflatten a dim as torch does, and tell the exporter the rank of the result, which it cannot infer.

    Without it, it takes the sizes of the example for fixed ones: https://github.com/pytorch/pytorch/issues/143107.
    """
    result = symbolic_opset13.unflatten(graph, tensor, dim, sizes)
    packed = symbolic_helper._is_packed_list(sizes)
    count = len(symbolic_helper._unpack_list(sizes) if packed else symbolic_helper._maybe_get_const(sizes, "is"))
    result.setType(tensor.type().with_sizes([None] * (tensor.type().dim() - 1 + count)))
    return result


@symbolic_helper.parse_args("v", "v", "v", "is", "is", "is")
def _col2im(
    graph: Any,
    tensor: Any,
    output_size: Any,
    kernel_size: Any,
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Any:
    """Fold blocks with an output size that is known at run time, and with a padding that differs from dim to dim.

    torch's own symbolic raises for the first, and confuses the paddings of the second: ONNX lists those before every
    dim, then those after.
    """
    options = {"dilations_i": dilation, "pads_i": [*padding, *padding], "strides_i": stride}
    return graph.op("Col2Im", tensor, output_size, kernel_size, **options)
