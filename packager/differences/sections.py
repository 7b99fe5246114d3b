"""The sections of a report that come from a bundle's records and digests.

A field of config.json that belongs to no other section belongs to the metadata.
"""

from __future__ import annotations

from typing import Any

from packager.bundle import layout
from packager.differences.fields import find_differences
from packager.differences.opened_bundle import OpenedBundle, RecordUnreadable
from packager.differences.report import Difference, Section

_IDENTITY = ("name", "version")
_SIGNATURE = ("inputs", "outputs", "dims")
_ELSEWHERE = ("artifacts", "left_out", "source", "parity")


def compare_identity(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Compare names, versions, fingerprints, and the digests of the files."""

    def fields(bundle: OpenedBundle) -> dict[str, object]:
        files = {f"file {path}": sha256 for path, sha256 in bundle.digests.items()}
        return {**_config_fields(bundle, _IDENTITY), "fingerprint": bundle.fingerprint or None, **files}

    return Section("identity", tuple(find_differences(fields(before), fields(after))))


def compare_signature(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Compare inputs, outputs and their order, and the limits of the dims."""
    fields = _config_fields(before, _SIGNATURE), _config_fields(after, _SIGNATURE)
    return Section("signature", tuple(find_differences(*fields)))


def compare_torchscript(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Compare the fallbacks, TorchScript or exported programs: digests, how they are made and loaded, why they lack.

    Reading them needs torch.
    """

    def fields(bundle: OpenedBundle, kind: str) -> dict[str, object] | None:
        artifact = bundle.artifact(kind)
        return artifact and {**artifact, "sha256": bundle.digests.get(artifact["path"])}

    differences = [
        difference
        for kind, path in (("torchscript", layout.TORCHSCRIPT), ("torch-export", layout.EXPORTED_PROGRAM))
        for difference in find_differences(fields(before, kind), fields(after, kind), path)
    ]
    left_out = find_differences(before.config.get("left_out"), after.config.get("left_out"), "left_out")
    return Section("torchscript", (*differences, *left_out))


def compare_parity(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Compare the verdicts, the tolerances, the largest errors, and the cases."""
    verdicts = tuple(find_differences(before.config.get("parity"), after.config.get("parity"), "verdict"))
    differences, reason = _compare_records(before, after, layout.PARITY)
    shown = [field for field in differences if not field.where.endswith(".why")]  # repeats the numbers in words
    shown.sort(key=lambda field: field.where.startswith("cases"))  # last, because there are many
    return Section("parity", (*verdicts, *shown), reason)


def compare_toolchain(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Compare the versions of the tools, the digests of the inputs of the build, and the machine."""
    source = tuple(find_differences(before.config.get("source"), after.config.get("source")))
    differences, reason = _compare_records(before, after, layout.BUILD)
    return Section("toolchain", (*source, *differences), reason)


def compare_metadata(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Compare description, license, authors, assets, providers, and every field that no other section has."""
    elsewhere = {*_IDENTITY, *_SIGNATURE, *_ELSEWHERE}

    def fields(bundle: OpenedBundle) -> dict[str, Any]:
        return {name: value for name, value in bundle.config.items() if name not in elsewhere}

    return Section("metadata", tuple(find_differences(fields(before), fields(after))))


def _config_fields(bundle: OpenedBundle, names: tuple[str, ...]) -> dict[str, object]:
    return {name: bundle.config.get(name) for name in names}


def _compare_records(before: OpenedBundle, after: OpenedBundle, name: str) -> tuple[tuple[Difference, ...], str]:
    """Return the differences of a record, or the reason why it cannot be compared. Equal digests are not read."""
    if before.digests.get(name) == after.digests.get(name):
        return (), ""
    try:
        return tuple(find_differences(before.read_record(name), after.read_record(name))), ""
    except RecordUnreadable as error:
        return (), str(error)
