"""Load a bundle for inference.

The seal is checked before a model is parsed, and every file that is used is compared with its digest; the bytes that
were checked are those that are used: no file is opened a second time. The ONNX model is used if it loads. Otherwise the
fallback, TorchScript or an exported program, is used and the reason is logged as a warning, unless `fallback=False`. A
fallback is a program, and runs only in a bundle that is trusted (`packager.runtime.trust`).
Predicting with ONNX imports neither torch nor onnx.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from packager.bundle import layout
from packager.bundle.config import list_artifacts, read_config
from packager.bundle.files import BundleFiles, open_bundle
from packager.bundle.fingerprint import SumsMalformed, check_fingerprint_syntax
from packager.bundle.seal import Seal, check_intact, check_listed, read_sums
from packager.errors import (
    ArgumentWrong,
    InferenceFailed,
    IntegrityFailed,
)
from packager.runtime.backends import FallbackRules, open_backend
from packager.runtime.input_checks import InputChecks
from packager.runtime.session_settings import SessionSettings, check_settings
from packager.runtime.trust import check_pins, trusts_program

if TYPE_CHECKING:
    from packager.runtime.backends import Backend
    from packager.runtime.onnx_backend import Provider

Array = NDArray[np.generic]
Verify = bool | Literal["all"]
_log = logging.getLogger("packager")


@dataclass(frozen=True)
class _Opening:
    """How a bundle is opened, and opened again in another process: there `fingerprint` is the one that it had here.

    `trusted` says whether its program may run, as only the first caller can: the fingerprint that a copy is opened with
    proves that it is the same bundle, and not that somebody vouched for it.
    """

    path: Path
    verify: Verify
    fingerprint: str | None
    trusted: bool
    fallback: bool
    settings: SessionSettings


class Bundle:
    """A loaded bundle. `run` may be called from several threads at once.

    `inputs` and `outputs` are the signature in config.json: name, dtype and shape of each tensor, and the range of an
    input. `backend` is "onnx", "torchscript" or "torch-export", `providers` are the execution providers of onnxruntime
    that are used, in order of preference.

    A bundle can be pickled, and used after a fork: the other process opens the same fingerprint again. It is a context
    manager, and `close` frees the model.
    """

    def __init__(self, config: Mapping[str, Any], fingerprint: str, backend: Backend, opening: _Opening) -> None:
        self.path = opening.path
        self.config = config
        self.fingerprint = fingerprint
        self.name: str = config["name"]
        self.version: str = config["version"]
        self.inputs: list[dict[str, Any]] = config["inputs"]
        self.outputs: list[dict[str, Any]] = config["outputs"]
        self.backend: str = backend.name
        self.providers: tuple[str, ...] = tuple(backend.providers) if backend.name == "onnx" else ()
        self._checks = InputChecks(config)
        self._opening = replace(opening, fingerprint=fingerprint)
        self._backend: Backend | None = backend
        self._closed = False
        self._lock = threading.Lock()
        _bundles.add(self)

    def run(
        self,
        inputs: Mapping[str, Array],
        *,
        out: Mapping[str, Array] | None = None,
        cast: bool = False,
        check_values: bool = False,
    ) -> dict[str, Array]:
        """Run the model once, on arrays by input name. Returns arrays by output name.

        The arrays must have the dtypes and shapes of the signature; pass float32 for a bfloat16 input.

        - `out`: arrays by output name that the outputs are written into, C-contiguous and of the right dtype and shape.
        - `cast`: convert arrays, lists and numbers to the dtype of their input if that changes no value.
        - `check_values`: compare the values with the ranges of the manifest first.

        Raises `DataDoesNotFit` if a name, dtype, rank or fixed size differs from the signature, if a named dim differs
        between inputs or is outside its limits, or if a value is outside its range and `check_values` is true. Raises
        `InferenceFailed` if the model cannot run on the values, such as an index outside an embedding table.
        """
        backend = self._backend
        if backend is None:
            backend = self._open_again()
        arrays = self._checks.check(inputs, cast=cast, check_values=check_values)
        if out is not None:
            self._checks.check_out(out, arrays)
        try:
            return backend.run(arrays) if out is None else _run_into(backend, arrays, out)
        except Exception as error:
            raise InferenceFailed(self.backend, error) from error

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run the model once: `bundle(image=x)` is `bundle.run({"image": x})`."""
        return self.run(inputs)

    def close(self) -> None:
        """Free the model; `run` raises ValueError from now on."""
        self._closed, self._backend = True, None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed:
            raise ValueError("a closed bundle cannot be pickled")
        return _open, (self._opening,)

    def __repr__(self) -> str:
        return f"<Bundle {self.name} {self.version} on {self.backend}, {self.fingerprint}>"

    def _open_again(self) -> Backend:
        """Open the bundle again after a fork, in which the threads of its session were lost."""
        with self._lock:
            if self._closed:
                raise ValueError("the bundle is closed")
            if self._backend is None:
                self._backend = _open(self._opening)._backend
                assert self._backend is not None
            return self._backend

    def _forget_threads(self) -> None:
        """Drop a session whose threads exist in the parent process only; one without threads goes on working."""
        if self._backend is not None and self._backend.name == "onnx" and self._backend.threads != 1:
            self._backend.leak()
            self._backend, self._lock = None, threading.Lock()


_bundles: weakref.WeakSet[Bundle] = weakref.WeakSet()


def _forget_threads_of_all() -> None:
    for bundle in list(_bundles):
        bundle._forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads_of_all)


def load(
    path: str | Path,
    *,
    fingerprint: str | None = None,
    public_key: str | Path | bytes | None = None,
    verify: Verify = True,
    fallback: bool = True,
    trust_program: bool = False,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    session_options: Mapping[str, Any] | None = None,
    log_level: str | None = None,
    selftest: bool = False,
) -> Bundle:
    """Load a bundle from its folder or its archive.

    - `fingerprint`: the `h1:…` that the bundle must have; None accepts any bundle.
    - `public_key`: the key that must have signed the bundle, a PEM file or PEM as bytes; None accepts any bundle.
    - `verify`: check the seal, the names of all files, and the digest of every file that is used. "all" checks the
      digest of files that are not used too; False checks nothing, unless there is a fingerprint or key.
    - `fallback`: use the bundle's TorchScript model or exported program if the ONNX model does not load. Both are
      programs, and run only if `fingerprint` or `public_key` pins the bundle, or `trust_program` is true.
    - `trust_program`: trust whoever made the bundle: its program can read and write files as you can.
    - `providers`: execution providers of onnxruntime, in order of preference, by name or as (name, options); None
      means those of the manifest. If the first is not available, a warning is logged; if none is, the model does not
      load.
    - `threads`: number of intra-op threads; None means the cores that this process may use: the affinity and the quota
      of its container count.
    - `session_options`: attributes of onnxruntime's SessionOptions by name, such as `{"inter_op_num_threads": 2}`, and
      configuration entries, such as `{"session.disable_prepacking": "1"}`.
    - `log_level`: what onnxruntime prints: "debug", "info", "warning", "error" or "critical". None is "critical", as
      errors are raised.
    - `selftest`: run one test case of the bundle and compare the outputs with PyTorch's.

    Raises `ArgumentWrong`, `NotABundle`, `ArchiveRefused`, `BundleSchemaUnknown`, `IntegrityFailed`,
    `FingerprintMalformed`, `FingerprintWrong`, `BackendUnavailable`, `ProgramNotTrusted` or `SelftestFailed`; with a
    key also `KeyUnusable`, `SignatureMissing`, `SignatureWrong`, or `ExtraMissing` if `cryptography` is not installed.
    """
    check_fingerprint_syntax(fingerprint)
    if verify not in (True, False, "all"):
        raise ArgumentWrong("verify", f"it is {verify!r}", 'use True, False or "all"')
    settings = check_settings(providers, threads, session_options, log_level)
    verify = verify or fingerprint is not None or public_key is not None
    trusted = trusts_program(fingerprint=fingerprint, trust_program=trust_program)
    opening = _Opening(Path(path).absolute(), verify, fingerprint, trusted, fallback, settings)
    return _open(opening, public_key=public_key, selftest=selftest)


def _open(opening: _Opening, *, public_key: str | Path | bytes | None = None, selftest: bool = False) -> Bundle:
    trust = None
    if public_key is not None:
        from packager.signature.verify import read_trust

        trust = read_trust(public_key)
    with open_bundle(opening.path) as files:
        config, seal = _check_files(files, verify=opening.verify, evidence=selftest)
        signer = check_pins(files, seal, opening.fingerprint, trust)
        trusted = trusts_program(signer=signer, trust_program=opening.trusted)
        rules = FallbackRules(allowed=opening.fallback, trusted=trusted)
        backend = open_backend(files, config, opening.settings, rules, selftest=selftest)
    return Bundle(config, seal.fingerprint, backend, replace(opening, trusted=trusted))


def _check_files(files: BundleFiles, *, verify: Verify, evidence: bool) -> tuple[dict[str, Any], Seal]:
    """Check the files against SHA256SUMS, and read config.json. Returns it with the seal.

    Raises `IntegrityFailed`, `NotABundle` or `BundleSchemaUnknown`.
    """
    path = str(files.path)
    if verify == "all":
        config, seal = check_intact(files, models=True, evidence=evidence)
    elif verify:
        config, seal = check_listed(files)
    else:
        try:
            seal, config = read_sums(files), read_config(files)
        except SumsMalformed as error:
            raise IntegrityFailed(path, f"{layout.SUMS}: {error}") from None
    for artifact, _ in list_artifacts(config):
        if artifact not in seal.sums:
            raise IntegrityFailed(path, f"{layout.CONFIG} names {artifact}, which {layout.SUMS} does not list")
    return config, seal


def _run_into(backend: Backend, arrays: Mapping[str, Array], out: Mapping[str, Array]) -> dict[str, Array]:
    if backend.name == "onnx":
        return backend.run_into(arrays, out)
    outputs = backend.run(arrays)
    for name, array in out.items():
        if array.shape != outputs[name].shape:
            raise ValueError(f"{name} has the shape {list(outputs[name].shape)}, and the array {list(array.shape)}")
        np.copyto(array, outputs[name])
    return {**outputs, **out}
