"""What differs between two bundles, said where it differs: in the graph, the weights, the evidence.

Two fingerprints say whether two bundles are the same; this says what made them another one. Each
file is compared as what it is: records field by field, graphs by operators and nodes, weights tensor
by tensor, TorchScript by its digest. Files with the same digest are the same and are not opened. What
could not be compared is said, with the reason.

`report` is what is found, `opened` the one way into a bundle, `sections` compares records, `onnx_model`
(which needs onnx) graphs and weights, `tensors` the values of two arrays; `first` words the first
difference of one file.
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
    """What differs between the bundles `a` and `b`, folders or .zip files. A damaged one is compared too, and told.

    Raises `NotABundle`, `BundleSchemaUnknown` or `ArchiveRefused`, and `ModelUnreadable` for an ONNX model
    that was broken when it was sealed.
    """
    with open_as_folder(Path(a)) as one, open_as_folder(Path(b)) as other:
        return _compare_bundles(open_bundle(one, "A"), open_bundle(other, "B"))


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


def _describe_side(one: OpenedBundle) -> Side:
    return Side(str(one.config.get("name")), str(one.config.get("version")), one.fingerprint, one.damage)


def _compare_graph_and_weights(before: OpenedBundle, after: OpenedBundle) -> tuple[Section, Section]:
    """From the models; where they are the same or cannot be read, the graph's section has what config.json claims."""
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
    claimed = tuple(find_differences(_artifact_fields(before), _artifact_fields(after)))
    return Section("graph", claimed, reason), Section("weights", (), reason)


def _compare_models(before: OpenedBundle, after: OpenedBundle) -> tuple[Section, Section]:
    from packager.differences import onnx_model

    paths = before.onnx_path(), after.onnx_path()
    models = [onnx_model.NO_MODEL if one is None else onnx_model.load_onnx_model(one) for one in paths]
    graph, weights = tuple(onnx_model.compare_graphs(*models)), tuple(onnx_model.compare_weights(*models))
    if not graph and not weights:  # such as weights in another order
        digests = before.onnx_digests(), after.onnx_digests()
        graph = tuple(replace(one, where=f"bytes of {one.where}") for one in find_differences(*digests))
    return Section("graph", graph), Section("weights", weights)


def _artifact_fields(one: OpenedBundle) -> dict[str, object]:
    artifact = one.artifact("onnx") or {}
    return {name: value for name, value in artifact.items() if name not in ("path", "sha256", "data")}
