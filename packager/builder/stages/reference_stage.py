"""NOISE and REFERENCE: what the module computes on every case, and how far an artifact may be from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from packager.builder.context import BuildContext, EagerModel
from packager.builder.results import CachedResults, MachineInfo, Provenance, ReferenceResult
from packager.builder.stages.torchscript_stage import TracedModel, has_discrete_decisions
from packager.bundle import evidence
from packager.common import process_memory
from packager.common.hashing import sha256_file
from packager.errors import WeightsNotExercised
from packager.model.code_dependencies import CodeDependencies
from packager.model.serialized import SerializedModule
from packager.parity import coverage, reference
from packager.parity.cases import signature
from packager.parity.cases.signature import TensorSpec
from packager.parity.reference import NoiseMeasurement
from packager.parity.results import Reference

_OWN_DTYPES = "the PyTorch module itself, eager, in its own dtypes, on the CPU"


def measure_noise(context: BuildContext, model: EagerModel) -> NoiseMeasurement:
    """Evaluate the module in other ways that are equal in mathematics, on a few cases.

    Raises what `packager.parity.reference.measure_noise` does.
    """
    assert model.cost is not None
    noise = reference.measure_noise(context.project, model.loaded, model.grid, model.known_outputs, model.cost)
    process_memory.release_memory()
    return noise


def measure_reference(
    context: BuildContext,
    model: EagerModel,
    noise: NoiseMeasurement | None,
    traced: TracedModel,
    cached: CachedResults,
) -> Reference:
    """Run the module on every case, derive the tolerances, and measure the coverage of the cases in the evidence.

    Raises what `packager.parity.reference.measure_reference` does.
    """
    assert noise is not None and model.cost is not None
    project, loaded = context.project, model.loaded
    decides = has_discrete_decisions(traced.program, cached)
    measured = reference.measure_reference(
        project, loaded, model.grid, noise, probe=traced.probe, has_discrete_decisions=decides
    )
    golden = evidence.choose_golden_cases(measured.reference_cases, model.weight_bytes)
    cases = [case for case in measured.cases if case.name in golden]
    channels = coverage.measure_coverage(project, loaded, cases, model.cost)
    if channels.channels and not channels.exercised:
        _check_exercised(context, model, measured, channels.channels)
    constant = coverage.count_constant_channels([case for case in measured.reference_cases if case.name in golden])
    notes = [f"not compared: {reason}" for reason in measured.uncompared] + [coverage.describe_coverage(channels)]
    for note in filter(None, notes):
        context.reporter.report_note(note)
    process_memory.release_memory()
    return replace(measured, coverage=replace(channels, still=constant))


def _check_exercised(context: BuildContext, model: EagerModel, measured: Reference, channels: int) -> None:
    """Raise `WeightsNotExercised` if no case shows any of the weights: then the artifacts could hold any others."""
    for widen in (True, False):
        try:
            is_shown = coverage.show_weights(context.project, model.loaded, measured.cases, widen=widen)
            break
        except Exception:  # noqa: BLE001 (the user's code may refuse float64, and other weights)
            continue
    else:
        return  # nobody can tell; the note on coverage says that no gradient shows any
    if not is_shown:
        raise WeightsNotExercised(context.project.field_location("inputs"), channels, len(measured.cases))


def infer_outputs(measured: Reference) -> tuple[TensorSpec, ...]:
    """Return the outputs' signature as all cases show it."""
    runs = zip(measured.cases, measured.reference_cases, strict=True)
    return signature.infer_output_specs([(case, expected.outputs) for case, expected in runs])


def make_result(
    context: BuildContext, model: EagerModel, measured: Reference, dependencies: CodeDependencies
) -> ReferenceResult:
    """Return the reference with its provenance and machine, now that the code's files are known."""
    loaded, files = model.loaded, dependencies.list_project_files()
    provenance = Provenance(
        checkpoint_sha256=loaded.checkpoint_sha256,
        code_sha256=_digest_code(context.project.folder, files),
        code_files=tuple(sorted(files)),
        weights_key=loaded.weights_key,
        prefix=loaded.key_match.prefix,
        missing=loaded.key_match.missing,
        unexpected=loaded.key_match.unexpected,
        architecture=_name_architecture(context, model),
        parameters=loaded.parameters,
        weight_bytes=model.weight_bytes,
        dtype=None if loaded.conversion is None else loaded.conversion.target,
        description=_OWN_DTYPES if loaded.conversion is None else loaded.conversion.describe_reference(),
    )
    machine = MachineInfo(torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    return ReferenceResult(provenance, machine, model.outputs, measured)


def _name_architecture(context: BuildContext, model: EagerModel) -> str:
    """Return the name in the manifest's entry, such as `DigitsCNN`; without an entry, that of the module's class."""
    module, entry = model.loaded.module, context.project.manifest.model.entry
    if entry:
        return entry.rpartition(":")[2]
    if isinstance(module, SerializedModule):
        module = module.inner
    return str(getattr(module, "original_name", type(module).__name__))  # TorchScript keeps the name of the class


def _digest_code(folder: Path, files: Mapping[str, str]) -> str:
    """Return the SHA-256 over sorted `sha256  name` lines: it depends on the code's content, not on its location."""
    lines = sorted(f"{sha256_file(folder / path)}  {name}\n" for name, path in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
