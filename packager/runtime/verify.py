"""Is this bundle whole, is it well formed, and does it compute what PyTorch computed?

The three questions are asked in this order, and an answer of no to one leaves the next unasked: a
file whose digest is wrong is never parsed. PyTorch is not needed: its outputs travel in the
evidence. What could not be checked, as TorchScript without torch, is said to be not-checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from packager.bundle import layout, records
from packager.bundle.archive import open_as_folder
from packager.bundle.evidence import EvidenceMalformed, read_reference_cases
from packager.bundle.fingerprint import Integrity, SumsMalformed, check_fingerprint_syntax, check_integrity, parse_sums
from packager.bundle.fingerprint import compute_fingerprint as fingerprint_of
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.runtime.check import check_onnx_session, check_torchscript
from packager.runtime.loader import read_config
from packager.runtime.onnx_backend import OnnxBackend, describe_missing_providers


@dataclass(frozen=True)
class VerifyReport:
    """What verification found. `parity` is pass, fail or not-checked for each backend; `notes` say why.

    `rebuild` has the first difference of each file from a new build, empty where the bytes are the same.
    """

    fingerprint: str
    integrity: Integrity
    structure: tuple[str, ...]
    parity: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())
    rebuild: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found against the bundle."""
        same = all(not difference or layout.is_machine_dependent(path) for path, difference in self.rebuild.items())
        return self.integrity.is_intact and not self.structure and "fail" not in self.parity.values() and same

    def with_rebuild(self, rebuild: Mapping[str, str]) -> VerifyReport:
        """This report with what a new build gave."""
        differing = [path for path, difference in rebuild.items() if difference]
        found = replace(self, rebuild=rebuild)
        if not differing or not all(layout.is_machine_dependent(path) for path in differing):
            return found
        why = "what was measured differs alone, as it does on another kind of machine"
        return replace(found, notes=(*self.notes, f"rebuilt: {why}"))

    def as_json(self) -> dict[str, object]:
        """The object that `package verify --json` prints."""
        found = self.integrity
        return {
            "ok": self.ok,
            "fingerprint": self.fingerprint,
            "integrity": {
                "missing": list(found.missing), "extra": list(found.extra), "changed": list(found.changed)
            },
            "structure": list(self.structure),
            "parity": dict(self.parity),
            "notes": list(self.notes),
            **({"rebuild": dict(self.rebuild)} if self.rebuild else {}),
        }  # fmt: skip


_NOT_CHECKED = {"onnx": "not-checked", "torchscript": "not-checked"}
_FAILED = {"onnx": "fail", "torchscript": "fail"}


def verify(bundle: str | Path, *, fingerprint: str | None = None, parity: bool = True) -> VerifyReport:
    """Verify a bundle, folder or archive; `fingerprint` is the one it must have, `parity=False` omits the replay.

    Raises `NotABundle`, `ArchiveRefused` or `BundleSchemaUnknown` where there is nothing to verify,
    `IntegrityFailed` where an archive or a config.json was damaged, and `FingerprintMalformed`.
    """
    check_fingerprint_syntax(fingerprint)
    with open_as_folder(Path(bundle)) as folder:
        return _verify_folder(folder, fingerprint, parity)


def _verify_folder(folder: Path, fingerprint: str | None, parity: bool) -> VerifyReport:
    config = read_config(folder)
    seal, found, problems = _check_seal(folder, fingerprint)
    if not found.is_intact or problems:
        return VerifyReport(seal, found, tuple(problems), _NOT_CHECKED, ("parity: not replayed on files in doubt",))
    problems = check_structure(folder, config)
    if problems or not parity:
        why = "not replayed on a malformed bundle" if problems else "not asked for"
        return VerifyReport(seal, found, tuple(problems), _NOT_CHECKED, (f"parity: {why}",))
    record = records.BundleConfig.model_validate(config)
    session, problems = _open_session(folder, record)
    try:
        expectations = read_reference_cases(folder)
    except EvidenceMalformed as error:
        return VerifyReport(seal, found, tuple(problems), _FAILED, (f"evidence: {error}",))
    misfits = _check_case_signatures(expectations, record) or _check_declared_shapes(session, expectations)
    if problems or misfits:
        why = "parity: not replayed on a malformed bundle"
        return VerifyReport(seal, found, (*problems, *misfits), _NOT_CHECKED, (why,))
    verdicts, notes = _replay_cases(folder, config, session, expectations)
    return VerifyReport(seal, found, (), verdicts, tuple(notes))


def _check_seal(folder: Path, expected: str | None) -> tuple[str, Integrity, list[str]]:
    """The fingerprint computed anew, how the files differ from the sums, and what is wrong with the seal."""
    try:
        text = (folder / layout.SUMS).read_bytes().decode()
        sums = parse_sums(text)
    except (OSError, UnicodeDecodeError, SumsMalformed) as error:
        return "", Integrity(changed=(layout.SUMS,)), [f"{layout.SUMS}: {error}"]
    seal, found = fingerprint_of(text), check_integrity(folder, sums)
    problems = []
    try:
        written = _read_regular(folder / layout.FINGERPRINT).decode()
    except FileNotFoundError:
        found = replace(found, missing=(layout.FINGERPRINT, *found.missing))
    except (OSError, UnicodeDecodeError) as error:
        found = replace(found, changed=(layout.FINGERPRINT, *found.changed))
        problems.append(f"{layout.FINGERPRINT} is unreadable ({type(error).__name__}), and the files make {seal}")
    else:
        if written != seal + "\n":
            found = replace(found, changed=(layout.FINGERPRINT, *found.changed))
            problems.append(f"{layout.FINGERPRINT} says {written.strip()}, and the files make {seal}")
    if expected is not None and expected != seal:
        problems.append(f"the fingerprint is {seal}, and {expected} was asked for")
    return seal, found, problems


def _read_regular(path: Path) -> bytes:
    """The content of a file; a pipe or a device, which might never end, is an OSError."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return path.read_bytes()


def check_structure(folder: Path, raw_config: Mapping[str, Any]) -> list[str]:
    """What is malformed: records against their models, and the records against the files they speak of."""
    try:
        config = records.BundleConfig.model_validate(raw_config)
        record = records.ParityRecord.model_validate_json((folder / layout.PARITY).read_bytes())
        records.BuildRecord.model_validate_json((folder / layout.BUILD).read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        return [_format_error(error, folder)]
    sums = parse_sums((folder / layout.SUMS).read_bytes().decode())
    problems = _check_artifacts_listed(config, sums)
    expected = {layout.CONFIG, layout.README, layout.GOLDEN, layout.PARITY, layout.BUILD}
    expected |= {f"{layout.ASSETS}/{asset}" for asset in config.assets}
    expected |= {path for path, _ in _artifact_files(config)}
    problems += [f"{path} is missing from {layout.SUMS}" for path in sorted(expected - set(sums))]
    problems += [f"{path} belongs to no bundle" for path in sorted(set(sums) - expected)]
    for name, verdict in (("onnx", config.parity.onnx), ("torchscript", config.parity.torchscript)):
        backend = record.backends.get(name)  # type: ignore[call-overload]  # the names are those literals
        if backend is None or backend.verdict != verdict:
            problems.append(f"{layout.CONFIG} says {name}: {verdict}, and {layout.PARITY} does not")
    return problems


def _artifact_files(config: records.BundleConfig) -> list[tuple[str, str]]:
    onnx, script = config.artifacts.onnx, config.artifacts.torchscript
    found = [(one.path, one.sha256) for one in (onnx, script) if one is not None]
    return found + ([(onnx.data.path, onnx.data.sha256)] if onnx is not None and onnx.data is not None else [])


def _check_artifacts_listed(config: records.BundleConfig, sums: Mapping[str, str]) -> list[str]:
    files = _artifact_files(config)
    problems = [
        f"{layout.CONFIG} gives {path} another digest than {layout.SUMS}"
        for path, sha256 in files
        if sums.get(path) != sha256
    ]
    return problems if files else [*problems, f"{layout.CONFIG} names no artifact"]


def _open_session(folder: Path, config: records.BundleConfig) -> tuple[OnnxBackend | None, list[str]]:
    """The ONNX model, open, and where its signature is not the one of config.json."""
    if config.artifacts.onnx is None:
        return None, []
    path = config.artifacts.onnx.path
    try:
        backend = OnnxBackend(folder / path, providers=config.providers, threads=None)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: does not load)
        return None, [f"{path} does not load: {_format_error(error, folder)}"]
    problems = []
    for what, ours, theirs in (("inputs", config.inputs, backend.inputs), ("outputs", config.outputs, backend.outputs)):
        if [one.name for one in ours] != [name for name, _, _ in theirs]:
            names = [name for name, _, _ in theirs]
            problems.append(f"{path} has the {what} {names}, and {layout.CONFIG} others")
            continue
        problems += [
            f"{path} has {name} as {dtype}{list(shape)}, and {layout.CONFIG} as {one.dtype}{one.shape}"
            for one, (name, dtype, shape) in zip(ours, theirs, strict=True)
            if dtype != one.dtype or not _shapes_agree(one.shape, shape)
        ]
    return backend, problems


def _shapes_agree(ours: Sequence[int | str | None], theirs: Sequence[int | str | None]) -> bool:
    """Whether every dim that both know is the same."""
    return len(ours) == len(theirs) and all(
        one == other or one is None or (not isinstance(other, int) and not isinstance(one, str))
        for one, other in zip(ours, theirs, strict=True)
    )


def _check_case_signatures(expectations: Sequence[ReferenceCase], config: records.BundleConfig) -> list[str]:
    """Where the cases that travel are not of the signature of config.json."""
    problems = []
    for case in expectations:
        sizes: dict[str, int] = {}
        for ours, arrays in ((config.inputs, case.inputs), (config.outputs, case.outputs)):
            if {one.name for one in ours} != set(arrays):
                problems.append(f"evidence: case {case.name} has {', '.join(arrays)}")
                continue
            for one in ours:
                array = arrays[one.name]
                dtype = "float32" if one.dtype == "bfloat16" else one.dtype
                if str(array.dtype) != dtype or not _shapes_agree(
                    _resolve_dims(one.shape, array.shape, sizes), array.shape
                ):
                    problems.append(
                        f"evidence: case {case.name} has {one.name} as {array.dtype}{list(array.shape)}, "
                        f"and {layout.CONFIG} as {one.dtype}{one.shape}"
                    )
    return problems


def _check_declared_shapes(session: OnnxBackend | None, expectations: Sequence[ReferenceCase]) -> list[str]:
    """Where the model declares a size that an output of the evidence has not: config.json may leave it open."""
    problems = []
    for name, _, shape in session.outputs if session is not None else ():
        for case in expectations:
            found = case.outputs[name].shape if name in case.outputs else ()
            if any(isinstance(one, int) and one != size for one, size in zip(shape, found, strict=False)):
                problems.append(f"the model declares {name} as {list(shape)}, and case {case.name} has {list(found)}")
                break
    return problems


def _resolve_dims(
    shape: Sequence[int | str | None], found: Sequence[int], sizes: dict[str, int]
) -> list[int | str | None]:
    """A shape with its named dims filled in: what the first tensor that has a name shows counts for all others."""
    if len(shape) != len(found):
        return list(shape)
    return [
        sizes.setdefault(dim, size) if isinstance(dim, str) else dim for dim, size in zip(shape, found, strict=True)
    ]


def _replay_cases(
    folder: Path, config: Mapping[str, Any], session: OnnxBackend | None, expectations: Sequence[ReferenceCase]
) -> tuple[dict[str, str], list[str]]:
    verdicts, notes = dict(_NOT_CHECKED), []
    artifacts = config["artifacts"]
    if session is None:
        notes.append("onnx: the bundle has none")
    else:
        _record_verdict("onnx", check_onnx_session(session, expectations, folder), verdicts, notes)
        notes += [f"onnx: not replayed on {one}" for one in describe_missing_providers(config["providers"])]
    if artifacts["torchscript"] is None:
        notes.append("torchscript: the bundle has none")
        return verdicts, notes
    try:
        judged = check_torchscript(
            folder / artifacts["torchscript"]["path"],
            expectations,
            inputs=[(one["name"], one["dtype"]) for one in config["inputs"]],
            outputs=[one["name"] for one in config["outputs"]],
            optimize=artifacts["torchscript"]["optimize_for_inference"],
        )
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        notes.append("torchscript: torch is not installed here")
    else:
        _record_verdict("torchscript", judged, verdicts, notes)
    return verdicts, notes


def _record_verdict(name: str, judgement: ParityResult, verdicts: dict[str, str], notes: list[str]) -> None:
    verdicts[name] = "pass" if judgement.passed else "fail"
    if judgement.reason:
        notes.append(f"{name}: {judgement.reason}")


def _format_error(error: Exception, folder: Path) -> str:
    """A foreign error's text, in which a file of the bundle has its path inside it."""
    return " ".join(str(error).replace(f"{folder}{os.sep}", "").split())[:400]
