"""The cache key of every stage: the contents, manifest fields and versions that decide its result.

    reference            the module on every case, and its noise        code, weights, inputs, parity, machine
    torchscript          the fallback, unchecked                        code, weights, inputs, torchscript
    onnx                 the graph, exported and optimized, unchecked   code, weights, inputs, export, optimize
    torchscript parity   the fallback checked on the reference          the digests of both
    onnx parity          the graph checked on the reference             the digests of both
    bundle               everything together                            the whole manifest, assets, all versions

A field that a stage does not read is not in its key, so changing it leaves the stage cached. A stage that reads the
output of another has that output's digest in its key, not the inputs that led to it.

The inputs of a bundle's key can be evaluated again without reading the manifest: see `up_to_date`. An input of a new
kind needs a case there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.builder.incremental.environment import collect_machine, collect_python_version, digest_own_code
from packager.builder.incremental.store import CacheEntry, CacheKey
from packager.common import installed_distributions
from packager.common.paths import data_folder

if TYPE_CHECKING:
    from packager.model.code_dependencies import CodeDependencies
    from packager.project.manifest import Project

TOOLCHAIN = ("packager", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy")
"""The tools whose code decides what is in the artifacts."""

_RECORD_WRITERS = ("jinja2", "markupsafe", "pydantic", "pydantic_core", "onnx_ir", "safetensors")

FileHasher = Callable[[Path], str]
"""Returns the SHA-256 of a file in hex. Raises OSError."""


def collect_module_inputs(
    project: Project, checkpoint_sha256: str, dependencies: CodeDependencies, sha256: FileHasher
) -> dict[str, str]:
    """Return whatever decides about the eager module, by name. Raises OSError if a file of its code is gone."""
    manifest = project.manifest
    fields = manifest.checkpoint.model_dump(mode="json", exclude={"path", "sha256"})
    return {
        **dependencies.collect_inputs(project.folder, sha256),
        **{f"checkpoint.{name}": _to_json(value) for name, value in fields.items()},
        "checkpoint": checkpoint_sha256,
        "model.entry": manifest.model.entry or "",
        "model.kwargs": _to_json(manifest.model.kwargs),
        "model.dtype": manifest.model.dtype or "",
        **_collect_versions("numpy", "torch", "safetensors"),
        **collect_python_version(),
        **collect_machine(),  # a constructor may compute something that depends on it
        **digest_own_code(),
    }


def make_reference_key(project: Project, module_inputs: Mapping[str, str], sha256: FileHasher) -> CacheKey:
    """Return the key of the module's outputs on every case, and their tolerances."""
    parity = project.manifest.parity.model_dump(mode="json", exclude={"data"})
    data = project.manifest.parity.data
    return CacheKey(
        "reference",
        {
            **module_inputs,
            **_collect_signature(project),
            **{f"parity.{name}": _to_json(value) for name, value in parity.items()},
            "parity.data": sha256(project.folder / data) if data is not None else "null",
        },
    )


def make_torchscript_key(project: Project, module_inputs: Mapping[str, str]) -> CacheKey:
    """Return the key of the fallback, before it is checked."""
    return CacheKey(
        "torchscript",
        {
            **module_inputs,
            **_collect_signature(project),
            **_collect_section(project, "torchscript"),
            **_collect_trace_seed(project),
        },
    )


def make_onnx_key(project: Project, module_inputs: Mapping[str, str]) -> CacheKey:
    """Return the key of the ONNX graph, before it is checked."""
    return CacheKey(
        "onnx",
        {
            **module_inputs,
            **_collect_signature(project),
            **_collect_section(project, "export"),
            **_collect_section(project, "optimize"),
            **_collect_section(project, "torchscript"),  # the trace or script that it may be exported from
            **_collect_trace_seed(project),
            "target.providers": _to_json(project.manifest.target.providers),
            **_collect_versions("onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime"),
        },
    )


def make_parity_key(artifact_key: CacheKey, artifact: CacheEntry, reference: CacheEntry, project: Project) -> CacheKey:
    """Return the key of an artifact's parity on the cases of a reference."""
    runtime = _collect_versions("torch")
    if artifact_key.stage == "onnx":
        providers = _to_json(project.manifest.target.providers)
        runtime = {"target.providers": providers, **_collect_versions("onnxruntime")}
    return CacheKey(
        f"{artifact_key.stage} parity",
        {
            "artifact": artifact.digest,
            "reference": reference.digest,
            **runtime,
            **collect_machine(),
            **digest_own_code(),
        },
    )


def make_bundle_key(
    project: Project, module_inputs: Mapping[str, str], assets: Mapping[str, Path], sha256: FileHasher
) -> CacheKey:
    """Return the key of the whole bundle."""
    fields = project.manifest.model_dump(mode="json", by_alias=True)
    fields["checkpoint"]["path"] = project.checkpoint_display_name
    return CacheKey(
        "bundle",
        {
            **module_inputs,
            **{f"manifest.{name}": _to_json(value) for name, value in fields.items()},
            "manifest": project.sha256,
            **{name: sha256(path) for name, path in list_bundle_files(project, assets).items()},
            **_collect_versions(*TOOLCHAIN, *_RECORD_WRITERS),
        },
    )


def list_bundle_files(project: Project, assets: Mapping[str, Path]) -> dict[str, Path]:
    """Return the paths of the data, the assets and the templates, by the name of the bundle key's input."""
    data = project.manifest.parity.data
    return {
        **({"parity.data": project.folder / data} if data else {}),
        **{f"asset:{name}": path for name, path in assets.items()},
        **list_templates(),
    }


def list_templates() -> dict[str, Path]:
    """Return the paths of the templates that a bundle's README is rendered from, by the name of the input."""
    return {f"template:{path.name}": path for path in sorted(data_folder("templates").iterdir())}


def _collect_signature(project: Project) -> dict[str, str]:
    manifest = project.manifest
    return {
        "inputs": _to_json({name: spec.model_dump(mode="json") for name, spec in manifest.inputs.items()}),
        "outputs": _to_json(manifest.outputs),
        "dims": _to_json({name: limit.model_dump(mode="json") for name, limit in manifest.dim_limits().items()}),
    }


def _collect_section(project: Project, name: str) -> dict[str, str]:
    fields = getattr(project.manifest, name).model_dump(mode="json")
    return {f"{name}.{field}": _to_json(value) for field, value in fields.items()}


def _collect_trace_seed(project: Project) -> dict[str, str]:
    """Return the seed of the example that is traced."""
    return {"parity.seed": _to_json(project.manifest.parity.seed)}


def _collect_versions(*tools: str) -> dict[str, str]:
    return {f"tool:{name}": installed_distributions.tool_version(name) for name in tools}


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=False)
