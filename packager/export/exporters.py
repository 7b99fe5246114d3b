"""What torch's exporters to TorchScript and ONNX share: flat outputs, silence, and one kind of failure."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from packager.common import output_tree
from packager.common.sanitize import sanitize_message
from packager.model.code_dependencies import relative_inside

T = TypeVar("T")


class ExporterFailed(Exception):
    """An exporter failed: the cause in one sentence, and the line of the user's code, `model.py:41`, if it is known."""

    def __init__(self, cause: str, where: str | None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.where = where


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Silence the warnings and logs of torch's exporters, most of which are about their own deprecation.

    Failures still come back as errors. Warning filters and log levels belong to the process, not to a thread: enter
    this once, around everything that exports.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    # A failed export logs the whole graph from C++: setup_onnx_logging of torch 2.13 tests whether logging is enabled,
    # but forgets to call the function that answers. Whatever is logged all the same goes to stderr.
    torch._C._jit_set_onnx_log_output_stream("stderr")
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_onnx_log = log
        logging.disable(level)


@contextlib.contextmanager
def disable_attention_fast_path() -> Iterator[None]:
    """Let nn.MultiheadAttention and nn.TransformerEncoder run the operators that exporters know.

    In inference they call fused ones, `aten::_native_multi_head_attention` and `aten::_transformer_encoder_layer_fwd`,
    which no exporter does (https://github.com/pytorch/pytorch/issues/143107). The switch belongs to the process.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    forward = torch.nn.TransformerEncoder.forward
    torch.backends.mha.set_fastpath_enabled(False)
    if enabled:
        torch.nn.TransformerEncoder.forward = _encode_with_zeroed_padding(forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.TransformerEncoder.forward = forward  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(enabled)


def _encode_with_zeroed_padding(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make a forward() of nn.TransformerEncoder that returns what its fast path does at padded positions.

    The fast path packs a batch without its padding, if that is on the right in every row, and returns zeros in its
    place, before the last normalization (torch 2.13, torch/nn/modules/transformer.py).
    """

    def encode(
        self: torch.nn.TransformerEncoder,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        packs = getattr(self, "use_nested_tensor", False) and getattr(
            self, "mask_check", True
        )  # unpickled ones lack them
        if not packs or src_key_padding_mask is None or mask is not None or src.dim() != 3 or self.layers[0].training:
            return forward(self, src, mask, src_key_padding_mask, is_causal)
        output = src
        for layer in self.layers:
            output = layer(output, src_key_padding_mask=src_key_padding_mask)
        padded = src_key_padding_mask != 0
        is_packed = (padded[:, :-1] & padded[:, 1:].logical_not()).sum() == 0
        output = output.masked_fill((padded & is_packed)[..., None], 0.0)
        return output if self.norm is None else self.norm(output)

    return encode


def retry_with_plain_is_causal(trace: Callable[[], T]) -> T:
    """Call `trace`, which traces a module; again, with `is_causal` as a plain bool, if the module computes it.

    Attention with `is_causal=length > 1` is common. While a module is traced, a size is a tensor or a symbol, and so is
    the comparison, which the operator refuses (https://github.com/pytorch/pytorch/issues/154038).
    """
    try:
        return trace()
    except TypeError as error:
        if "'is_causal' must be bool" not in str(error):
            raise
    with _convert_is_causal():
        return trace()


@contextlib.contextmanager
def _convert_is_causal() -> Iterator[None]:
    """Put a function that converts `is_causal` in the place of attention, in every module that has imported it."""
    attention = torch.nn.functional.scaled_dot_product_attention

    def attend(*arguments: Any, **options: Any) -> Any:
        if "is_causal" in options:
            options["is_causal"] = bool(options["is_causal"])
        return attention(*arguments[:5], *map(bool, arguments[5:]), **options)  # query to dropout_p, is_causal

    with replace_function(attention, attend):
        yield


def retry_without_is_exporting(export: Callable[[], T]) -> T:
    """Call `export`, which runs a module under torch.export; again, if it fails and the module asked whether it is.

    A library may take a branch of its own where `torch.compiler.is_exporting()`, and that branch may be broken: the
    Autoformer of transformers 5 then makes an attention mask, which its layers do not take.
    """
    with _answer_is_exporting(None) as callers:
        try:
            return export()
        except Exception:
            if not callers:
                raise
    with _answer_is_exporting(False):
        return export()


@contextlib.contextmanager
def _answer_is_exporting(answer: bool | None) -> Iterator[set[str]]:
    """Answer all modules but those of torch with `answer`, or with the truth if it is None; yield which ones ask."""
    is_exporting = torch.compiler.is_exporting
    callers: set[str] = set()

    def reply() -> bool:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.partition(".")[0] == "torch":
            return is_exporting()
        callers.add(caller)
        return is_exporting() if answer is None else answer

    with replace_function(is_exporting, reply):
        yield callers


@contextlib.contextmanager
def replace_function(function: Callable[..., Any], replacement: Callable[..., Any]) -> Iterator[None]:
    """Put a function in the place of another, in every module that has imported it."""
    loaded = [vars(module) for name, module in list(sys.modules.items()) if _is_python_module(name, module)]
    imported = [(names, name) for names in loaded for name, value in list(names.items()) if value is function]
    for names, name in imported:
        names[name] = replacement
    try:
        yield
    finally:
        for names, name in imported:
            names[name] = function


def _is_python_module(name: str, module: object) -> bool:
    return isinstance(module, ModuleType) and not name.startswith("torch._C")


@contextlib.contextmanager
def speed_up_rewriting() -> Iterator[None]:
    """Let the optimizer of torch.onnx match patterns with several outputs only at nodes that may be the first of them.

    onnxscript 0.7 lists all nodes of the graph at every node, for the one rule with such a pattern, which turns two
    Slices into a Split. On a graph of 8,000 nodes, that took three quarters of the whole export. The result is the
    same: a node of a different operator fails to match anyway.
    """
    from onnxscript.rewriter import _basics, _matcher

    matcher: Any = _matcher.SimplePatternMatcher
    match = matcher.match

    def match_quickly(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        pattern = self.pattern
        expected = None if pattern.has_single_output_node else pattern.output_nodes[0].op_identifier()
        if expected is not None and expected != node.op_identifier():
            return _basics.MatchResult().fail("a different operator")
        return match(self, model, graph, node, **options)

    matcher.match = match_quickly
    try:
        yield
    finally:
        matcher.match = match


class FlatOutputs(torch.nn.Module):
    """Wrap the user's module: its outputs become a flat tuple of tensors, in the manifest's order."""

    # TorchScript writes the qualified class name into model.ts, where it must not change when this module moves.
    __module__ = "packager.export"

    def __init__(self, model: torch.nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs that the manifest names, or all if it names none."""
        flat = output_tree.flatten_outputs(self.model(*inputs))
        return tuple(output_tree.select_outputs(flat, self._names).values())


def to_exporter_failed(error: BaseException, folder: Path, source_ranges: str = "") -> ExporterFailed:
    """Reduce an exporter's error to one sentence and the last line of the user's code, in `folder`, that it mentions.

    The line is looked for in the error's text, its traceback and `source_ranges`, the stacks of the operators that
    the error names.
    """
    text = str(error).strip()
    frames = _find_python_frames(text)
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, str(traceback.tb_lineno)))
        traceback = traceback.tb_next
    frames += _find_trace_frames(text) + _find_python_frames(source_ranges) + _find_trace_frames(source_ranges)
    user_frames = [(path, line) for path, line in frames if relative_inside(path, folder)]
    where = f"{Path(user_frames[-1][0]).name}:{user_frames[-1][1]}" if user_frames else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = next((line for line in lines if not line.startswith(("#", "=", "-", "Failed to export"))), "no message")
    return ExporterFailed(f"{type(error).__name__}: {sanitize_message(cause, folder, folder.resolve())}", where)


def _find_python_frames(text: str) -> list[tuple[str, str]]:
    """Find the frames of a Python traceback: `File "model.py", line 41`."""
    return re.findall(r'File "([^"]+)", line (\d+)', text)


def _find_trace_frames(text: str) -> list[tuple[str, str]]:
    """Find the frames that a trace recorded with its operators: `model.py(41): forward`."""
    return re.findall(r"(\S+\.py)\((\d+)\)", text)
