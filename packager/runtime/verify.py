"""Verify that a bundle's files are intact and well formed, and that it computes what PyTorch computed.

The checks run in this order and stop at the first that fails: a file with a wrong digest is never parsed.
PyTorch itself is not needed, because the evidence contains its outputs. Whatever cannot be checked, such as
TorchScript without torch, is reported as not-checked.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from packager.bundle import layout, records
from packager.bundle.config import list_artifacts
from packager.bundle.files import BundleFiles, open_bundle
from packager.bundle.fingerprint import Integrity, check_fingerprint_syntax
from packager.bundle.seal import MAX_RECORD_BYTES, Seal, check_bundle, read_signature
from packager.common.json_schema import find_schema_problem
from packager.common.strict_json import parse_strict_json
from packager.errors import IntegrityFailed, PackagerError, escape_unprintable
from packager.provenance import documents
from packager.runtime.replay import Limits, ReplayResult, replay
from packager.runtime.replay_messages import ReplayRequest
from packager.runtime.trust import trusts_program
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

    def with_executable(self, problems: Sequence[str], notes: Sequence[str]) -> VerifyReport:
        """Return this report with what was found about the executable that the bundle is in."""
        if problems:  # nothing is run then
            notes = ("parity: not checked, because the executable is wrong", *notes)
        kept = [note for note in self.notes if not problems or note != _NOT_REQUESTED]
        return replace(self, structure=(*problems, *self.structure), notes=(*kept, *notes))

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


Record = TypeVar("Record", bound=pydantic.BaseModel)

_BACKENDS = ("onnx", "torchscript")  # and torch-export, in a bundle with an exported program
_NOT_REQUESTED = "parity: not requested"
_PARTS_NOT_CHECKED = "executable: its native program and its library were not compared; `package verify FILE` does that"
_MALFORMED = "parity: not checked, because the bundle is malformed"
_UNTRUSTED = "structure and parity: not checked, because the signature is wrong"
_NOT_TRUSTED = (
    "not run: it is a program, and the bundle is neither pinned with --fingerprint, --public-key or "
    "--certificate-chain nor trusted with --trust-program"
)
_DEFAULT_SECONDS, _SECONDS_PER_MEGABYTE = 300, 0.1
_DEFAULT_MEGABYTES, _MEGABYTES_PER_MEGABYTE = 2000, 6


@dataclass(frozen=True)
class Demands:
    """The fingerprint that a bundle must have, and who must have signed it; None accepts any."""

    fingerprint: str | None = None
    trust: Trust | None = None


@dataclass(frozen=True)
class ParityOptions:
    """Whether to replay the evidence, with the programs of any bundle or not, and within which limits.

    A limit that is None takes the default.
    """

    replay: bool
    trust_program: bool = False
    seconds: float | None = None
    megabytes: float | None = None


def verify(
    bundle: str | Path,
    *,
    fingerprint: str | None = None,
    public_key: str | Path | bytes | None = None,
    certificate_chain: str | Path | Sequence[str | Path] = (),
    trust_program: bool = False,
    parity: bool = True,
    time_limit: float | None = None,
    memory_limit: float | None = None,
) -> VerifyReport:
    """Verify a bundle, given as a folder, an archive or an executable.

    Of an executable, only the bundle in it is verified, which the report's notes say.

    - `fingerprint`: the `h1:…` that the bundle must have; None accepts any.
    - `public_key`: the key that must have signed the bundle, a PEM file or PEM as bytes.
    - `certificate_chain`: PEM files with certificates that must vouch for the signer's, the root among them.
    - `trust_program`: trust whoever made the bundle, and run its TorchScript model or exported program too: it can
      read and write files as you can. Without it, they run only if `fingerprint`, `public_key` or
      `certificate_chain` pins the bundle.
    - `parity`: run the models on the golden cases, in a child process.
    - `time_limit`: seconds that the models may take together; None means 300, and 0.1 more per MB of the bundle.
    - `memory_limit`: MB that they may take; None means 2,000, and six times the size of the bundle.

    Raises `NotABundle`, `ArchiveRefused` or `BundleSchemaUnknown` if there is no bundle to verify, `IntegrityFailed`
    if the archive or its config.json is damaged, `FingerprintMalformed`, `KeyUnusable`, and `ExtraMissing` if a
    signature is to be checked and `cryptography` is not installed.
    """
    demands = read_demands(fingerprint, public_key, certificate_chain)
    with open_bundle(bundle) as files:
        report = verify_files(files, demands, ParityOptions(parity, trust_program, time_limit, memory_limit))
        return report if files.trailer is None else replace(report, notes=(*report.notes, _PARTS_NOT_CHECKED))


def read_demands(
    fingerprint: str | None,
    public_key: str | Path | bytes | None,
    certificate_chain: str | Path | Sequence[str | Path],
) -> Demands:
    """Return what `verify` was given about the bundle. Raises `FingerprintMalformed`, `KeyUnusable`, `ExtraMissing`."""
    check_fingerprint_syntax(fingerprint)
    return Demands(fingerprint, read_trust(public_key, certificate_chain))


def verify_staged(folder: Path, sha256: Callable[[Path], str]) -> VerifyReport:
    """Verify the folder of a bundle that was just written, without parity; `sha256` knows the digests of its files."""
    with open_bundle(folder) as files:
        return verify_files(files, Demands(), ParityOptions(False), lambda path: sha256(folder / path))


def verify_files(
    files: BundleFiles,
    demands: Demands,
    options: ParityOptions,
    sha256: Callable[[str], str] | None = None,
) -> VerifyReport:
    """Verify the bundle in open files; `sha256` knows the digests of some. Raises as `verify`."""
    checked = check_bundle(files, models=options.replay, evidence=True, in_child=True, sha256=sha256)
    seal, raw_config = checked.seal, checked.config
    signature = _check_signature(files, seal, demands.trust)
    backends = [*_BACKENDS, *(["torch-export"] if _has_exported_program(raw_config) else [])]
    not_checked = dict.fromkeys(backends, "not-checked")

    def report(problems: Sequence[str], verdicts: Mapping[str, str], *notes: str) -> VerifyReport:
        if signature is not None and signature.verdict == "not-checked" and demands.trust is None:
            notes += ("signature: not checked, because no public key and no certificates were given",)
        return VerifyReport(seal.fingerprint, seal.integrity, tuple(problems), verdicts, notes, signature=signature)

    problems = list(seal.problems)
    if demands.fingerprint is not None and demands.fingerprint != seal.fingerprint:
        problems.append(f"the fingerprint is {seal.fingerprint}, expected {demands.fingerprint}")
    if not seal.integrity.is_intact or problems:
        return report(problems, not_checked, "parity: not checked, because the files or their fingerprint are wrong")
    if signature is not None and signature.error is not None:
        return report((), not_checked, f"signature: {signature.error.hint}", _UNTRUSTED)
    if raw_config is None or checked.config_problem:
        return report([str(checked.config_problem)], not_checked, _MALFORMED)
    problems = check_structure(files, raw_config, seal.sums)
    if sha256 is None:  # else the build computed the digests of the pieces from the file that is there
        problems += _check_pieces(files, raw_config)
    if problems:
        return report(problems, not_checked, _MALFORMED)
    if not options.replay:
        return report((), not_checked, _NOT_REQUESTED)
    signer = signature.signer if signature is not None else None
    trusted = trusts_program(fingerprint=demands.fingerprint, signer=signer, trust_program=options.trust_program)
    result = _replay(files, raw_config, options, trusted=trusted)
    if result.answer.evidence_problem:
        note = f"evidence: {result.answer.evidence_problem}"
        return report(result.answer.problems, dict.fromkeys(backends, "fail"), note)
    if result.answer.problems:
        return report(result.answer.problems, not_checked, _MALFORMED)
    verdicts, notes = _judge(raw_config, backends, result, trusted=trusted)
    return report((), verdicts, *notes)


def _check_signature(files: BundleFiles, seal: Seal, trust: Trust | None) -> SignatureReport | None:
    """Check model.sig against the seal if that is intact; otherwise there is nothing that it could be checked with."""
    if not seal.is_intact:
        expected = trust is not None or layout.SIGNATURE in files
        return SignatureReport("not-checked") if expected else None
    return report_signature(read_signature(files), seal.sums, seal.fingerprint, trust, str(files.path))


def _has_exported_program(raw_config: Mapping[str, Any] | None) -> bool:
    artifacts = raw_config.get("artifacts") if raw_config is not None else None
    return isinstance(artifacts, dict) and artifacts.get("torch-export") is not None


def check_structure(files: BundleFiles, raw_config: Mapping[str, Any], sums: Mapping[str, str]) -> list[str]:
    """Check the records against their models, and against the files that they name. Returns one line per problem."""
    try:
        config = records.BundleConfig.model_validate(raw_config)
        parity = _read_record(files, layout.PARITY, records.ParityRecord)
        build = _read_record(files, layout.BUILD, records.BuildRecord)
    except (IntegrityFailed, ValueError, RecursionError) as error:
        return [_format_error(error)]
    artifacts = list_artifacts(raw_config)
    problems = [
        f"{layout.CONFIG} and {layout.SUMS} have different digests for {path}"
        for path, sha256 in artifacts
        if sums.get(path) != sha256
    ]
    if not artifacts:
        problems.append(f"{layout.CONFIG} names no artifact")
    expected = {layout.CONFIG, layout.README, layout.GOLDEN, layout.PARITY, layout.BUILD, *layout.DOCUMENTS}
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
    return problems


def _check_pieces(files: BundleFiles, config: Mapping[str, Any]) -> list[str]:
    """Check the digests of the pieces of external weights, which loading the bundle relies on."""
    data = (config["artifacts"]["onnx"] or {}).get("data") or {}
    if "pieces" not in data or files.has_pieces(data["path"], data["pieces"]):
        return []
    return [f"{layout.CONFIG} has different digests for the pieces of {data['path']}"]


def _read_record(files: BundleFiles, path: str, model: type[Record]) -> Record:
    """Read a record of the evidence. Raises ValueError (pydantic's is one), RecursionError or `IntegrityFailed`.

    pydantic collects all errors, a gigabyte for a megabyte of wrong values: a record must fit its schema before.
    """
    content = files.read(path, MAX_RECORD_BYTES)
    if problem := find_schema_problem(parse_strict_json(content), _generate_schema(model)):
        raise ValueError(f"{path} is malformed: {problem}")
    return model.model_validate_json(content)


@functools.cache
def _generate_schema(model: type[Record]) -> dict[str, Any]:
    return model.model_json_schema()


def _replay(files: BundleFiles, config: Mapping[str, Any], options: ParityOptions, *, trusted: bool) -> ReplayResult:
    """Run the models in a child: ONNX, and the programs if they are trusted."""
    artifacts = {
        backend: artifact if backend == "onnx" or trusted else None for backend, artifact in config["artifacts"].items()
    }
    config = {**config, "artifacts": artifacts}
    paths = [layout.PARITY, layout.GOLDEN, *(path for path, _ in list_artifacts(config))]
    mapped = ((artifacts["onnx"] or {}).get("data") or {}).get("path")
    request = ReplayRequest(
        config,
        {path: files.locate(path) for path in paths},
        {path: files.sha256(path) for path in paths if path != mapped},
        os.getpid(),
    )
    size = sum(files.sizes.values()) / 1e6
    seconds, megabytes = options.seconds, options.megabytes
    seconds = _DEFAULT_SECONDS + _SECONDS_PER_MEGABYTE * size if seconds is None else seconds
    megabytes = _DEFAULT_MEGABYTES + _MEGABYTES_PER_MEGABYTE * size if megabytes is None else megabytes
    return replay(request, Limits(seconds, int(megabytes * 1e6)))


def _judge(
    config: Mapping[str, Any], backends: Sequence[str], result: ReplayResult, *, trusted: bool
) -> tuple[dict[str, str], list[str]]:
    """Return the verdict of each backend, and notes.

    A replay that ended early fails the backend that ran then, or all of them if none did.
    """
    verdicts, notes = {}, []
    answered = result.answer.backends
    for backend in backends:
        if config["artifacts"].get(backend) is None:
            verdict, reasons = "not-checked", [f"{backend}: {_explain_absence(config, backend)}"]
        elif backend != "onnx" and not trusted:
            verdict, reasons = "not-checked", [f"{backend}: {_NOT_TRUSTED}"]
        elif backend in answered:
            verdict, reasons = answered[backend].verdict, list(answered[backend].notes)
        elif result.subject == backend or result.subject not in backends:
            verdict, reasons = "fail", [f"{backend}: {result.failure or 'the replay gave no verdict'}"]
        else:
            verdict, reasons = "not-checked", [f"{backend}: not run, because the replay had ended"]
        verdicts[backend] = verdict
        notes += reasons
    return verdicts, notes


def _explain_absence(config: Mapping[str, Any], backend: str) -> str:
    left_out = config.get("left_out", {}).get(backend)
    return "not in this bundle" + (f": {left_out['reason']}" if left_out else "")


def _format_error(error: Exception) -> str:
    """Return the text of a library's error on one line."""
    text = error.why if isinstance(error, PackagerError) else str(error)
    return escape_unprintable(" ".join(str(text).split())[:400])
