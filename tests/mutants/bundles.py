"""Bundles to break: built from tests/architectures.py, changed in one artifact, sealed as if nothing had happened."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from architectures import Architecture, write
from projects import reseal as seal

import packager
from packager.bundle import layout, records
from packager.bundle.fingerprint import regular_file_digest

LEVELS: Mapping[str, Mapping[str, Any]] = {
    "optimized": {},
    "as exported": {"optimize": {"level": "none", "simplify": False}},
}
"""How a graph is built: with the fused operators that ship by default, or with the plain ones."""


def build(architecture: Architecture, level: str, folder: Path) -> Path:
    """Build the bundle of an architecture at one of `LEVELS`."""
    path = write(architecture, folder / "project", **LEVELS[level])
    return packager.build(path, folder / "out").bundle


def shared(level: str, architecture: Architecture, folder: Path) -> Path:
    """Build the bundle of an architecture once for each folder."""
    target = folder / level.replace(" ", "-") / architecture.name
    made = list(target.glob("out/*/" + layout.CONFIG))
    return made[0].parent if made else build(architecture, level, target)


def copy(bundle: Path, target: Path, *, fallback: bool = True) -> Path:
    """Copy a bundle to break it; without its fallback, it is verified in a fraction of the time."""
    copied = Path(shutil.copytree(bundle, target))
    if not fallback:
        _remove_fallback(copied)
        seal(copied)
    return copied


def _remove_fallback(bundle: Path) -> None:
    """Remove the TorchScript file or the exported program of a bundle, as if the build had left it out."""
    config = _config(bundle)
    parity = records.ParityRecord.model_validate_json((bundle / layout.PARITY).read_bytes())
    backends = {name: verdict for name, verdict in parity.backends.items() if name != "torch-export"}
    if config.artifacts.torchscript is not None:
        backends["torchscript"] = backends["torchscript"].model_copy(update={"verdict": "not-checked"})
    for name in (layout.TORCHSCRIPT, layout.EXPORTED_PROGRAM):
        (bundle / name).unlink(missing_ok=True)
    artifacts = config.artifacts.model_copy(update={"torchscript": None, "torch_export": None})
    verdicts = config.parity.model_copy(update={"torchscript": "not-checked", "torch_export": None})
    changed = config.model_copy(update={"artifacts": artifacts, "parity": verdicts})
    (bundle / layout.CONFIG).write_bytes(changed.to_bytes())
    (bundle / layout.PARITY).write_bytes(parity.model_copy(update={"backends": backends}).to_bytes())


def put(bundle: Path, model: onnx.ModelProto) -> None:
    """Replace the ONNX model of a bundle, and update its digests."""
    (bundle / layout.ONNX).write_bytes(model.SerializeToString())
    reseal(bundle)


def reseal(bundle: Path) -> str:
    """Update every digest to the files as they are now, also in config.json; returns the fingerprint.

    Integrity and structure are right again, so only the numbers can give a mutant away.
    """
    config = _config(bundle)
    onnx_artifact, script = config.artifacts.onnx, config.artifacts.torchscript
    if onnx_artifact is not None:
        onnx_artifact = onnx_artifact.model_copy(update={"sha256": regular_file_digest(bundle / onnx_artifact.path)})
    if script is not None:
        script = script.model_copy(update={"sha256": regular_file_digest(bundle / script.path)})
    artifacts = config.artifacts.model_copy(update={"onnx": onnx_artifact, "torchscript": script})
    (bundle / layout.CONFIG).write_bytes(config.model_copy(update={"artifacts": artifacts}).to_bytes())
    return seal(bundle)


def is_refused(report: packager.VerifyReport, backend: str = "onnx") -> bool:
    """Return whether a mutant is refused; a wrong seal would be a defect of these tests, and is an assertion error."""
    assert report.integrity.is_intact and not any(
        "digest" in problem or "FINGERPRINT" in problem for problem in report.structure
    )
    return bool(report.structure) or report.parity[backend] == "fail"


def _config(bundle: Path) -> records.BundleConfig:
    return records.BundleConfig.model_validate_json((bundle / layout.CONFIG).read_bytes())
