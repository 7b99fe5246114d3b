"""Stage results → the files of the bundle: evidence, config.json and README, sealed and verified."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packager.builder import toolchain
from packager.builder.results import FallbackResult, LeftOut, StageResults, describe_left_out
from packager.bundle import evidence, layout, readme, records
from packager.bundle.writer import BundleWriter
from packager.parity.cases.dim_sizes import get_batch_dim
from packager.parity.cases.sample_grid import Grid, InputCase
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.tolerances import NOISE_MULTIPLE
from packager.parity.numerics.verdict import OutputErrors, ParityResult, ReferenceCase, WorstElement
from packager.project.manifest import ExplicitTolerance, Project
from packager.provenance.documents import make_documents
from packager.runtime.onnx_backend import describe_missing_providers
from packager.runtime.verify import verify_staged


@dataclass(frozen=True)
class BundleContents:
    """Everything that goes into a bundle. `assets` are paths by name."""

    project: Project
    grid: Grid
    results: StageResults
    assets: Mapping[str, Path]


@dataclass(frozen=True)
class SealedBundle:
    """A sealed bundle: its fingerprint, config.json, the verdict of each backend, and the rows of the closing table."""

    fingerprint: str
    config: Mapping[str, Any]
    parity: Mapping[str, str]
    summary: Mapping[str, str]


def assemble_bundle(contents: BundleContents, writer: BundleWriter) -> SealedBundle:
    """Write assets, evidence, config.json and README.md beside the staged artifacts, seal the bundle, and verify it."""
    for name, path in contents.assets.items():
        writer.add_file(f"{layout.ASSETS}/{name}", path)
    result = contents.results.reference
    cases = contents.results.amended_reference.reference_cases
    golden = evidence.choose_golden_cases(cases, result.provenance.weight_bytes)
    writer.add_bytes(layout.GOLDEN, evidence.serialize_golden_cases(cases, golden))
    parity, config, build = _make_parity_record(contents, golden), _make_config(contents), _make_build_record(contents)
    writer.add_bytes(layout.PARITY, parity.to_bytes())
    writer.add_bytes(layout.BUILD, build.to_bytes())
    writer.add_bytes(layout.CONFIG, config.to_bytes())
    writer.add_bytes(layout.README, readme.render_readme(config, parity))
    for document, content in make_documents(config, parity, build, writer.digests).items():
        writer.add_bytes(document, content)
    fingerprint = writer.seal()
    report = verify_staged(writer.folder, writer.sha256)
    if not report.ok:
        raise AssertionError(f"the staged bundle does not verify: {report.integrity}, {report.structure}")
    config_json = config.model_dump(mode="json", by_alias=True)
    summary = _summarize(contents, parity, writer.folder)
    return SealedBundle(fingerprint, config_json, config.parity.model_dump(by_alias=True), summary)


def _make_config(contents: BundleContents) -> records.BundleConfig:
    manifest, results = contents.project.manifest, contents.results
    provenance = results.reference.provenance
    onnx, fallback = results.onnx.artifact, results.torchscript.artifact
    torchscript = fallback if isinstance(fallback, records.TorchScriptArtifact) else None
    exported = fallback if isinstance(fallback, records.ExportedProgramArtifact) else None
    return records.BundleConfig(
        schema_=1,
        name=manifest.name,
        version=manifest.version,
        description=manifest.description,
        license=manifest.license,
        authors=manifest.authors,
        inputs=[
            records.InputRecord(name=name, dtype=spec.dtype, shape=list(spec.shape), range=spec.range)
            for name, spec in manifest.inputs.items()
        ],
        outputs=[
            records.TensorRecord(name=spec.name, dtype=spec.dtype, shape=list(spec.shape))
            for spec in results.reference.outputs
        ],
        dims={name: records.DimRecord(min=dim.min, max=dim.max) for name, dim in manifest.dim_limits().items()},
        artifacts=records.Artifacts(onnx=onnx, torchscript=torchscript, torch_export=exported),
        left_out=_make_left_out_records(results.torchscript),
        providers=manifest.target.providers,
        assets=sorted(contents.assets),
        source=records.SourceRecord(
            manifest_sha256=contents.project.sha256,
            checkpoint_sha256=provenance.checkpoint_sha256,
            code_sha256=provenance.code_sha256,
            dtype=provenance.dtype,
            architecture=provenance.architecture,
            parameters=provenance.parameters,
            toolchain=toolchain.collect_toolchain_versions(),
        ),
        parity=records.ParityVerdicts(
            onnx="pass" if onnx else "not-checked",
            torchscript="pass" if torchscript else "not-checked",
            torch_export="pass" if exported else None,
        ),
        metadata=manifest.metadata,
    )


def _make_left_out_records(fallback: FallbackResult) -> dict[records.FallbackName, records.LeftOutRecord]:
    """Say why the bundle lacks a kind of fallback that was tried, in words that are the same on every machine."""
    if isinstance(fallback.artifact, records.TorchScriptArtifact):
        return {}
    entries_by_kind: dict[records.FallbackName, list[LeftOut]] = {}
    for entry in fallback.left_out:
        entries_by_kind.setdefault(entry.backend, []).append(entry)
    return {
        kind: records.LeftOutRecord(
            verdict="fail" if any(entry.verdict == "fail" for entry in entries) else "not-checked",
            reason=describe_left_out(entries, measured=False),
        )
        for kind, entries in entries_by_kind.items()
    }


def _make_parity_record(contents: BundleContents, golden: frozenset[str]) -> records.ParityRecord:
    results, reference = contents.results, contents.results.amended_reference
    coverage = reference.coverage
    assert coverage is not None
    return records.ParityRecord(
        schema_=1,
        verdict="pass",
        reference=results.reference.provenance.description,
        cases=[
            _make_case_record(case, expected, is_golden=case.name in golden)
            for case, expected in zip(reference.cases, reference.reference_cases, strict=True)
        ],
        not_checked=_list_unchecked(contents),
        tolerance={spec.name: _make_tolerance_record(spec, contents) for spec in results.reference.outputs},
        decisions={
            name: records.DecisionRecord.model_validate(rule, from_attributes=True)
            for name, rule in reference.reference_cases[0].decisions.items()
        },
        coverage=records.CoverageRecord.model_validate(coverage, from_attributes=True),
        backends=_make_backend_records(results),
        stages=[*results.onnx.stages, *results.torchscript.stages],
    )


def _make_case_record(case: InputCase, expected: ReferenceCase, *, is_golden: bool) -> records.CaseRecord:
    outputs = {
        name: records.CaseOutput(
            dtype=str(array.dtype),
            shape=list(array.shape),
            atol=expected.tolerances[name].atol,
            rtol=expected.tolerances[name].rtol,
        )
        for name, array in expected.outputs.items()
    }
    return records.CaseRecord(
        name=case.name, sizes=dict(case.sizes), fill=case.value_description, golden=is_golden, outputs=outputs
    )


def _list_unchecked(contents: BundleContents) -> list[str]:
    """Return a sentence for everything that the parity check does not cover."""
    specialized = contents.results.onnx.specialized.merge(contents.results.torchscript.specialized)
    if not _may_scale_sizes(contents):
        specialized = replace(specialized, rounded_size_lines=())
    return [
        *(f"the sizes {sizes}" for sizes in contents.grid.skipped_sizes),
        *contents.results.amended_reference.uncompared,
        *specialized.describe(),
        *describe_missing_providers(contents.project.manifest.target.providers),
    ]


def _may_scale_sizes(contents: BundleContents) -> bool:
    """Return whether forward() may compute with a dynamic size: one that is not just the number of rows."""
    inputs = contents.project.manifest.inputs
    batch = get_batch_dim(inputs)
    outputs = contents.results.reference.outputs
    is_inner = any(isinstance(dim, str) for spec in inputs.values() for dim in spec.shape[1:])
    return is_inner or (batch is not None and any(spec.shape[:1] != (batch,) for spec in outputs))


def _make_tolerance_record(spec: TensorSpec, contents: BundleContents) -> records.ToleranceRecord:
    explicit = contents.project.manifest.parity.tolerance
    noise = contents.results.amended_reference.noise.get(spec.name)
    if spec.dtype == "bool" or spec.dtype.startswith(("int", "uint")):
        return records.ToleranceRecord(
            kind="exact",
            noise=None,
            parts={},
            multiple=None,
            atol=0.0,
            rtol=0.0,
            why=f"{spec.dtype} must agree exactly",
        )
    if isinstance(explicit, ExplicitTolerance):
        return records.ToleranceRecord(
            kind="explicit", noise=None, parts={}, multiple=None, atol=explicit.atol, rtol=explicit.rtol,
            why=f"the manifest allows {explicit.atol:g} + {explicit.rtol:g} × |expected|",
        )  # fmt: skip
    assert noise is not None
    rtol = NOISE_MULTIPLE * noise.relative
    return records.ToleranceRecord(
        kind="measured", noise=noise.relative, parts=dict(noise.parts), multiple=NOISE_MULTIPLE, atol=None, rtol=rtol,
        why=(
            f"up to {rtol:.3g} × (|expected| + the output's scale): {NOISE_MULTIPLE} times the noise floor of this "
            f"module's {spec.dtype} arithmetic, {noise.typical:.3g} to {noise.relative:.3g} by case, measured "
            f"{noise.description}"
        ),
    )  # fmt: skip


def _make_backend_records(results: StageResults) -> dict[records.BackendName, records.BackendVerdict]:
    fallback, absent = results.torchscript, "the bundle has none"
    causes = describe_left_out([entry for entry in fallback.left_out if entry.backend == "torchscript"])
    why = f"{absent}: {causes}" if causes else absent
    onnx = _make_backend_record(results.onnx.parity, absent)
    if isinstance(fallback.artifact, records.ExportedProgramArtifact):
        exported = _make_backend_record(fallback.parity, absent)
        return {"onnx": onnx, "torchscript": _make_backend_record(None, why), "torch-export": exported}
    return {"onnx": onnx, "torchscript": _make_backend_record(fallback.parity, why)}


def _make_backend_record(parity: ParityResult | None, absence: str) -> records.BackendVerdict:
    if parity is None:
        return records.BackendVerdict(verdict="not-checked", reason=absence, outputs={}, decisions={}, worst=None)
    return records.BackendVerdict(
        verdict="pass",
        reason="",
        outputs={name: _make_errors_record(errors) for name, errors in parity.outputs.items()},
        decisions={
            name: records.AgreementRecord.model_validate(agreement, from_attributes=True)
            for name, agreement in parity.decisions.items()
        },
        worst=None if parity.worst is None else _make_worst_record(parity.worst),
    )


def _make_errors_record(errors: OutputErrors) -> records.OutputErrorsRecord:
    return records.OutputErrorsRecord(
        max_abs=errors.max_abs,
        max_rel=errors.max_rel,
        rms=errors.rms,
        cosine=errors.cosine,
        mismatched_nonfinite=errors.mismatched_nonfinite,
        of_limit=errors.error_over_limit,
        of_limit_float64=errors.error_over_limit_float64,
    )


def _make_worst_record(worst: WorstElement) -> records.WorstElementRecord:
    return records.WorstElementRecord(
        case=worst.case,
        output=worst.output,
        index=list(worst.index),
        expected=worst.expected,
        actual=worst.actual,
        of_limit=worst.error_over_limit,
    )


def _make_build_record(contents: BundleContents) -> records.BuildRecord:
    provenance, machine = contents.results.reference.provenance, contents.results.reference.machine
    weights = f"key {provenance.weights_key!r}" if provenance.weights_key else "the file itself"
    outcomes = {
        "weights": f"{weights}, prefix {provenance.prefix!r}, {provenance.parameters} parameters",
        "missing": ", ".join(provenance.missing) or "none",
        "unexpected": ", ".join(provenance.unexpected) or "none",
        "code": ", ".join(provenance.code_files) or "installed packages only",
    }
    return records.BuildRecord(
        schema_=1,
        machine=platform.machine(),
        system=platform.system(),
        python=".".join(str(number) for number in sys.version_info[:3]),
        threads=machine.threads,
        capability=machine.capability,
        toolchain_digests=toolchain.digest_toolchain(),
        steps=[records.BuildStepRecord(name=name, outcome=outcome) for name, outcome in outcomes.items()],
    )


def _summarize(contents: BundleContents, parity: records.ParityRecord, folder: Path) -> dict[str, str]:
    """Return the rows of the closing table by title."""
    manifest, onnx = contents.project.manifest, contents.results.onnx
    fallback, left_out = contents.results.torchscript.artifact, contents.results.torchscript.left_out
    rows = {"model": f"{manifest.name} {manifest.version}"}
    rows["parameters"] = f"{contents.results.reference.provenance.parameters:,}"
    if onnx.artifact is not None:
        kept = [stage for stage in onnx.stages if stage.kept and stage.nodes_before]
        exporter = next(stage.name for stage in kept if stage.name.startswith("export"))
        paths = [folder / name for name in (layout.ONNX, layout.ONNX_DATA)]
        size = sum(path.stat().st_size for path in paths if path.exists())
        rows["onnx"] = (
            f"{_format_bytes(kept[0].bytes_before)} → {_format_bytes(size)}, {kept[0].nodes_before} → "
            f"{onnx.artifact.nodes} nodes ({exporter.removeprefix('export: ')})"
        )
    if fallback is not None:
        bytes_text = _format_bytes((folder / fallback.path).stat().st_size)
        if isinstance(fallback, records.TorchScriptArtifact):
            rows["torchscript"] = f"{bytes_text}, {fallback.method}"
        else:
            rows["torch-export"] = f"{bytes_text}, exported program"
    elif left_out:
        rows["fallback"] = f"none: {describe_left_out(left_out)}"
    for name, backend in parity.backends.items():
        if backend.outputs:
            share = max(errors.of_limit for errors in backend.outputs.values())
            largest = max(errors.max_abs for errors in backend.outputs.values())
            rows[f"{name} parity"] = f"largest error {largest:.3g}, {share:.1%} of the tolerance"
    rows["cases"] = f"{len(parity.cases)}, {sum(case.golden for case in parity.cases)} of them in the evidence"
    if parity.not_checked:
        rows["not compared"] = "\n".join(parity.not_checked)
    return rows


def _format_bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
