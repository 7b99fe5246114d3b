"""Everything a build found out → the files of the bundle that say so."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packager.builder.incremental import keys
from packager.builder.results import StageResults
from packager.bundle import evidence, layout, readme, records
from packager.bundle.writer import BundleWriter
from packager.common import distributions
from packager.parity.cases import signature
from packager.parity.cases.sample_grid import Grid
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.tolerances import NOISE_MULTIPLE
from packager.parity.numerics.verdict import ParityResult
from packager.project.manifest import ExplicitTolerance as ExplicitTolerance
from packager.project.manifest import Project
from packager.runtime.onnx_backend import describe_missing_providers
from packager.runtime.verify import verify


@dataclass(frozen=True)
class BundleContents:
    """What a bundle is made from."""

    project: Project
    grid: Grid
    results: StageResults
    assets: Mapping[str, Path]


@dataclass(frozen=True)
class SealedBundle:
    """The sealed bundle: its fingerprint, config.json, verdicts, and what the closing table says."""

    fingerprint: str
    config: Mapping[str, Any]
    parity: Mapping[str, str]
    summary: Mapping[str, str]


def assemble_bundle(content: BundleContents, writer: BundleWriter) -> SealedBundle:
    """Write assets, evidence, config.json and README.md, seal the bundle, and verify what lies there then."""
    for name, path in content.assets.items():
        writer.add_file(f"{layout.ASSETS}/{name}", path)
    measured = content.results.reference
    expectations = measured.reference.reference_cases
    golden = evidence.choose_golden_cases(expectations, measured.provenance.weight_bytes)
    writer.add_bytes(layout.GOLDEN, evidence.serialize_golden_cases(expectations, golden))
    parity, config = _build_parity_record(content, golden), _build_config(content)
    writer.add_bytes(layout.PARITY, parity.to_bytes())
    writer.add_bytes(layout.BUILD, _build_environment_record(content).to_bytes())
    writer.add_bytes(layout.CONFIG, config.to_bytes())
    writer.add_bytes(layout.README, readme.render_readme(config, parity))
    seal = writer.seal()
    report = verify(writer.folder, parity=False)
    if not report.ok:
        raise AssertionError(f"the staged bundle does not verify: {report.integrity}, {report.structure}")
    plain = config.model_dump(mode="json", by_alias=True)
    return SealedBundle(seal, plain, config.parity.model_dump(), _summarize(content, parity, writer.folder))


def _build_config(content: BundleContents) -> records.BundleConfig:
    manifest, results = content.project.manifest, content.results
    origin = results.reference.provenance
    onnx, torchscript = results.onnx.artifact, results.torchscript.artifact
    return records.BundleConfig(
        schema_=1,
        name=manifest.name,
        version=manifest.version,
        description=manifest.description,
        license=manifest.license,
        authors=manifest.authors,
        inputs=[_tensor_record(one) for one in signature.make_input_specs(manifest)],
        outputs=[_tensor_record(one) for one in results.reference.outputs],
        dims={name: records.DimRecord(min=one.min, max=one.max) for name, one in manifest.dim_limits().items()},
        artifacts=records.Artifacts(
            onnx=onnx,
            torchscript=torchscript,
        ),
        providers=manifest.target.providers,
        assets=sorted(content.assets),
        source=records.SourceRecord(
            manifest_sha256=content.project.sha256,
            checkpoint_sha256=origin.checkpoint_sha256,
            code_sha256=origin.code_sha256,
            toolchain={name: distributions.tool_version(name) for name in keys.TOOLCHAIN},
        ),
        parity=records.ParityVerdicts(
            onnx="pass" if onnx else "not-checked",
            torchscript="pass" if torchscript else "not-checked",
        ),
        metadata=manifest.metadata,
    )


def _tensor_record(spec: TensorSpec) -> records.TensorRecord:
    return records.TensorRecord(name=spec.name, dtype=spec.dtype, shape=list(spec.shape))


def _build_parity_record(content: BundleContents, golden: frozenset[str]) -> records.ParityRecord:
    results = content.results
    measured = results.reference
    cases = [
        records.CaseRecord(
            name=case.name,
            sizes=dict(case.sizes),
            fill=case.value_description,
            golden=case.name in golden,
            outputs={
                name: records.CaseOutput(
                    dtype=str(array.dtype),
                    shape=list(array.shape),
                    atol=one.tolerances[name].atol,
                    rtol=one.tolerances[name].rtol,
                )
                for name, array in one.outputs.items()
            },
        )
        for case, one in zip(measured.reference.cases, measured.reference.reference_cases, strict=True)
    ]
    coverage = measured.reference.coverage
    assert coverage is not None
    return records.ParityRecord(
        schema_=1,
        verdict="pass",
        reference="the PyTorch module itself, eager, in its own dtypes, on the CPU",
        cases=cases,
        not_checked=_list_unchecked(content),
        tolerance={one.name: _tolerance_record(one, content) for one in measured.outputs},
        decisions={
            name: records.DecisionRecord.model_validate(one, from_attributes=True)
            for name, one in measured.reference.reference_cases[0].decisions.items()
        },
        coverage=records.CoverageRecord.model_validate(coverage, from_attributes=True),
        backends={
            "onnx": _backend_record(results.onnx.parity),
            "torchscript": _backend_record(results.torchscript.parity),
        },
        stages=[
            records.ExportStageRecord.model_validate(one, from_attributes=True)
            for one in (*results.onnx.stages, *results.torchscript.stages)
        ],
    )


def _list_unchecked(content: BundleContents) -> list[str]:
    frozen = content.results.onnx.specialized.merge(content.results.torchscript.specialized)
    return [
        *(f"the sizes {sizes}" for sizes in content.grid.skipped_sizes),
        *content.results.reference.reference.uncompared,
        *(frozen if _has_dynamic_inner_dims(content.project) else replace(frozen, rounded_size_lines=())).describe(),
        *describe_missing_providers(content.project.manifest.target.providers),
    ]


def _has_dynamic_inner_dims(project: Project) -> bool:
    """Whether anything but the number of samples may be of another size."""
    return any(isinstance(dim, str) for one in project.manifest.inputs.values() for dim in one.shape[1:])


def _tolerance_record(spec: TensorSpec, content: BundleContents) -> records.ToleranceRecord:
    explicit = content.project.manifest.parity.tolerance
    noise = content.results.reference.reference.noise.get(spec.name)
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
            f"up to {rtol:.3g} × (|expected| + what counts as small in it): {NOISE_MULTIPLE} times the noise floor, "
            f"{noise.typical:.3g} to {noise.relative:.3g} by case, that {spec.dtype} arithmetic costs this module, "
            f"measured {noise.description}"
        ),
    )  # fmt: skip


def _backend_record(judgement: ParityResult | None) -> records.BackendVerdict:
    if judgement is None:
        why = "the bundle has none"
        return records.BackendVerdict(verdict="not-checked", reason=why, outputs={}, decisions={}, worst=None)
    worst = judgement.worst
    return records.BackendVerdict(
        verdict="pass",
        reason="",
        outputs={
            name: records.OutputErrorsRecord(
                max_abs=one.max_abs,
                max_rel=one.max_rel,
                rms=one.rms,
                cosine=one.cosine,
                mismatched_nonfinite=one.mismatched_nonfinite,
                of_limit=one.error_over_limit,
                of_limit_float64=one.error_over_limit_float64,
            )
            for name, one in judgement.outputs.items()
        },
        decisions={
            name: records.AgreementRecord.model_validate(one, from_attributes=True)
            for name, one in judgement.decisions.items()
        },
        worst=None
        if worst is None
        else records.WorstElementRecord(
            case=worst.case,
            output=worst.output,
            index=list(worst.index),
            expected=worst.expected,
            actual=worst.actual,
            of_limit=worst.error_over_limit,
        ),
    )


def _build_environment_record(content: BundleContents) -> records.BuildRecord:
    origin, machine = content.results.reference.provenance, content.results.reference.machine
    weights = f"key {origin.weights_key!r}" if origin.weights_key else "the file itself"
    steps = [
        records.BuildStepRecord(
            name="weights", outcome=f"{weights}, prefix {origin.prefix!r}, {origin.parameters} parameters"
        ),
        records.BuildStepRecord(name="missing", outcome=", ".join(origin.missing) or "none"),
        records.BuildStepRecord(name="unexpected", outcome=", ".join(origin.unexpected) or "none"),
        records.BuildStepRecord(name="code", outcome=", ".join(origin.code_files) or "installed packages only"),
    ]
    return records.BuildRecord(
        schema_=1,
        machine=platform.machine(),
        system=platform.system(),
        python=".".join(str(one) for one in sys.version_info[:3]),
        threads=machine.threads,
        capability=machine.capability,
        steps=steps,
    )


def _summarize(content: BundleContents, parity: records.ParityRecord, folder: Path) -> dict[str, str]:
    facts = {"model": f"{content.project.manifest.name} {content.project.manifest.version}"}
    onnx, torchscript = content.results.onnx, content.results.torchscript.artifact
    facts["parameters"] = f"{content.results.reference.provenance.parameters:,}"
    if onnx.artifact is not None:
        kept = [one for one in onnx.stages if one.kept and one.nodes_before]
        exporter = next(one.name for one in kept if one.name.startswith("export"))
        size = sum(
            (folder / name).stat().st_size for name in (layout.ONNX, layout.ONNX_DATA) if (folder / name).exists()
        )
        facts["onnx"] = (
            f"{_format_bytes(kept[0].bytes_before)} → {_format_bytes(size)}, {kept[0].nodes_before} → "
            f"{onnx.artifact.nodes} nodes ({exporter.removeprefix('export: ')})"
        )
    if torchscript is not None:
        size = (folder / layout.TORCHSCRIPT).stat().st_size
        facts["torchscript"] = f"{_format_bytes(size)}, {torchscript.method}"
    for name, backend in parity.backends.items():
        if backend.outputs:
            share = max(one.of_limit for one in backend.outputs.values())
            largest = max(one.max_abs for one in backend.outputs.values())
            facts[f"{name} parity"] = f"largest error {largest:.3g}, {share:.1%} of what is allowed"
    facts["cases"] = f"{len(parity.cases)}, {sum(one.golden for one in parity.cases)} of them in the evidence"
    return facts


def _format_bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
