"""The parts of the bundle and the model card, as a CycloneDX 1.6 bill of materials.

Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packager.bundle import records
from packager.provenance.identifiers import DISTRIBUTION, derive_urn, list_assets, make_package_url

_MODEL_REF = "model"
_LOADS_ANYWHERE, _LOADS_FALLBACK = ("onnxruntime", "numpy"), ("torch",)

SPDX_IDS = frozenset({
    "0BSD", "AFL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause",
    "BSD-3-Clause-Clear", "BSL-1.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0",
    "CC-BY-ND-4.0", "CC-BY-SA-4.0", "CC0-1.0", "EPL-2.0", "EUPL-1.2", "GPL-2.0-only", "GPL-2.0-or-later",
    "GPL-3.0-only", "GPL-3.0-or-later", "ISC", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only",
    "LGPL-3.0-or-later", "MIT", "MIT-0", "MPL-2.0", "Unlicense", "Zlib",
})  # fmt: skip
"""The SPDX identifiers that models commonly have; a license that is not among them is written as a name."""


def make_bill_of_materials(
    config: records.BundleConfig, parity: records.ParityRecord, files: Mapping[str, str]
) -> dict[str, Any]:
    """Return the bill of materials; `files` are the digests of the bundle's files by path."""
    parts = [*config.artifacts.list_files(), *list_assets(files)]
    toolchain = {tool: version for tool, version in config.source.toolchain.items() if tool != "packager"}
    version = config.source.toolchain.get("packager", "")
    builder = {
        "type": "application",
        "name": DISTRIBUTION,
        "version": version,
        "purl": make_package_url("packager", version),
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": derive_urn(files),
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [builder]},
            "component": _make_model_component(config, parity, parts),
        },
        "components": [_make_tool_component(tool, version, config) for tool, version in toolchain.items()],
        "dependencies": _list_dependencies(config, parts, toolchain),
    }


def _make_model_component(
    config: records.BundleConfig, parity: records.ParityRecord, parts: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    license_choice = {"id" if config.license in SPDX_IDS else "name": config.license}
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL_REF,
        "name": config.name,
        "version": config.version,
        **({"description": config.description} if config.description else {}),
        **({"authors": [{"name": author} for author in config.authors]} if config.authors else {}),
        **({"licenses": [{"license": license_choice}]} if config.license else {}),
        "pedigree": {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "name": "checkpoint",
                    "hashes": [_make_hash(config.source.checkpoint_sha256)],
                }
            ]
        },
        "components": [
            {"type": "file", "bom-ref": path, "name": path, "hashes": [_make_hash(sha256)]} for path, sha256 in parts
        ],
        "modelCard": _make_model_card(config, parity),
    }


def _make_model_card(config: records.BundleConfig, parity: records.ParityRecord) -> dict[str, Any]:
    metrics = [
        {"type": f"parity.{name}", "value": str(value), "slice": f"{backend}/{output}"}
        for backend, verdict in json.loads(parity.model_dump_json(include={"backends"}))["backends"].items()
        for output, errors in verdict["outputs"].items()
        for name, value in errors.items()
        if value is not None
    ]
    properties = {"packager:parameters": str(config.source.parameters), "packager:reference": parity.reference}
    return {
        "modelParameters": {
            "modelArchitecture": config.source.architecture,
            "inputs": [{"format": _describe_tensor(tensor)} for tensor in config.inputs],
            "outputs": [{"format": _describe_tensor(tensor)} for tensor in config.outputs],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        **(
            {"considerations": {"technicalLimitations": [f"not compared: {item}" for item in parity.not_checked]}}
            if parity.not_checked
            else {}
        ),
        "properties": [{"name": name, "value": value} for name, value in properties.items()],
    }


def _make_tool_component(tool: str, version: str, config: records.BundleConfig) -> dict[str, Any]:
    """Return the component of a Python package: required to load the bundle, for its fallback, or to build it."""
    package_url = make_package_url(tool, version)
    has_fallback = config.artifacts.torchscript is not None or config.artifacts.torch_export is not None
    if tool in _LOADS_ANYWHERE:
        scope = "required"
    else:
        scope = "optional" if tool in _LOADS_FALLBACK and has_fallback else "excluded"
    return {
        "type": "library",
        "bom-ref": package_url,
        "name": tool,
        **({"version": version} if version else {}),
        "scope": scope,
        "purl": package_url,
    }


def _list_dependencies(
    config: records.BundleConfig, parts: Sequence[tuple[str, str]], toolchain: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the components that each part needs to be loaded; nothing needs the tools that only build."""
    refs = {tool: make_package_url(tool, version) for tool, version in toolchain.items()}
    onnx, fallback = config.artifacts.onnx, config.artifacts.torchscript or config.artifacts.torch_export
    needs: dict[str, list[str]] = {_MODEL_REF: [path for path, _ in parts], **{path: [] for path, _ in parts}}
    if onnx is not None:
        data = [] if onnx.data is None else [onnx.data.path]
        needs[onnx.path] = [*data, *(refs[tool] for tool in _LOADS_ANYWHERE if tool in refs)]
    if fallback is not None:
        needs[fallback.path] = [refs[tool] for tool in _LOADS_FALLBACK if tool in refs]
    return [{"ref": ref, "dependsOn": needed} for ref, needed in needs.items()]


def _describe_tensor(tensor: records.TensorRecord) -> str:
    """Return a tensor's name, dtype and shape, such as `image: float32[batch, 1, 28, 28]`."""
    return f"{tensor.name}: {tensor.dtype}[{', '.join('?' if dim is None else str(dim) for dim in tensor.shape)}]"


def _make_hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}
