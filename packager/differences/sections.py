"""The sections of a report that come from a bundle's records and digests. What else config.json says is metadata."""

from __future__ import annotations

from typing import Any

from packager.bundle import layout
from packager.differences.fields import find_differences
from packager.differences.opened_bundle import OpenedBundle, RecordUnreadable
from packager.differences.report import Difference, Section

_IDENTITY = ("name", "version")
_SIGNATURE = ("inputs", "outputs", "dims")
_ELSEWHERE = ("artifacts", "source", "parity")


def compare_identity(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Name, version, fingerprint, and which files differ as they lie there."""

    def facts(one: OpenedBundle) -> dict[str, object]:
        seal = {"fingerprint": one.fingerprint or None}
        return {
            **_config_fields(one, _IDENTITY),
            **seal,
            **{f"file {path}": sha256 for path, sha256 in one.digests.items()},
        }

    return Section("identity", tuple(find_differences(facts(before), facts(after))))


def compare_signature(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Inputs, outputs and their order, and the sizes that dims may take."""
    return Section(
        "signature", tuple(find_differences(_config_fields(before, _SIGNATURE), _config_fields(after, _SIGNATURE)))
    )


def compare_torchscript(before: OpenedBundle, after: OpenedBundle) -> Section:
    """The artifact: its digest, and how it is made and loaded. What is in it is for torch to say."""

    def facts(one: OpenedBundle) -> dict[str, object] | None:
        artifact = one.artifact("torchscript")
        return artifact and {**artifact, "sha256": one.digests.get(artifact["path"])}

    return Section("torchscript", tuple(find_differences(facts(before), facts(after), layout.TORCHSCRIPT)))


def compare_parity(before: OpenedBundle, after: OpenedBundle) -> Section:
    """The verdicts, what was allowed, the largest errors, and the cases."""
    verdicts = tuple(find_differences(before.config.get("parity"), after.config.get("parity"), "verdict"))
    found, reason = _compare_records(before, after, layout.PARITY)
    told = [one for one in found if not one.where.endswith(".why")]  # words the numbers beside it
    told.sort(key=lambda one: one.where.startswith("cases"))  # many; the rest is what one looks for
    return Section("parity", (*verdicts, *told), reason)


def compare_toolchain(before: OpenedBundle, after: OpenedBundle) -> Section:
    """The versions of the tools, the digests of what the bundle was made from, and the machine."""
    versions = tuple(find_differences(before.config.get("source"), after.config.get("source")))
    found, reason = _compare_records(before, after, layout.BUILD)
    return Section("toolchain", (*versions, *found), reason)


def compare_metadata(before: OpenedBundle, after: OpenedBundle) -> Section:
    """Description, license, authors, assets, providers, and whatever no other section has."""
    known = {*_IDENTITY, *_SIGNATURE, *_ELSEWHERE}

    def facts(one: OpenedBundle) -> dict[str, Any]:
        return {name: value for name, value in one.config.items() if name not in known}

    return Section("metadata", tuple(find_differences(facts(before), facts(after))))


def _config_fields(one: OpenedBundle, names: tuple[str, ...]) -> dict[str, object]:
    return {name: one.config.get(name) for name in names}


def _compare_records(before: OpenedBundle, after: OpenedBundle, name: str) -> tuple[tuple[Difference, ...], str]:
    """The differences of a record, or the reason why they are not known; files with one digest are not read."""
    if before.digests.get(name) == after.digests.get(name):
        return (), ""
    try:
        return tuple(find_differences(before.read_record(name), after.read_record(name))), ""
    except RecordUnreadable as error:
        return (), str(error)
