"""Compare two bundles, and report the differences where they are: in the graph, the weights, the evidence.

Two fingerprints tell whether two bundles are the same; a report tells why they are not. Each file is compared
according to its format: records field by field, graphs by operators and nodes, weights tensor by tensor,
the fallback by its digest. Files with equal digests are not opened. Whatever cannot be compared is reported with
the reason.

`report` defines the result, `opened_bundle` reads a bundle, `sections` compares records, `onnx_model` (which needs
onnx) compares graphs and weights, `tensors` compares the values of two arrays, and `first` describes the first
difference within one file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packager.bundle.archive import open_as_folder
from packager.differences import sections
from packager.differences.fields import find_differences
from packager.differences.first import find_first_difference
from packager.differences.opened_bundle import OpenedBundle, open_bundle
from packager.differences.report import Difference, DiffReport, Section, Side
from packager.errors import ModelUnreadable

__all__ = ["DiffReport", "Difference", "Section", "Side", "diff", "find_first_difference"]


def diff(a: str | Path, b: str | Path) -> DiffReport:
    """Compare the bundles `a` and `b`, given as folders or archives. Damage is reported and does not stop it.

    Raises `NotABundle`, `BundleSchemaUnknown` or `ArchiveRefused`, and `ModelUnreadable` for an ONNX model that
    was already broken when the bundle was sealed.
    """
    with open_as_folder(Path(a)) as before, open_as_folder(Path(b)) as after:
        return _compare_bundles(open_bundle(before, "A"), open_bundle(after, "B"))


def _compare_bundles(before: OpenedBundle, after: OpenedBundle) -> DiffReport:
    return DiffReport(
        _describe_side(before),
        _describe_side(after),
        (
            sections.compare_identity(before, after),
            sections.compare_signature(before, after),
            *_compare_graph_and_weights(before, after),
            sections.compare_torchscript(before, after),
            sections.compare_parity(before, after),
            sections.compare_toolchain(before, after),
            sections.compare_metadata(before, after),
        ),
    )


def _describe_side(bundle: OpenedBundle) -> Side:
    return Side(str(bundle.config.get("name")), str(bundle.config.get("version")), bundle.fingerprint, bundle.damage)


def _compare_graph_and_weights(before: OpenedBundle, after: OpenedBundle) -> tuple[Section, Section]:
    """Compare the models; if they are the same or cannot be read, compare what config.json says about the graph."""
    reason = ""
    if before.onnx_digests() != after.onnx_digests():
        try:
            return _compare_models(before, after)
        except ImportError as error:
            if error.name is None or error.name.startswith("packager"):
                raise
            reason = f"{error.name} is not installed"
        except ModelUnreadable as error:
            if not (before.damage or after.damage):
                raise
            reason = f"{error.message}: {error.why}"
    fields = tuple(find_differences(_artifact_fields(before), _artifact_fields(after)))
    return Section("graph", fields, reason), Section("weights", (), reason)


def _compare_models(before: OpenedBundle, after: OpenedBundle) -> tuple[Section, Section]:
    from packager.differences import onnx_model

    paths = before.onnx_path(), after.onnx_path()
    models = [onnx_model.NO_MODEL if path is None else onnx_model.load_onnx_model(path) for path in paths]
    graph, weights = tuple(onnx_model.compare_graphs(*models)), tuple(onnx_model.compare_weights(*models))
    if not graph and not weights:  # the same model in different bytes, such as weights in a different order
        digests = before.onnx_digests(), after.onnx_digests()
        graph = tuple(replace(file, where=f"bytes of {file.where}") for file in find_differences(*digests))
    return Section("graph", graph), Section("weights", weights)


def _artifact_fields(bundle: OpenedBundle) -> dict[str, object]:
    artifact = bundle.artifact("onnx") or {}
    return {name: value for name, value in artifact.items() if name not in ("path", "sha256", "data")}
