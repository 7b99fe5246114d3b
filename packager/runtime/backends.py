"""Open the backend of a bundle: the ONNX model, or the fallback if that does not load or fails its self-test."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.bundle import layout
from packager.bundle.files import BundleFiles
from packager.bundle.onnx_wire import WeightsUnsafe
from packager.bundle.seal import MAX_RECORD_BYTES
from packager.common.sanitize import get_first_line
from packager.errors import BackendUnavailable, NotABundle, PackagerError, ProgramNotTrusted, SelftestFailed
from packager.runtime.bundled_onnx import open_bundled_onnx
from packager.runtime.session_settings import SessionSettings
from packager.runtime.trust import PROGRAM_TITLES

if TYPE_CHECKING:
    from packager.parity.numerics.verdict import ReferenceCase
    from packager.runtime.exported_program_backend import ExportedProgramBackend
    from packager.runtime.onnx_backend import OnnxBackend
    from packager.runtime.torchscript_backend import TorchScriptBackend

    Backend = OnnxBackend | TorchScriptBackend | ExportedProgramBackend

_log = logging.getLogger("packager")


@dataclass(frozen=True)
class FallbackRules:
    """Whether the caller allows a fallback, and whether the bundle is trusted to run its program."""

    allowed: bool
    trusted: bool


def open_backend(
    files: BundleFiles, config: Mapping[str, Any], settings: SessionSettings, rules: FallbackRules, *, selftest: bool
) -> Backend:
    """Open the ONNX model of a bundle, or the fallback, which is logged as a warning with the reason.

    With `selftest`, it must compute what PyTorch computed on one test case. Raises `BackendUnavailable` if neither
    loads, `ProgramNotTrusted` if only the fallback would, `SelftestFailed`, and `NotABundle` for unsafe weights.
    """
    path, onnx = str(files.path), config["artifacts"]["onnx"]
    cases = _read_selftest_cases(files) if selftest else None
    programs = [config["artifacts"][kind] for kind in PROGRAM_TITLES if config["artifacts"].get(kind) is not None]
    cause = "the bundle has no ONNX model"
    if onnx is not None:
        try:
            backend = open_bundled_onnx(files, onnx, config["providers"], settings)
            _run_selftest(path, backend, cases)
            return backend
        except SelftestFailed as error:
            if not (programs and rules.allowed and rules.trusted):
                raise
            cause = f"self-test: {onnx['path']}: {error.why}"
        except WeightsUnsafe as error:
            raise NotABundle(path, f"{onnx['path']}: {error}") from None
        except PackagerError:
            raise
        except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes for a model it refuses)
            cause = f"onnxruntime: {onnx['path']}: {_explain_onnxruntime(error, onnx)}"
        finally:
            files.release(onnx["path"])
    _check_fallback(path, config, programs, rules, cause)
    fallback = _open_fallback(files, config, cause)
    _run_selftest(path, fallback, cases)
    folder = layout.folder_name(config["name"], config["version"])
    _log.warning("%s falls back to %s: %s", folder, PROGRAM_TITLES[fallback.name], cause)
    return fallback


def _check_fallback(
    path: str, config: Mapping[str, Any], programs: Sequence[Mapping[str, Any]], rules: FallbackRules, cause: str
) -> None:
    """Raise an error that ends with `cause` if there is no fallback that may run."""
    if not programs:
        left_out = [f"{kind}: {entry['reason']}" for kind, entry in config.get("left_out", {}).items()]
        why = "\n".join([cause, "the bundle has no fallback", *left_out])
        raise BackendUnavailable(path, why, "use the onnxruntime it was built with")
    if not rules.allowed:
        raise BackendUnavailable(path, cause, "load with fallback=True")
    if not rules.trusted:
        raise ProgramNotTrusted(path, programs[0]["path"], cause)


def _open_fallback(
    files: BundleFiles, config: Mapping[str, Any], cause: str
) -> TorchScriptBackend | ExportedProgramBackend:
    """Open the TorchScript model or exported program of a bundle.

    `cause` says why the ONNX model is not used. Raises `BackendUnavailable` if torch is not installed or cannot
    load the model.
    """
    script, program = config["artifacts"]["torchscript"], config["artifacts"].get("torch-export")
    title = "TorchScript" if script is not None else "torch.export"
    try:
        from packager.runtime.exported_program_backend import ExportedProgramBackend
        from packager.runtime.torchscript_backend import TorchScriptBackend
    except ImportError as error:
        why = f"{cause}\nthe {title} fallback needs torch: {error}"
        raise BackendUnavailable(str(files.path), why, "pip install torch") from None
    inputs = [(tensor["name"], tensor["dtype"]) for tensor in config["inputs"]]
    names = [tensor["name"] for tensor in config["outputs"]]
    content = files.read((program if script is None else script)["path"])
    try:
        if script is None:
            return ExportedProgramBackend(content, inputs=inputs, output_names=names)
        optimize = script["optimize_for_inference"]
        return TorchScriptBackend(content, inputs=inputs, output_names=names, optimize=optimize)
    except Exception as error:  # noqa: BLE001 (torch raises unrelated classes for a program of a different version)
        why = f"{cause}\n{title}: {get_first_line(error)}"
        raise BackendUnavailable(str(files.path), why, "use the torch it was built with") from None


def _explain_onnxruntime(error: Exception, onnx: Mapping[str, Any]) -> str:
    """Return why onnxruntime refuses a model; of an opset that is too new it says so at the end of a long line."""
    limit = re.search(r"Current official support for domain (\S+) is till opset (\d+)", str(error))
    if limit is None:
        return get_first_line(error)
    domain, opset = limit.groups()
    version = sys.modules["onnxruntime"].__version__
    return f"it has opset {onnx['domains'].get(domain)} of {domain}, and onnxruntime {version} supports up to {opset}"


def _read_selftest_cases(files: BundleFiles) -> list[ReferenceCase]:
    from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases

    parity, golden = files.read(layout.PARITY, MAX_RECORD_BYTES), files.read(layout.GOLDEN)
    try:
        cases = parse_reference_cases(parity, golden, first_only=True)
    except EvidenceMalformed as error:
        raise SelftestFailed(str(files.path), f"evidence: {error}") from None
    if not cases:
        raise SelftestFailed(str(files.path), "evidence: it has no case to compare")
    return cases


def _run_selftest(path: str, backend: Backend, cases: Sequence[ReferenceCase] | None) -> None:
    if cases is None:
        return
    from packager.parity.numerics.verdict import check_parity

    try:
        result = check_parity(backend.run, cases)
    except Exception as error:  # noqa: BLE001 (a model raises anything for evidence that does not fit it)
        raise SelftestFailed(path, f"{type(error).__name__}: {get_first_line(error)}") from None
    if not result.passed:
        raise SelftestFailed(path, result.reason)
