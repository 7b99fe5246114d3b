"""How the bundle was built, as an in-toto statement with a SLSA provenance predicate.

Specification: https://slsa.dev/spec/v1.1/provenance. docs/provenance.md describes the build type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packager.bundle import records
from packager.provenance.identifiers import DISTRIBUTION, derive_urn, describe_file, list_assets, make_package_url

BUILDER_ID = f"pkg:pypi/{DISTRIBUTION}"
BUILD_TYPE = f"{BUILDER_ID}#build/v1"


def make_build_provenance(
    config: records.BundleConfig, build: records.BuildRecord, files: Mapping[str, str]
) -> dict[str, Any]:
    """Return the statement about all `files` of the bundle, which are digests by path."""
    manifest = describe_file("manifest", config.source.manifest_sha256)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [describe_file(path, sha256) for path, sha256 in files.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"manifest": manifest},
                "internalParameters": build.model_dump(
                    mode="json", include={"machine", "system", "python", "threads", "capability"}
                ),
                "resolvedDependencies": [
                    manifest,
                    describe_file("checkpoint", config.source.checkpoint_sha256),
                    describe_file("code", config.source.code_sha256),
                    *(describe_file(*file) for file in list_assets(files)),
                    *(_describe_tool(*tool, build) for tool in config.source.toolchain.items()),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID, "version": {DISTRIBUTION: config.source.toolchain.get("packager", "")}},
                "metadata": {"invocationId": derive_urn(files)},
            },
        },
    }


def _describe_tool(tool: str, version: str, build: records.BuildRecord) -> dict[str, Any]:
    """Return the ResourceDescriptor of a Python package; its dirHash is known if it was installed from a wheel."""
    descriptor: dict[str, Any] = {"name": tool, "uri": make_package_url(tool, version)}
    if tool in build.toolchain_digests:
        descriptor["digest"] = {"dirHash": build.toolchain_digests[tool]}
    return descriptor
