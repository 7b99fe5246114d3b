"""Check the artifacts of a bundle on test cases, through the backends that the loader uses.

An artifact that cannot be loaded, or that raises an exception, fails the check; the exception becomes the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from packager.common.sanitize import sanitize_message
from packager.parity.numerics.verdict import ParityResult, ReferenceCase, check_parity
from packager.runtime.onnx_backend import OnnxBackend


def check_onnx(
    path: Path, reference_cases: Iterable[ReferenceCase], providers: Sequence[str], *, optimize: bool = True
) -> ParityResult:
    """Run an ONNX file on every test case with the options that the loader uses, and compare its outputs.

    Without `optimize`, onnxruntime runs the graph as it is, and the session opens sooner.
    """
    session = open_onnx_session(path, providers, optimize=optimize)
    return session if isinstance(session, ParityResult) else check_onnx_session(session, reference_cases, path.parent)


def open_onnx_session(path: Path, providers: Sequence[str], *, optimize: bool = True) -> OnnxBackend | ParityResult:
    """Open an ONNX file with the options that the loader uses; return a failed result if it does not load."""
    try:
        # Threads that spin would take the cores from torch, which may run at the same time.
        return OnnxBackend(path, providers=providers, threads=None, allow_spinning=False, optimize=optimize)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: does not load)
        return ParityResult(False, f"onnxruntime: {get_error_line(error, path.parent)}", {}, None, loaded=False)


def check_onnx_session(session: OnnxBackend, reference_cases: Iterable[ReferenceCase], *folders: Path) -> ParityResult:
    """Run an open session on every test case and compare its outputs; error messages do not name `folders`."""
    try:
        return check_parity(session.run, reference_cases)
    except Exception as error:  # noqa: BLE001 (as above: a model that does not run fails)
        return ParityResult(False, f"onnxruntime: {get_error_line(error, *folders)}", {}, None)


def check_torchscript(
    program: Path | bytes,
    reference_cases: Iterable[ReferenceCase],
    *,
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[str],
    optimize: bool,
) -> ParityResult:
    """Run a TorchScript program, a file or its bytes, on every test case and compare its outputs. Needs torch.

    `inputs` are names and dtypes in the order of forward()'s parameters, `outputs` the names of its results. `optimize`
    says whether `torch.jit.optimize_for_inference` is applied first.
    """
    from packager.runtime.torchscript_backend import TorchScriptBackend

    try:
        backend = TorchScriptBackend(program, inputs=inputs, output_names=outputs, optimize=optimize)
        return check_parity(backend.run, reference_cases)
    except Exception as error:  # noqa: BLE001 (TorchScript raises whatever the program raises: the artifact fails)
        return ParityResult(False, f"TorchScript: {get_error_line(error, *_folders(program))}", {}, None)


def check_exported_program(
    program: Path | bytes,
    reference_cases: Iterable[ReferenceCase],
    *,
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[str],
) -> ParityResult:
    """Run an exported program, a file or its bytes, on every test case and compare its outputs. Needs torch.

    `inputs` are names and dtypes in the order of forward()'s parameters, `outputs` the names of its results.
    """
    from packager.runtime.exported_program_backend import ExportedProgramBackend

    loaded = False
    try:
        backend = ExportedProgramBackend(program, inputs=inputs, output_names=outputs)
        loaded = True
        return check_parity(backend.run, reference_cases)
    except Exception as error:  # noqa: BLE001 (torch raises whatever the program raises: the artifact fails)
        return ParityResult(
            False, f"torch.export: {get_error_line(error, *_folders(program))}", {}, None, loaded=loaded
        )


def _folders(program: Path | bytes) -> list[Path]:
    return [program.parent] if isinstance(program, Path) else []


def get_error_line(error: Exception, *folders: Path) -> str:
    """Return the line of a library's error message that says what happened, without the paths of `folders`.

    That is the first line, or the last if TorchScript's own traceback comes before it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1] if "Traceback of TorchScript" in str(error) else lines[0]
    return sanitize_message(line, *folders)
