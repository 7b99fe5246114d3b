"""The eager module → TorchScript, and → ONNX by either of torch's exporters."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from packager.common import output_tree
from packager.common.sanitize import sanitize_message
from packager.model.code_dependencies import relative_inside


class ExporterFailed(Exception):
    """One exporter could not do it: the cause in a sentence, and where in the user's code, if known."""

    def __init__(self, cause: str, where: str | None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.where = where


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """While torch's exporters work: they warn and log at length, in every thread, of their own deprecation.

    What matters comes back as an error, in the graph, or from the gate. Python's filters of warnings
    belong to the process, so this is entered once, around everything that exports.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    # Where an export fails, the whole graph is logged from C++: setup_onnx_logging of torch 2.13 asks whether that
    # is wanted, but without calling the function that says so. What is left of it goes to stderr.
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


class FlatOutputs(torch.nn.Module):
    """Wrap the user's module: its outputs become a flat tuple of tensors, in the manifest's order."""

    # TorchScript writes the qualified class name into model.ts, where it must not change when this module moves.
    __module__ = "packager.export"

    def __init__(self, model: torch.nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the manifest, in its order."""
        flat: Mapping[str, Any] = output_tree.flatten_outputs(self.model(*inputs))
        return tuple(output_tree.select_outputs(flat, self._names).values())


def to_exporter_failed(error: BaseException, folder: Path, places: str = "") -> ExporterFailed:
    """What an exporter raised, as one sentence, with the user's line where its text, traceback or `places` name one."""
    text = str(error).strip()
    frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, str(traceback.tb_lineno)))
        traceback = traceback.tb_next
    frames += re.findall(r"(\S+\.py)\((\d+)\)", text)
    frames += re.findall(r'File "([^"]+)", line (\d+)', places) + re.findall(r"(\S+\.py)\((\d+)\)", places)
    own = [(name, line) for name, line in frames if relative_inside(name, folder)]
    where = f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = next((line for line in lines if not line.startswith(("#", "=", "-", "Failed to export"))), "no message")
    return ExporterFailed(f"{type(error).__name__}: {sanitize_message(cause, folder, folder.resolve())}", where)
