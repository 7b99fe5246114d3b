"""Load a bundle for inference.

The digests of all files are checked before a model is parsed. The ONNX model is used if it loads. Otherwise the
fallback, TorchScript or an exported program, is used and the reason is logged as a warning, unless `fallback=False`.
Predicting with ONNX imports neither torch nor onnx.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from packager.bundle import layout
from packager.bundle.archive import open_as_folder
from packager.bundle.fingerprint import SumsMalformed, check_fingerprint_syntax, check_integrity, read_sums
from packager.errors import (
    BackendUnavailable,
    BundleSchemaUnknown,
    DataDoesNotFit,
    FingerprintWrong,
    InferenceFailed,
    IntegrityFailed,
    NotABundle,
    SelftestFailed,
    did_you_mean,
)
from packager.runtime.onnx_backend import OnnxBackend
from packager.signature.files import read_signature
from packager.signature.verify import check_signature, read_trust

if TYPE_CHECKING:
    from packager.runtime.exported_program_backend import ExportedProgramBackend
    from packager.runtime.torchscript_backend import TorchScriptBackend

    Backend = OnnxBackend | TorchScriptBackend | ExportedProgramBackend

Array = NDArray[np.generic]
_log = logging.getLogger("packager")


class Bundle:
    """A loaded bundle. `run` may be called from several threads at once.

    `inputs` and `outputs` are the signature in config.json: name, dtype and shape of each tensor. `backend` is
    "onnx", "torchscript" or "torch-export".
    """

    def __init__(self, path: Path, config: Mapping[str, Any], fingerprint: str, backend: Backend) -> None:
        self.path = path
        self.config = config
        self.fingerprint = fingerprint
        self.name: str = config["name"]
        self.version: str = config["version"]
        self.inputs: list[dict[str, Any]] = config["inputs"]
        self.outputs: list[dict[str, Any]] = config["outputs"]
        self.backend: str = backend.name
        self._backend = backend

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, on arrays by input name. Returns arrays by output name.

        The arrays must have the dtypes and shapes of the signature; pass float32 for a bfloat16 input. Raises
        `DataDoesNotFit` if a name, dtype, rank or fixed size differs from the signature, or if a named dim differs
        between inputs or is outside its limits. Raises `InferenceFailed` if the model cannot run on the values,
        such as an index outside an embedding table.
        """
        _check_inputs(self.config, inputs)
        try:
            return self._backend.run(inputs)
        except Exception as error:
            raise InferenceFailed(self.backend, error) from error

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run the model once: `bundle(image=x)` is `bundle.run({"image": x})`."""
        return self.run(inputs)

    def __repr__(self) -> str:
        return f"<Bundle {self.name} {self.version} on {self.backend}, {self.fingerprint}>"


def load(
    path: str | Path,
    *,
    fingerprint: str | None = None,
    public_key: str | Path | bytes | None = None,
    verify: bool = True,
    fallback: bool = True,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    selftest: bool = False,
) -> Bundle:
    """Load a bundle from its folder or its archive.

    - `fingerprint`: the `h1:…` that the bundle must have; None accepts any bundle.
    - `public_key`: the key that must have signed the bundle, a PEM file or PEM as bytes; None accepts any bundle.
    - `verify`: check the digest of every file first; a fingerprint or key always does.
    - `fallback`: use the bundle's TorchScript model or exported program if the ONNX model does not load.
    - `providers`: execution providers of onnxruntime, in order of preference; None means those of the manifest.
    - `threads`: number of intra-op threads; None leaves the choice to onnxruntime.
    - `selftest`: run one test case of the bundle and compare the outputs with PyTorch's.

    Raises `NotABundle`, `ArchiveRefused`, `BundleSchemaUnknown`, `IntegrityFailed`, `FingerprintMalformed`,
    `FingerprintWrong`, `BackendUnavailable` or `SelftestFailed`; with a key also `KeyUnusable`, `SignatureMissing`,
    `SignatureWrong`, or `ExtraMissing` if `cryptography` is not installed.
    """
    check_fingerprint_syntax(fingerprint)
    trust = read_trust(public_key)
    with open_as_folder(Path(path)) as folder:
        config = read_config(folder)
        actual = _check_files(folder, config, check_digests=verify or fingerprint is not None or trust is not None)
        if fingerprint is not None and fingerprint != actual:
            raise FingerprintWrong(str(folder), fingerprint, actual)
        if trust is not None:
            _, sums = read_sums(folder)
            check_signature(read_signature(folder, sums), sums, actual, trust, str(folder))
        backend = _open_backend(folder, config, fallback=fallback, providers=providers, threads=threads)
        if selftest:
            _run_selftest(folder, backend)
    return Bundle(Path(path), config, actual, backend)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of the bundle in `folder`, and check its schema version.

    Raises `NotABundle`, `BundleSchemaUnknown`, or `IntegrityFailed` if a FINGERPRINT shows that it was a bundle once.
    """
    if folder.is_file():
        raise NotABundle(str(folder), "it is a file; a bundle is a folder or a .zip")
    if not folder.is_dir():
        raise NotABundle(str(folder), "there is no such folder or .zip")
    for name in (layout.SUMS, layout.CONFIG):
        if not (folder / name).is_file():
            raise _incomplete_bundle_error(folder, f"it has no {name}")
    try:
        config = json.loads((folder / layout.CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotABundle(str(folder), f"{layout.CONFIG} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _incomplete_bundle_error(folder, f"{layout.CONFIG} cannot be read: {error}") from None
    schema = config.get("schema") if isinstance(config, dict) else None
    if schema != layout.SCHEMA_VERSION or isinstance(schema, bool):
        raise BundleSchemaUnknown(str(folder), schema)
    return dict(config)


def _incomplete_bundle_error(folder: Path, why: str) -> NotABundle | IntegrityFailed:
    was_bundle = (folder / layout.FINGERPRINT).is_file()
    return IntegrityFailed(str(folder), why) if was_bundle else NotABundle(str(folder), why)


def _check_files(folder: Path, config: Mapping[str, Any], *, check_digests: bool) -> str:
    """Check the files against SHA256SUMS. Returns the fingerprint. Raises `IntegrityFailed` or `NotABundle`."""
    try:
        fingerprint, sums = read_sums(folder)
    except (OSError, SumsMalformed) as error:
        raise IntegrityFailed(str(folder), f"{layout.SUMS}: {error}") from None
    _check_artifacts(folder, config, sums)
    if check_digests:
        integrity = check_integrity(folder, sums)
        if not integrity.is_intact:
            parts = {"missing": integrity.missing, "not listed": integrity.extra, "changed": integrity.changed}
            why = "\n".join(f"{title}: {', '.join(paths)}" for title, paths in parts.items() if paths)
            raise IntegrityFailed(str(folder), why)
    return fingerprint


def _check_artifacts(folder: Path, config: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    """Refuse a config.json that lacks a field the loader reads, or names a file that SHA256SUMS does not list."""
    try:
        kinds = config["artifacts"]
        artifacts = [kinds["onnx"], kinds["torchscript"], kinds.get("torch-export")]
        paths = [artifact["path"] for artifact in artifacts if artifact is not None]
        for tensor in (*config["inputs"], *config["outputs"]):
            tensor["name"], tensor["dtype"], tensor["shape"]
        for entry in config.get("left_out", {}).values():
            entry["reason"]
        config["name"], config["version"], config["providers"], config["dims"]
    except (KeyError, TypeError, AttributeError) as error:
        raise NotABundle(str(folder), f"{layout.CONFIG} is malformed: {type(error).__name__}: {error}") from None
    for path in paths:
        if path not in sums:
            raise IntegrityFailed(str(folder), f"{layout.CONFIG} names {path}, which {layout.SUMS} does not list")


def _open_backend(
    folder: Path,
    config: Mapping[str, Any],
    *,
    fallback: bool,
    providers: Sequence[str] | None,
    threads: int | None,
) -> Backend:
    artifacts = config["artifacts"]
    cause = "the bundle has no ONNX model"
    if artifacts["onnx"] is not None:
        try:
            return OnnxBackend(
                folder / artifacts["onnx"]["path"], providers=providers or config["providers"], threads=threads
            )
        except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes for a model it refuses)
            first_line = str(error).strip().splitlines()[0]
            cause = f"onnxruntime: {first_line}".replace(f"{folder}{os.sep}", "")  # maybe a temporary folder
    if artifacts["torchscript"] is None and artifacts.get("torch-export") is None:
        left_out = [f"{kind}: {entry['reason']}" for kind, entry in config.get("left_out", {}).items()]
        why = "\n".join([cause, "the bundle has no fallback", *left_out])
        raise BackendUnavailable(str(folder), why, "use the onnxruntime it was built with")
    if not fallback:
        raise BackendUnavailable(str(folder), cause, "load with fallback=True")
    backend = _open_fallback(folder, config, cause)
    title = {"torchscript": "TorchScript", "torch-export": "torch.export"}[backend.name]
    _log.warning("%s falls back to %s: %s", layout.folder_name(config["name"], config["version"]), title, cause)
    return backend


def _open_fallback(folder: Path, config: Mapping[str, Any], cause: str) -> TorchScriptBackend | ExportedProgramBackend:
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
        raise BackendUnavailable(str(folder), why, "pip install torch") from None
    inputs = [(tensor["name"], tensor["dtype"]) for tensor in config["inputs"]]
    names = [tensor["name"] for tensor in config["outputs"]]
    try:
        if script is None:
            return ExportedProgramBackend(folder / program["path"], inputs=inputs, output_names=names)
        optimize = script["optimize_for_inference"]
        return TorchScriptBackend(folder / script["path"], inputs=inputs, output_names=names, optimize=optimize)
    except Exception as error:  # noqa: BLE001 (torch raises unrelated classes for a program of a different version)
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = f"{cause}\n{title}: {first_line}"
        raise BackendUnavailable(str(folder), why, "use the torch it was built with") from None


def _check_inputs(config: Mapping[str, Any], inputs: Mapping[str, Array]) -> None:
    specs = config["inputs"]
    if not isinstance(inputs, Mapping):
        raise DataDoesNotFit("inputs", f"expected a mapping of arrays by name, got {type(inputs).__name__}")
    names = [spec["name"] for spec in specs]
    if len(inputs) != len(names) or any(name not in inputs for name in names):
        unknown = [name for name in inputs if name not in names]
        why = f"the inputs are {', '.join(names)}; given: {', '.join(inputs) or 'none'}"
        hint = did_you_mean(unknown[0], names) if unknown else None
        raise DataDoesNotFit("inputs", why + (f"; {hint}" if hint else ""))
    sizes: dict[str, int] = {}
    for spec in specs:
        array = inputs[spec["name"]]
        if not isinstance(array, np.ndarray):
            raise DataDoesNotFit(spec["name"], f"expected a numpy array, got {type(array).__name__}")
        dtype = "float32" if spec["dtype"] == "bfloat16" else spec["dtype"]
        if array.dtype != dtype or array.ndim != len(spec["shape"]):
            expected, actual = f"{dtype}{_format_shape(spec['shape'])}", f"{array.dtype}{list(array.shape)}"
            raise DataDoesNotFit(spec["name"], f"it is {actual}, expected {expected}")
        for dim, size in zip(spec["shape"], array.shape, strict=True):
            _check_size(config, spec, dim, size, sizes)


def _check_size(
    config: Mapping[str, Any], spec: Mapping[str, Any], dim: int | str, size: int, sizes: dict[str, int]
) -> None:
    if isinstance(dim, int):
        if size != dim:
            why = f"its shape must be {_format_shape(spec['shape'])}; a dim of {dim} is {size}"
            raise DataDoesNotFit(spec["name"], why)
        return
    smallest, largest = config["dims"][dim]["min"], config["dims"][dim]["max"]
    if size < smallest or (largest is not None and size > largest):
        at_most = "" if largest is None else f" and at most {largest}"
        raise DataDoesNotFit(spec["name"], f"{dim} is {size}, and must be at least {smallest}{at_most}")
    if sizes.setdefault(dim, size) != size:
        raise DataDoesNotFit(spec["name"], f"{dim} is {size} here and {sizes[dim]} in a different input")


def _format_shape(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(str(dim) for dim in shape) + "]"


def _run_selftest(folder: Path, backend: Backend) -> None:
    from packager.bundle.evidence import EvidenceMalformed, read_reference_cases
    from packager.parity.numerics.decisions import AxisMissing
    from packager.parity.numerics.verdict import check_parity

    try:
        result = check_parity(backend.run, read_reference_cases(folder, first_only=True))
    except (EvidenceMalformed, AxisMissing) as error:
        raise SelftestFailed(str(folder), f"evidence: {error}") from None
    if not result.passed:
        raise SelftestFailed(str(folder), result.reason)
