"""Judge a bundle's files through the backends that the loader uses. A model that does not run fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

from packager.common.sanitize import sanitize_message
from packager.errors import PackagerError
from packager.parity.numerics.verdict import ParityResult, ReferenceCase, check_parity
from packager.runtime.onnx_backend import OnnxBackend


def check_onnx(
    path: Path, reference_cases: Iterable[ReferenceCase], providers: Sequence[str], *, optimize: bool = True
) -> ParityResult:
    """Run an ONNX file on every case, under the options that the loader uses; the session is made first.

    Without `optimize` the graph is run as it is, and the session is there sooner.
    """
    try:
        # The cores may be shared with torch, whose threads would wait for ones that only spin.
        backend = OnnxBackend(path, providers=providers, threads=None, allow_spinning=False, optimize=optimize)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: not proven)
        return ParityResult(False, f"onnxruntime: {get_error_line(error, path.parent)}", {}, None, loaded=False)
    return check_onnx_session(backend, reference_cases, path.parent)


def check_onnx_session(backend: OnnxBackend, reference_cases: Iterable[ReferenceCase], folder: Path) -> ParityResult:
    """Run an open session on every case; `folder` is the one that its errors do not name."""
    try:
        return check_parity(backend.run, reference_cases)
    except (PackagerError, CancelledError):
        raise  # of the cases, which may still be on their way
    except Exception as error:  # noqa: BLE001 (as above)
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
