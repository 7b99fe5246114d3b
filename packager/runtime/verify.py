"""Verify that a bundle's files are intact and well formed, and that it computes what PyTorch computed.

The checks run in this order and stop at the first that fails: a file with a wrong digest is never parsed.
PyTorch itself is not needed, because the evidence contains its outputs. Whatever cannot be checked, such as
TorchScript without torch, is reported as not-checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from packager.bundle import layout, records
from packager.bundle.archive import open_as_folder
from packager.bundle.evidence import EvidenceMalformed, read_reference_cases
from packager.bundle.fingerprint import Integrity, SumsMalformed, check_fingerprint_syntax, check_integrity, read_sums
from packager.errors import SignatureWrong
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.runtime.check import check_exported_program, check_onnx_session, check_torchscript
from packager.runtime.loader import read_config
from packager.runtime.onnx_backend import OnnxBackend, describe_missing_providers
from packager.signature.files import read_signature
from packager.signature.report import SignatureReport
from packager.signature.verify import Trust, read_trust, report_signature


@dataclass(frozen=True)
class VerifyReport:
    """The result of verifying a bundle.

    - `integrity`: the differences between the files and SHA256SUMS.
    - `structure`: one line for each problem in the records.
    - `signature`: whether a signature was checked, and who signed; None for an unsigned bundle that need not be signed.
    - `parity`: pass, fail or not-checked for each backend; `notes` say why.
    - `rebuild`: the first difference of each file from a rebuilt bundle; empty if the bytes are the same.
    """

    fingerprint: str
    integrity: Integrity
    structure: tuple[str, ...]
    parity: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())
    rebuild: Mapping[str, str] = field(default_factory=dict)
    signature: SignatureReport | None = None

    @property
    def ok(self) -> bool:
        """Return whether the bundle passes.

        It is intact and well formed, neither its signature nor parity failed, and it was rebuilt with the same bytes.
        """
        if self.signature is not None and self.signature.verdict == "fail":
            return False
        same = all(not difference or layout.is_machine_dependent(path) for path, difference in self.rebuild.items())
        return self.integrity.is_intact and not self.structure and "fail" not in self.parity.values() and same

    def with_rebuild(self, rebuild: Mapping[str, str]) -> VerifyReport:
        """Return this report with the differences from a rebuilt bundle, by path."""
        differing = [path for path, difference in rebuild.items() if difference]
        notes = self.notes
        if differing and all(layout.is_machine_dependent(path) for path in differing):
            notes += ("rebuilt: only measurements differ, as they do on a different kind of machine",)
        return replace(self, rebuild=rebuild, notes=notes)

    def as_json(self) -> dict[str, object]:
        """Return the object that `package verify --json` prints."""
        return {
            "ok": self.ok,
            "fingerprint": self.fingerprint,
            "integrity": {name: list(paths) for name, paths in asdict(self.integrity).items()},
            "structure": list(self.structure),
            "parity": dict(self.parity),
            "notes": list(self.notes),
            **({"rebuild": dict(self.rebuild)} if self.rebuild else {}),
            **({"signature": self.signature.as_json()} if self.signature is not None else {}),
        }


_BACKENDS = ("onnx", "torchscript")  # and torch-export, in a bundle with an exported program
_MALFORMED = "parity: not checked, because the bundle is malformed"
_UNTRUSTED = "structure and parity: not checked, because the signature is wrong"


def verify(
    bundle: str | Path,
    *,
    fingerprint: str | None = None,
    public_key: str | Path | bytes | None = None,
    certificate_chain: str | Path | Sequence[str | Path] = (),
    parity: bool = True,
) -> VerifyReport:
    """Verify a bundle, given as a folder or an archive.

    - `fingerprint`: the `h1:…` that the bundle must have; None accepts any bundle.
    - `public_key`: the key that must have signed the bundle, a PEM file or PEM as bytes.
    - `certificate_chain`: PEM files with certificates that must vouch for the signer's, the root among them.
    - `parity`: run the models on the evidence.

    Raises `NotABundle`, `ArchiveRefused` or `BundleSchemaUnknown` if there is no bundle to verify, `IntegrityFailed`
    if the archive or its config.json is damaged, `FingerprintMalformed`, `KeyUnusable`, and `ExtraMissing` if a
    signature is to be checked and `cryptography` is not installed.
    """
    check_fingerprint_syntax(fingerprint)
    trust = read_trust(public_key, certificate_chain)
    with open_as_folder(Path(bundle)) as folder:
        report = _verify_folder(folder, fingerprint, parity, trust)
        if report.signature is not None and report.signature.error is not None:
            report.signature.error.replace_path(str(folder), str(bundle))
    return report


def verify_staged(folder: Path, sha256: Callable[[Path], str]) -> VerifyReport:
    """Verify the folder of a bundle that was just written, without parity; `sha256` knows the digests of its files."""
    return _verify_folder(folder, None, False, None, sha256)


def _verify_folder(
    folder: Path,
    fingerprint: str | None,
    parity: bool,
    trust: Trust | None,
    sha256: Callable[[Path], str] | None = None,
) -> VerifyReport:
    raw_config = read_config(folder)
    seal, integrity, problems = _check_seal(folder, fingerprint, sha256)
    signature = _check_signature(folder, seal, trust, intact=integrity.is_intact)
    backends = [*_BACKENDS, *(["torch-export"] if _has_exported_program(raw_config) else [])]
    not_checked, failed = dict.fromkeys(backends, "not-checked"), dict.fromkeys(backends, "fail")

    def report(problems: Sequence[str], verdicts: Mapping[str, str], *notes: str) -> VerifyReport:
        if signature is not None and signature.verdict == "not-checked" and trust is None:
            notes += ("signature: not checked, because no public key and no certificates were given",)
        return VerifyReport(seal, integrity, tuple(problems), verdicts, notes, signature=signature)

    if not integrity.is_intact or problems:
        return report(problems, not_checked, "parity: not checked, because the files or their fingerprint are wrong")
    if signature is not None and signature.error is not None:
        return report((), not_checked, f"signature: {signature.error.hint}", _UNTRUSTED)
    config, problems = _check_structure(folder, raw_config)
    if config is None or problems:
        return report(problems, not_checked, _MALFORMED)
    if not parity:
        return report((), not_checked, "parity: not requested")
    session, problems = _open_session(folder, config)
    try:
        cases = read_reference_cases(folder)
    except EvidenceMalformed as error:
        return report(problems, failed, f"evidence: {error}")
    problems += _check_case_signatures(cases, config) or _check_declared_shapes(session, cases)
    if problems:
        return report(problems, not_checked, _MALFORMED)
    verdicts, notes = _replay_cases(folder, config, session, cases)
    return report((), verdicts, *notes)


def _check_signature(folder: Path, seal: str, trust: Trust | None, *, intact: bool) -> SignatureReport | None:
    """Check model.sig against the seal if that is intact; otherwise there is nothing that it could be checked with."""
    if not intact:
        expected = trust is not None or os.path.lexists(folder / layout.SIGNATURE)
        return SignatureReport("not-checked") if expected else None
    _, sums = read_sums(folder)
    try:
        content = read_signature(folder, sums)
    except SignatureWrong as error:
        return SignatureReport("fail", error=error)
    return report_signature(content, sums, seal, trust, str(folder))


def _has_exported_program(raw_config: Mapping[str, Any]) -> bool:
    artifacts = raw_config.get("artifacts")
    return isinstance(artifacts, dict) and artifacts.get("torch-export") is not None


def _check_seal(
    folder: Path, expected: str | None, sha256: Callable[[Path], str] | None
) -> tuple[str, Integrity, list[str]]:
    """Return the computed fingerprint, how the files differ from SHA256SUMS, and what is wrong with the seal."""
    try:
        seal, sums = read_sums(folder)
    except (OSError, SumsMalformed) as error:
        return "", Integrity(changed=(layout.SUMS,)), [f"{layout.SUMS}: {error}"]
    integrity = check_integrity(folder, sums, sha256)
    problems = []
    try:
        recorded = _read_regular_file(folder / layout.FINGERPRINT).decode()
    except FileNotFoundError:
        integrity = replace(integrity, missing=(layout.FINGERPRINT, *integrity.missing))
    except (OSError, UnicodeDecodeError) as error:
        integrity = replace(integrity, changed=(layout.FINGERPRINT, *integrity.changed))
        problems.append(f"{layout.FINGERPRINT} is unreadable ({type(error).__name__}); that of the files is {seal}")
    else:
        if recorded != f"{seal}\n":
            integrity = replace(integrity, changed=(layout.FINGERPRINT, *integrity.changed))
            problems.append(f"{layout.FINGERPRINT} says {recorded.strip()}; that of the files is {seal}")
    if expected is not None and expected != seal:
        problems.append(f"the fingerprint is {seal}, expected {expected}")
    return seal, integrity, problems


def _read_regular_file(path: Path) -> bytes:
    """Read a file. Raises OSError for a pipe or a device, which might never end."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    return path.read_bytes()


def _check_structure(folder: Path, raw_config: Mapping[str, Any]) -> tuple[records.BundleConfig | None, list[str]]:
    """Check the records against their models, and against the files that they name.

    Returns config.json as its model, or None if a record does not fit its model, and one line per problem.
    """
    try:
        config = records.BundleConfig.model_validate(raw_config)
        parity = records.ParityRecord.model_validate_json((folder / layout.PARITY).read_bytes())
        records.BuildRecord.model_validate_json((folder / layout.BUILD).read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        return None, [_format_error(error, folder)]
    _, sums = read_sums(folder)
    artifacts = _artifact_files(config)
    problems = [
        f"{layout.CONFIG} and {layout.SUMS} have different digests for {path}"
        for path, sha256 in artifacts
        if sums.get(path) != sha256
    ]
    if not artifacts:
        problems.append(f"{layout.CONFIG} names no artifact")
    expected = {layout.CONFIG, layout.README, layout.GOLDEN, layout.PARITY, layout.BUILD}
    expected |= {path for path, _ in artifacts}
    expected |= {f"{layout.ASSETS}/{asset}" for asset in config.assets}
    problems += [f"{path} is missing from {layout.SUMS}" for path in sorted(expected - set(sums))]
    problems += [f"{path} does not belong in a bundle" for path in sorted(set(sums) - expected)]
    backends = {str(name): backend for name, backend in parity.backends.items()}
    for name, verdict in config.parity.model_dump(by_alias=True).items():
        backend = backends.get(name)
        if backend is None or backend.verdict != verdict:
            problems.append(f"{layout.CONFIG} says {name}: {verdict}, and {layout.PARITY} does not")
    if (config.artifacts.torch_export is None) != (config.parity.torch_export is None):
        problems.append(f"{layout.CONFIG} has torch-export in artifacts or in parity, and not in both")
    return config, problems


def _artifact_files(config: records.BundleConfig) -> list[tuple[str, str]]:
    """List path and SHA-256 of every file of an artifact, as config.json has them."""
    onnx = config.artifacts.onnx
    fallbacks = (config.artifacts.torchscript, config.artifacts.torch_export)
    files = (onnx, *fallbacks, onnx.data if onnx is not None else None)
    return [(file.path, file.sha256) for file in files if file is not None]


def _open_session(folder: Path, config: records.BundleConfig) -> tuple[OnnxBackend | None, list[str]]:
    """Open the ONNX model, and compare its signature with config.json. Returns one line per difference."""
    if config.artifacts.onnx is None:
        return None, []
    path = config.artifacts.onnx.path
    try:
        backend = OnnxBackend(folder / path, providers=config.providers, threads=None)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: does not load)
        return None, [f"{path} does not load: {_format_error(error, folder)}"]
    problems = []
    for kind, specs, tensors in (
        ("inputs", config.inputs, backend.inputs),
        ("outputs", config.outputs, backend.outputs),
    ):
        names, expected = [name for name, _, _ in tensors], [spec.name for spec in specs]
        if names != expected:
            problems.append(f"{path} has the {kind} {names}, and {layout.CONFIG} has {expected}")
            continue
        problems += [
            f"{path} has {name} as {dtype}{list(shape)}, and {layout.CONFIG} as {spec.dtype}{spec.shape}"
            for spec, (name, dtype, shape) in zip(specs, tensors, strict=True)
            if dtype != spec.dtype or not _shapes_agree(spec.shape, shape)
        ]
    return backend, problems


def _shapes_agree(declared: Sequence[int | str | None], actual: Sequence[int | str | None]) -> bool:
    """Return whether two shapes have the same rank, and the same dims wherever both declare one."""
    return len(declared) == len(actual) and all(
        dim == size or dim is None or (not isinstance(size, int) and not isinstance(dim, str))
        for dim, size in zip(declared, actual, strict=True)
    )


def _check_case_signatures(cases: Sequence[ReferenceCase], config: records.BundleConfig) -> list[str]:
    """Check the golden cases against the signature in config.json. Returns one line per difference."""
    problems = []
    for case in cases:
        sizes: dict[str, int] = {}
        for specs, arrays in ((config.inputs, case.inputs), (config.outputs, case.outputs)):
            if {spec.name for spec in specs} != set(arrays):
                problems.append(f"evidence: case {case.name} has {', '.join(arrays)}")
                continue
            for spec in specs:
                array = arrays[spec.name]
                dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
                shape = _resolve_dims(spec.shape, array.shape, sizes)
                if str(array.dtype) != dtype or not _shapes_agree(shape, array.shape):
                    problems.append(
                        f"evidence: case {case.name} has {spec.name} as {array.dtype}{list(array.shape)}, "
                        f"and {layout.CONFIG} as {spec.dtype}{spec.shape}"
                    )
    return problems


def _check_declared_shapes(session: OnnxBackend | None, cases: Sequence[ReferenceCase]) -> list[str]:
    """Check the output sizes that the model declares against the golden cases; config.json may leave them open."""
    problems = []
    for name, _, declared in session.outputs if session is not None else ():
        for case in cases:
            shape = case.outputs[name].shape if name in case.outputs else ()
            if any(isinstance(dim, int) and dim != size for dim, size in zip(declared, shape, strict=False)):
                problems.append(
                    f"the model declares {name} as {list(declared)}, and case {case.name} has {list(shape)}"
                )
                break
    return problems


def _resolve_dims(
    shape: Sequence[int | str | None], actual: Sequence[int], sizes: dict[str, int]
) -> list[int | str | None]:
    """Replace the named dims of a shape by sizes; the first tensor with a name adds its size to `sizes`."""
    if len(shape) != len(actual):
        return list(shape)
    return [
        sizes.setdefault(dim, size) if isinstance(dim, str) else dim for dim, size in zip(shape, actual, strict=True)
    ]


def _replay_cases(
    folder: Path, config: records.BundleConfig, session: OnnxBackend | None, cases: Sequence[ReferenceCase]
) -> tuple[dict[str, str], list[str]]:
    """Run every model on the golden cases. Returns the verdict of each backend, and notes."""
    verdicts, notes = {}, []

    def record(name: str, result: ParityResult) -> None:
        verdicts[name] = "pass" if result.passed else "fail"
        if result.reason:
            notes.append(f"{name}: {result.reason}")

    if session is None:
        verdicts["onnx"] = "not-checked"
        notes.append("onnx: not in this bundle")
    else:
        record("onnx", check_onnx_session(session, cases, folder))
        session.close()  # two models at once would take twice the memory
        notes += [f"onnx: not compared on {provider}" for provider in describe_missing_providers(config.providers)]
    fallbacks = {"torchscript": config.artifacts.torchscript, "torch-export": config.artifacts.torch_export}
    for name, artifact in fallbacks.items():
        result = None if artifact is None else _replay_fallback(folder, config, artifact, cases)
        if result is not None:
            record(name, result)
        elif artifact is not None or name in _BACKENDS:
            verdicts[name] = "not-checked"
            notes.append(f"{name}: {_explain_absence(config, name) if artifact is None else 'torch is not installed'}")
    return verdicts, notes


def _explain_absence(config: records.BundleConfig, name: str) -> str:
    reasons = [record.reason for backend, record in config.left_out.items() if backend == name]
    return ": ".join(["not in this bundle", *reasons])


def _replay_fallback(
    folder: Path,
    config: records.BundleConfig,
    artifact: records.TorchScriptArtifact | records.ExportedProgramArtifact,
    cases: Sequence[ReferenceCase],
) -> ParityResult | None:
    """Run a fallback on the golden cases; return None if torch is not installed."""
    path, outputs = folder / artifact.path, [spec.name for spec in config.outputs]
    inputs = [(spec.name, spec.dtype) for spec in config.inputs]
    try:
        if isinstance(artifact, records.ExportedProgramArtifact):
            return check_exported_program(path, cases, inputs=inputs, outputs=outputs)
        optimize = artifact.optimize_for_inference
        return check_torchscript(path, cases, inputs=inputs, outputs=outputs, optimize=optimize)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None


def _format_error(error: Exception, folder: Path) -> str:
    """Return the text of a library's error on one line, with paths relative to the bundle's folder."""
    return " ".join(str(error).replace(f"{folder}{os.sep}", "").split())[:400]
