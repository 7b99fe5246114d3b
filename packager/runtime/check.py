"""Judge a bundle's files through the backends that the loader uses. A model that does not run fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

from packager.common.sanitize import impersonal
from packager.errors import PackagerError
from packager.parity.numerics.verdict import Expectation, Judgement, judge
from packager.runtime.onnx_backend import OnnxBackend


def judge_onnx(
    path: Path, expectations: Iterable[Expectation], providers: Sequence[str], *, optimize: bool = True
) -> Judgement:
    """Run an ONNX file on every case, under the options that the loader uses; the session is made first.

    Without `optimize` the graph is run as it is, and the session is there sooner.
    """
    try:
        # The cores may be shared with torch, whose threads would wait for ones that only spin.
        backend = OnnxBackend(path, providers=providers, threads=None, spin=False, optimize=optimize)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: not proven)
        return Judgement(False, f"onnxruntime: {first_line(error, path.parent)}", {}, None, loaded=False)
    return judge_session(backend, expectations, path.parent)


def judge_session(backend: OnnxBackend, expectations: Iterable[Expectation], folder: Path) -> Judgement:
    """Run an open session on every case; `folder` is the one that its errors do not name."""
    try:
        return judge(backend.run, expectations)
    except (PackagerError, CancelledError):
        raise  # of the cases, which may still be on their way
    except Exception as error:  # noqa: BLE001 (as above)
        return Judgement(False, f"onnxruntime: {first_line(error, folder)}", {}, None)


def judge_torchscript(
    path: Path,
    expectations: Sequence[Expectation],
    *,
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[str],
    optimize: bool,
) -> Judgement:
    """Run a TorchScript file on every case; `inputs` are names and dtypes. Needs torch."""
    from packager.runtime.torchscript_backend import TorchScriptBackend

    try:
        backend = TorchScriptBackend(path, inputs=inputs, output_names=outputs, optimize=optimize)
        return judge(backend.run, expectations)
    except Exception as error:  # noqa: BLE001 (TorchScript raises what the program raises: not proven, and said)
        return Judgement(False, f"TorchScript: {first_line(error, path.parent)}", {}, None)


def first_line(error: Exception, folder: Path) -> str:
    """The line of a foreign error that says what happened; TorchScript puts it last, under its own traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    chosen = lines[-1] if "Traceback of TorchScript" in str(error) else lines[0]
    return impersonal(chosen, folder)
