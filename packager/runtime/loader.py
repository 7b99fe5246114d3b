"""Load a bundle for inference.

The seal and the digests of all files are checked before a model is parsed, and the bytes that were checked are those
that are used: no file is opened a second time. The ONNX model is used if it loads. Otherwise the fallback, TorchScript
or an exported program, is used and the reason is logged as a warning, unless `fallback=False`. A fallback is a program,
and runs only in a bundle that is trusted (`packager.runtime.trust`).
Predicting with ONNX imports neither torch nor onnx.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from packager.bundle import layout
from packager.bundle.config import list_artifacts, read_config
from packager.bundle.files import BundleFiles, open_bundle
from packager.bundle.fingerprint import SumsMalformed, check_fingerprint_syntax
from packager.bundle.onnx_wire import WeightsUnsafe
from packager.bundle.seal import MAX_RECORD_BYTES, Seal, check_intact, read_signature, read_sums
from packager.errors import (
    BackendUnavailable,
    DataDoesNotFit,
    FingerprintWrong,
    InferenceFailed,
    IntegrityFailed,
    NotABundle,
    PackagerError,
    ProgramNotTrusted,
    SelftestFailed,
    did_you_mean,
)
from packager.runtime.bundled_onnx import open_bundled_onnx
from packager.runtime.trust import PROGRAM_TITLES, trusts_program
from packager.signature.verify import check_signature, read_trust

if TYPE_CHECKING:
    from packager.runtime.exported_program_backend import ExportedProgramBackend
    from packager.runtime.onnx_backend import OnnxBackend
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
    trust_program: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    selftest: bool = False,
) -> Bundle:
    """Load a bundle from its folder or its archive.

    - `fingerprint`: the `h1:…` that the bundle must have; None accepts any bundle.
    - `public_key`: the key that must have signed the bundle, a PEM file or PEM as bytes; None accepts any bundle.
    - `verify`: check the seal first, with the digest of every file; a fingerprint or key always does.
    - `fallback`: use the bundle's TorchScript model or exported program if the ONNX model does not load. Both are
      programs, and run only if `fingerprint` or `public_key` pins the bundle, or `trust_program` is true.
    - `trust_program`: trust whoever made the bundle: its program can read and write files as you can.
    - `providers`: execution providers of onnxruntime, in order of preference; None means those of the manifest.
    - `threads`: number of intra-op threads; None leaves the choice to onnxruntime.
    - `selftest`: run one test case of the bundle and compare the outputs with PyTorch's.

    Raises `NotABundle`, `ArchiveRefused`, `BundleSchemaUnknown`, `IntegrityFailed`, `FingerprintMalformed`,
    `FingerprintWrong`, `BackendUnavailable`, `ProgramNotTrusted` or `SelftestFailed`; with a key also `KeyUnusable`,
    `SignatureMissing`, `SignatureWrong`, or `ExtraMissing` if `cryptography` is not installed.
    """
    check_fingerprint_syntax(fingerprint)
    trust = read_trust(public_key)
    with open_bundle(path) as files:
        check_digests = verify or fingerprint is not None or trust is not None
        config, seal = _check_files(files, check_digests=check_digests, evidence=selftest)
        actual, signer = seal.fingerprint, None
        if fingerprint is not None and fingerprint != actual:
            raise FingerprintWrong(str(files.path), fingerprint, actual)
        if trust is not None:
            signer = check_signature(read_signature(files), seal.sums, actual, trust, str(files.path))
        trusted = trusts_program(fingerprint=fingerprint, signer=signer, trust_program=trust_program)
        backend = _open_backend(files, config, fallback=fallback, trusted=trusted, providers=providers, threads=threads)
        if selftest:
            _run_selftest(files, backend)
    return Bundle(Path(path), config, actual, backend)


def _check_files(files: BundleFiles, *, check_digests: bool, evidence: bool) -> tuple[dict[str, Any], Seal]:
    """Check the files against SHA256SUMS, and read config.json. Returns it with the seal.

    Raises `IntegrityFailed`, `NotABundle` or `BundleSchemaUnknown`.
    """
    path = str(files.path)
    if check_digests:
        config, seal = check_intact(files, models=True, evidence=evidence)
    else:
        try:
            seal, config = read_sums(files), read_config(files)
        except SumsMalformed as error:
            raise IntegrityFailed(path, f"{layout.SUMS}: {error}") from None
    for artifact, _ in list_artifacts(config):
        if artifact not in seal.sums:
            raise IntegrityFailed(path, f"{layout.CONFIG} names {artifact}, which {layout.SUMS} does not list")
    return config, seal


def _open_backend(
    files: BundleFiles,
    config: Mapping[str, Any],
    *,
    fallback: bool,
    trusted: bool,
    providers: Sequence[str] | None,
    threads: int | None,
) -> Backend:
    artifacts, path = config["artifacts"], str(files.path)
    cause = "the bundle has no ONNX model"
    onnx = artifacts["onnx"]
    if onnx is not None:
        try:
            return open_bundled_onnx(files, onnx, providers=providers or config["providers"], threads=threads)
        except WeightsUnsafe as error:
            raise NotABundle(path, f"{onnx['path']}: {error}") from None
        except PackagerError:
            raise
        except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes for a model it refuses)
            cause = f"onnxruntime: {onnx['path']}: {_first_line(error)}"
        finally:
            files.release(onnx["path"])
    programs = [artifacts[kind] for kind in PROGRAM_TITLES if artifacts.get(kind) is not None]
    if not programs:
        left_out = [f"{kind}: {entry['reason']}" for kind, entry in config.get("left_out", {}).items()]
        why = "\n".join([cause, "the bundle has no fallback", *left_out])
        raise BackendUnavailable(path, why, "use the onnxruntime it was built with")
    if not fallback:
        raise BackendUnavailable(path, cause, "load with fallback=True")
    if not trusted:
        raise ProgramNotTrusted(path, programs[0]["path"], cause)
    backend = _open_fallback(files, config, cause)
    folder = layout.folder_name(config["name"], config["version"])
    _log.warning("%s falls back to %s: %s", folder, PROGRAM_TITLES[backend.name], cause)
    return backend


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
        why = f"{cause}\n{title}: {_first_line(error)}"
        raise BackendUnavailable(str(files.path), why, "use the torch it was built with") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def _run_selftest(files: BundleFiles, backend: Backend) -> None:
    from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
    from packager.parity.numerics.verdict import check_parity

    path = str(files.path)
    parity, golden = files.read(layout.PARITY, MAX_RECORD_BYTES), files.read(layout.GOLDEN)
    try:
        result = check_parity(backend.run, parse_reference_cases(parity, golden, first_only=True))
    except EvidenceMalformed as error:
        raise SelftestFailed(path, f"evidence: {error}") from None
    except Exception as error:  # noqa: BLE001 (a model raises anything for evidence that does not fit it)
        raise SelftestFailed(path, f"{type(error).__name__}: {_first_line(error)}") from None
    if not result.passed:
        raise SelftestFailed(path, result.reason)
