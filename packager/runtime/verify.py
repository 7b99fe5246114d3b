"""Verify that a bundle's files are intact and well formed, and that it computes what PyTorch computed.

The checks run in this order and stop at the first that fails: a file with a wrong digest is never parsed.
PyTorch itself is not needed, because the evidence contains its outputs. Whatever cannot be checked, such as
TorchScript without torch, is reported as not-checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from packager.bundle import layout, records
from packager.bundle.config import list_artifacts
from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
from packager.bundle.files import BundleFiles, open_bundle
from packager.bundle.fingerprint import Integrity, check_fingerprint_syntax
from packager.bundle.seal import MAX_RECORD_BYTES, check_bundle
from packager.common.strict_json import parse_strict_json
from packager.errors import IntegrityFailed, PackagerError, escape_unprintable
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.provenance import documents
from packager.runtime.bundled_onnx import open_bundled_onnx
from packager.runtime.check import check_exported_program, check_onnx_session, check_torchscript
from packager.runtime.onnx_backend import OnnxBackend, describe_missing_providers


@dataclass(frozen=True)
class VerifyReport:
    """The result of verifying a bundle.

    - `integrity`: the differences between the files and SHA256SUMS.
    - `structure`: one line for each problem in the records.
    - `parity`: pass, fail or not-checked for each backend; `notes` say why.
    - `rebuild`: the first difference of each file from a rebuilt bundle; empty if the bytes are the same.
    """

    fingerprint: str
    integrity: Integrity
    structure: tuple[str, ...]
    parity: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())
    rebuild: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Return whether the bundle passes: intact, well formed, no failed parity, and rebuilt with the same bytes."""
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
        }


Record = TypeVar("Record", bound=pydantic.BaseModel)

_BACKENDS = ("onnx", "torchscript")  # and torch-export, in a bundle with an exported program
_MALFORMED = "parity: not checked, because the bundle is malformed"


def verify(bundle: str | Path, *, fingerprint: str | None = None, parity: bool = True) -> VerifyReport:
    """Verify a bundle, given as a folder or an archive.

    `fingerprint` is the `h1:…` that the bundle must have; None accepts any. With `parity=False` the models are
    not run. Raises `NotABundle`, `ArchiveRefused` or `BundleSchemaUnknown` if there is no bundle to verify,
    `IntegrityFailed` if the archive or its config.json is damaged, and `FingerprintMalformed`.
    """
    check_fingerprint_syntax(fingerprint)
    with open_bundle(bundle) as files:
        return _verify_files(files, fingerprint, parity)


def verify_staged(folder: Path, sha256: Callable[[Path], str]) -> VerifyReport:
    """Verify the folder of a bundle that was just written, without parity; `sha256` knows the digests of its files."""
    with open_bundle(folder) as files:
        return _verify_files(files, None, False, lambda path: sha256(folder / path))


def _verify_files(
    files: BundleFiles, fingerprint: str | None, parity: bool, sha256: Callable[[str], str] | None = None
) -> VerifyReport:
    checked = check_bundle(files, models=parity, evidence=True, sha256=sha256)
    seal, raw_config = checked.seal, checked.config
    backends = [*_BACKENDS, *(["torch-export"] if _has_exported_program(raw_config) else [])]
    not_checked, failed = dict.fromkeys(backends, "not-checked"), dict.fromkeys(backends, "fail")

    def report(problems: Sequence[str], verdicts: Mapping[str, str], *notes: str) -> VerifyReport:
        return VerifyReport(seal.fingerprint, seal.integrity, tuple(problems), verdicts, notes)

    problems = list(seal.problems)
    if fingerprint is not None and fingerprint != seal.fingerprint:
        problems.append(f"the fingerprint is {seal.fingerprint}, expected {fingerprint}")
    if not seal.integrity.is_intact or problems:
        return report(problems, not_checked, "parity: not checked, because the files or their fingerprint are wrong")
    if raw_config is None or checked.config_problem:
        return report([str(checked.config_problem)], not_checked, _MALFORMED)
    config, problems = _check_structure(files, raw_config, seal.sums)
    if config is None or problems:
        return report(problems, not_checked, _MALFORMED)
    if not parity:
        return report((), not_checked, "parity: not requested")
    session, problems = _open_session(files, config)
    try:
        cases = parse_reference_cases(files.read(layout.PARITY), files.read(layout.GOLDEN))
    except EvidenceMalformed as error:
        return report(problems, failed, f"evidence: {error}")
    problems += _check_case_signatures(cases, config) or _check_declared_shapes(session, cases)
    if problems:
        return report(problems, not_checked, _MALFORMED)
    verdicts, notes = _replay_cases(files, config, session, cases)
    return report((), verdicts, *notes)


def _has_exported_program(raw_config: Mapping[str, Any] | None) -> bool:
    artifacts = raw_config.get("artifacts") if raw_config is not None else None
    return isinstance(artifacts, dict) and artifacts.get("torch-export") is not None


def _check_structure(
    files: BundleFiles, raw_config: Mapping[str, Any], sums: Mapping[str, str]
) -> tuple[records.BundleConfig | None, list[str]]:
    """Check the records against their models, and against the files that they name.

    Returns config.json as its model, or None if a record does not fit its model, and one line per problem.
    """
    try:
        config = records.BundleConfig.model_validate(raw_config)
        parity = _read_record(files, layout.PARITY, records.ParityRecord)
        build = _read_record(files, layout.BUILD, records.BuildRecord)
    except (IntegrityFailed, ValueError, RecursionError) as error:
        return None, [_format_error(error)]
    artifacts = list_artifacts(raw_config)
    problems = [
        f"{layout.CONFIG} and {layout.SUMS} have different digests for {path}"
        for path, sha256 in artifacts
        if sums.get(path) != sha256
    ]
    if not artifacts:
        problems.append(f"{layout.CONFIG} names no artifact")
    expected = {layout.CONFIG, layout.README, layout.GOLDEN, layout.PARITY, layout.BUILD, *documents.PATHS}
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
    if not problems:  # else the documents would be computed from records that are wrong themselves
        problems = [
            f"{path} does not agree with the records"
            for path, content in documents.make_documents(config, parity, build, sums).items()
            if hashlib.sha256(content).hexdigest() != sums[path]
        ]
    return config, problems


def _read_record(files: BundleFiles, path: str, model: type[Record]) -> Record:
    """Read a record of the evidence. Raises ValueError (pydantic's is one), RecursionError or `IntegrityFailed`."""
    content = files.read(path, MAX_RECORD_BYTES)
    parse_strict_json(content)
    return model.model_validate_json(content)


def _open_session(files: BundleFiles, config: records.BundleConfig) -> tuple[OnnxBackend | None, list[str]]:
    """Open the ONNX model, and compare its signature with config.json. Returns one line per difference."""
    if config.artifacts.onnx is None:
        return None, []
    path = config.artifacts.onnx.path
    try:
        artifact = config.artifacts.onnx.model_dump()
        backend = open_bundled_onnx(files, artifact, providers=config.providers, threads=None)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: does not load)
        return None, [f"{path} does not load: {_format_error(error)}"]
    finally:
        files.release(path)
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
    files: BundleFiles, config: records.BundleConfig, session: OnnxBackend | None, cases: Sequence[ReferenceCase]
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
        record("onnx", check_onnx_session(session, cases))
        session.close()  # two models at once would take twice the memory
        notes += [f"onnx: not compared on {provider}" for provider in describe_missing_providers(config.providers)]
    fallbacks = {"torchscript": config.artifacts.torchscript, "torch-export": config.artifacts.torch_export}
    for name, artifact in fallbacks.items():
        result = None if artifact is None else _replay_fallback(files, config, artifact, cases)
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
    files: BundleFiles,
    config: records.BundleConfig,
    artifact: records.TorchScriptArtifact | records.ExportedProgramArtifact,
    cases: Sequence[ReferenceCase],
) -> ParityResult | None:
    """Run a fallback on the golden cases; return None if torch is not installed."""
    outputs = [spec.name for spec in config.outputs]
    inputs = [(spec.name, spec.dtype) for spec in config.inputs]
    try:
        if isinstance(artifact, records.ExportedProgramArtifact):
            return check_exported_program(files.read(artifact.path), cases, inputs=inputs, outputs=outputs)
        optimize = artifact.optimize_for_inference
        return check_torchscript(files.read(artifact.path), cases, inputs=inputs, outputs=outputs, optimize=optimize)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None


def _format_error(error: Exception) -> str:
    """Return the text of a library's error on one line."""
    text = error.why if isinstance(error, PackagerError) else str(error)
    return escape_unprintable(" ".join(str(text).split())[:400])
