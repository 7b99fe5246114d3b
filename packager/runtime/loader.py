"""A bundle → something that predicts.

The digests are checked before anything is parsed. ONNX is taken where it loads; where it does not,
TorchScript is, with a warning that says why, unless `fallback=False` refuses it. Neither torch nor
onnx is imported on the way to an ONNX prediction.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packager.bundle import layout
from packager.bundle.archive import open_as_folder
from packager.bundle.fingerprint import SumsMalformed, check_fingerprint_syntax, check_integrity, parse_sums
from packager.bundle.fingerprint import compute_fingerprint as fingerprint_of
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

Array = NDArray[np.generic]
_log = logging.getLogger("packager")


class Bundle:
    """A loaded bundle. `run` may be called from several threads at once."""

    def __init__(self, path: Path, config: Mapping[str, Any], fingerprint: str, backend: Any) -> None:
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
        """One prediction: arrays by input name in, arrays by output name out.

        Raises `DataDoesNotFit` where a name, dtype, rank or fixed size is not the signature's, or
        a named dim differs between inputs or leaves its limits. A bfloat16 input is given as float32.
        Raises `InferenceFailed` where the model cannot run on the values, such as an index beyond its table.
        """
        _check_inputs(self.config, inputs)
        try:
            outputs: dict[str, Array] = self._backend.run(inputs)
        except Exception as error:
            raise InferenceFailed(self.backend, error) from error
        return outputs

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """`bundle(image=x)` is `bundle.run({"image": x})`."""
        return self.run(inputs)

    def __repr__(self) -> str:
        return f"<Bundle {self.name} {self.version} on {self.backend}, {self.fingerprint}>"


def load(
    path: str | Path,
    *,
    fingerprint: str | None = None,
    verify: bool = True,
    fallback: bool = True,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    selftest: bool = False,
) -> Bundle:
    """Load a bundle: its folder, or its archive, of which nothing stays unpacked.

    `fingerprint` is the `h1:…` that the bundle must have; `verify` checks every file's digest first;
    `fallback` allows TorchScript where ONNX does not load; `providers` are onnxruntime's, those of
    the manifest if None; `threads` is the size of the intra-op pool; `selftest` replays one case of
    the bundle's evidence. Raises `NotABundle`, `ArchiveRefused`, `BundleSchemaUnknown`,
    `IntegrityFailed`, `FingerprintMalformed`, `FingerprintWrong`, `BackendUnavailable` or `SelftestFailed`.
    """
    check_fingerprint_syntax(fingerprint)
    with open_as_folder(Path(path)) as folder:
        config = read_config(folder)
        seal = _check_files(folder, config, check_digests=verify or fingerprint is not None)
        if fingerprint is not None and fingerprint != seal:
            raise FingerprintWrong(str(folder), fingerprint, seal)
        backend = _open_backend(folder, config, fallback=fallback, providers=providers, threads=threads)
        if selftest:
            _run_selftest(folder, backend)
    return Bundle(Path(path), config, seal, backend)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a bundle, its schema checked first.

    Raises `NotABundle`, `BundleSchemaUnknown`, or `IntegrityFailed` for what was a bundle, as its FINGERPRINT shows.
    """
    if folder.is_file():
        raise NotABundle(str(folder), "it is a file, and a bundle is a folder or a .zip")
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
    found: dict[str, Any] = config
    return found


def _incomplete_bundle_error(folder: Path, why: str) -> NotABundle | IntegrityFailed:
    was_one = (folder / layout.FINGERPRINT).is_file()
    return IntegrityFailed(str(folder), why) if was_one else NotABundle(str(folder), why)


def _check_files(folder: Path, config: Mapping[str, Any], *, check_digests: bool) -> str:
    try:
        text = (folder / layout.SUMS).read_bytes().decode()
        sums = parse_sums(text)
    except (OSError, UnicodeDecodeError, SumsMalformed) as error:
        raise IntegrityFailed(str(folder), f"{layout.SUMS}: {error}") from None
    _check_artifacts(folder, config, sums)
    if check_digests:
        found = check_integrity(folder, sums)
        if not found.is_intact:
            parts = (("missing", found.missing), ("not listed", found.extra), ("changed", found.changed))
            why = "\n".join(f"{title}: {', '.join(paths)}" for title, paths in parts if paths)
            raise IntegrityFailed(str(folder), why)
    return fingerprint_of(text)


def _check_artifacts(folder: Path, config: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    """Refuse a config.json that is malformed where the loader reads it, or names a file that is not listed."""
    try:
        artifacts = [config["artifacts"]["onnx"], config["artifacts"]["torchscript"]]
        paths = [one["path"] for one in artifacts if one is not None]
        for tensor in (*config["inputs"], *config["outputs"]):
            tensor["name"], tensor["dtype"], tensor["shape"]
        config["name"], config["version"], config["providers"], config["dims"]
    except (KeyError, TypeError) as error:
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
) -> Any:
    artifacts = config["artifacts"]
    cause = "the bundle has no ONNX model"
    if artifacts["onnx"] is not None:
        try:
            return OnnxBackend(
                folder / artifacts["onnx"]["path"], providers=providers or config["providers"], threads=threads
            )
        except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes for a model it refuses)
            first_line = str(error).strip().splitlines()[0]
            cause = f"onnxruntime: {first_line}".replace(f"{folder}{os.sep}", "")  # the folder may be a passing one
    if artifacts["torchscript"] is None or not fallback:
        hint = "load with fallback=True" if artifacts["torchscript"] else "use the onnxruntime it was built with"
        raise BackendUnavailable(str(folder), cause, hint)
    backend = open_torchscript_backend(folder, config, cause)
    _log.warning("%s falls back to TorchScript: %s", layout.folder_name(config["name"], config["version"]), cause)
    return backend


def open_torchscript_backend(folder: Path, config: Mapping[str, Any], cause: str) -> Any:
    """The bundle's TorchScript model. Raises `BackendUnavailable` where torch is not installed or refuses it."""
    try:
        from packager.runtime.torchscript_backend import TorchScriptBackend
    except ImportError as error:
        why = f"{cause}\nthe TorchScript fallback needs torch: {error}"
        raise BackendUnavailable(str(folder), why, "pip install torch") from None
    artifact = config["artifacts"]["torchscript"]
    try:
        return TorchScriptBackend(
            folder / artifact["path"],
            inputs=[(one["name"], one["dtype"]) for one in config["inputs"]],
            output_names=[one["name"] for one in config["outputs"]],
            optimize=artifact["optimize_for_inference"],
        )
    except RuntimeError as error:
        why = f"{cause}\nTorchScript: {str(error).strip().splitlines()[0]}"
        raise BackendUnavailable(str(folder), why, "use the torch it was built with") from None


def _check_inputs(config: Mapping[str, Any], inputs: Mapping[str, Array]) -> None:
    wanted = config["inputs"]
    if not isinstance(inputs, Mapping):
        raise DataDoesNotFit("inputs", f"they are a {type(inputs).__name__}, not a mapping of arrays by name")
    if len(inputs) != len(wanted) or any(one["name"] not in inputs for one in wanted):
        names = [one["name"] for one in wanted]
        unknown = [name for name in inputs if name not in names]
        why = f"the inputs are {', '.join(names)}; given: {', '.join(inputs) or 'none'}"
        hint = did_you_mean(unknown[0], names) if unknown else None
        raise DataDoesNotFit("inputs", why + (f"; {hint}" if hint else ""))
    sizes: dict[str, int] = {}
    for spec in wanted:
        array = inputs[spec["name"]]
        if not isinstance(array, np.ndarray):
            raise DataDoesNotFit(spec["name"], f"it is a {type(array).__name__}, not a numpy array")
        dtype = "float32" if spec["dtype"] == "bfloat16" else spec["dtype"]
        if array.dtype != dtype or array.ndim != len(spec["shape"]):
            found = f"{array.dtype}{list(array.shape)}"
            raise DataDoesNotFit(spec["name"], f"it is {found}, expected {dtype}{_format_shape(spec['shape'])}")
        for dim, size in zip(spec["shape"], array.shape, strict=True):
            _check_size(config, spec, dim, size, sizes)


def _check_size(
    config: Mapping[str, Any], spec: Mapping[str, Any], dim: int | str, size: int, sizes: dict[str, int]
) -> None:
    if isinstance(dim, int):
        if size != dim:
            raise DataDoesNotFit(
                spec["name"], f"its shape must be {_format_shape(spec['shape'])}; a dim of {dim} is {size}"
            )
        return
    limit = config["dims"][dim]
    if size < limit["min"] or (limit["max"] is not None and size > limit["max"]):
        most = "" if limit["max"] is None else f" and at most {limit['max']}"
        raise DataDoesNotFit(spec["name"], f"{dim} is {size}, and must be at least {limit['min']}{most}")
    if sizes.setdefault(dim, size) != size:
        raise DataDoesNotFit(spec["name"], f"{dim} is {size} here and {sizes[dim]} in another input")


def _format_shape(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(str(dim) for dim in shape) + "]"


def _run_selftest(folder: Path, backend: Any) -> None:
    from packager.bundle.evidence import EvidenceMalformed, read_reference_cases
    from packager.parity.numerics.decisions import AxisMissing
    from packager.parity.numerics.verdict import check_parity

    try:
        judgement = check_parity(backend.run, read_reference_cases(folder, first_only=True))
    except (EvidenceMalformed, AxisMissing) as error:
        raise SelftestFailed(str(folder), f"evidence: {error}") from None
    if not judgement.passed:
        raise SelftestFailed(str(folder), judgement.reason)
