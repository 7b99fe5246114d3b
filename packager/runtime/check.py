"""Judge a bundle's files through the backends that the loader uses. A model that does not run fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from packager.common.sanitize import sanitize_message
from packager.parity.numerics.verdict import ParityResult, ReferenceCase, check_parity
from packager.runtime.onnx_backend import OnnxBackend


def check_onnx(
    path: Path, reference_cases: Iterable[ReferenceCase], providers: Sequence[str], *, optimize: bool = True
) -> ParityResult:
    """Run an ONNX file on every case with the options that the loader uses, and compare its outputs.

    Without `optimize` the graph runs as it is, and the session opens sooner.
    """
    session = open_onnx_session(path, providers, optimize=optimize)
    return session if isinstance(session, ParityResult) else check_onnx_session(session, reference_cases, path.parent)


def open_onnx_session(path: Path, providers: Sequence[str], *, optimize: bool = True) -> OnnxBackend | ParityResult:
    """Open an ONNX file with the options that the loader uses; return a failed result if it does not load."""
    try:
        # The cores may be shared with torch, whose threads would wait for ones that only spin.
        return OnnxBackend(path, providers=providers, threads=None, allow_spinning=False, optimize=optimize)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: does not load)
        return ParityResult(False, f"onnxruntime: {get_error_line(error, path.parent)}", {}, None, loaded=False)


def check_onnx_session(session: OnnxBackend, reference_cases: Iterable[ReferenceCase], folder: Path) -> ParityResult:
    """Run an open session on every case, and compare its outputs; `folder` is kept out of the message of a failure."""
    try:
        return check_parity(session.run, reference_cases)
    except Exception as error:  # noqa: BLE001 (as above: a model that does not run fails)
        return ParityResult(False, f"onnxruntime: {get_error_line(error, folder)}", {}, None)


def check_torchscript(
    path: Path,
    reference_cases: Sequence[ReferenceCase],
    *,
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[str],
    optimize: bool,
) -> ParityResult:
    """Run a TorchScript file on every case; `inputs` are names and dtypes. Needs torch."""
    from packager.runtime.torchscript_backend import TorchScriptBackend

    try:
        backend = TorchScriptBackend(path, inputs=inputs, output_names=outputs, optimize=optimize)
        return check_parity(backend.run, reference_cases)
    except Exception as error:  # noqa: BLE001 (TorchScript raises what the program raises: not proven, and said)
        return ParityResult(False, f"TorchScript: {get_error_line(error, path.parent)}", {}, None)


def get_error_line(error: Exception, folder: Path) -> str:
    """The line of a foreign error that says what happened; TorchScript puts it last, under its own traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    chosen = lines[-1] if "Traceback of TorchScript" in str(error) else lines[0]
    return sanitize_message(chosen, folder)
