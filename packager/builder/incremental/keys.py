"""What goes into each stage of a build: the contents, the fields of the manifest that it reads, the versions.

    reference            the module on every case, and its noise        code, weights, inputs, parity, machine
    torchscript          the fallback                                   code, weights, inputs, torchscript
    onnx                 the graph, exported, simplified, optimized     code, weights, inputs, export, optimize
    torchscript parity   the fallback judged                            what came out of two of the above
    onnx parity          the graph judged                               likewise
    bundle               everything together                            the manifest as a whole, assets, all versions

A field that a stage does not read is not among its inputs, so that changing it leaves the stage as it
was. A stage that reads another's output has that output's digest among its inputs, not what led to it.

The inputs of a bundle can be evaluated again without reading the manifest: see `unchanged`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.checkpoint.locate import digest_checkpoint, locate_files
from packager.common import distributions
from packager.common.cache_store import CacheEntry, CacheKey
from packager.common.paths import PACKAGE, data_folder
from packager.model.code_dependencies import list_importable

if TYPE_CHECKING:
    from packager.model.code_dependencies import CodeDependencies
    from packager.project.manifest import Project

TOOLCHAIN = ("packager", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy")
"""The tools whose code decides what is in the artifacts."""

_BUNDLE_WRITERS = ("jinja2", "markupsafe", "pydantic", "pydantic_core", "onnx_ir", "safetensors")  # of the other files
_CPU_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")

FileHasher = Callable[[Path], str]


def collect_module_inputs(
    project: Project, checkpoint_sha256: str, dependencies: CodeDependencies, sha256: FileHasher
) -> dict[str, str]:
    """What the eager module comes from. Raises OSError where a file of its code is gone."""
    manifest = project.manifest
    fields = manifest.checkpoint.model_dump(mode="json", exclude={"path", "sha256"})
    return {
        **dependencies.collect_inputs(project.folder, sha256),
        **{f"checkpoint.{name}": _to_json(value) for name, value in fields.items()},
        "checkpoint": checkpoint_sha256,
        "model.entry": manifest.model.entry or "",
        "model.kwargs": _to_json(manifest.model.kwargs),
        **_collect_versions("numpy", "torch", "safetensors"),
        **collect_python_version(),
        **collect_machine(),  # a constructor may compute what depends on it
        **digest_own_code(),
    }


def make_reference_key(project: Project, source: Mapping[str, str], sha256: FileHasher) -> CacheKey:
    """The eager module on every case."""
    parity = project.manifest.parity.model_dump(mode="json", exclude={"data"})
    data = project.manifest.parity.data
    return CacheKey(
        "reference",
        {
            **source,
            **_collect_signature(project),
            **{f"parity.{name}": _to_json(value) for name, value in parity.items()},
            "parity.data": sha256(project.folder / data) if data is not None else "null",
        },
    )


def make_torchscript_key(project: Project, source: Mapping[str, str]) -> CacheKey:
    """The fallback before it is judged."""
    return CacheKey(
        "torchscript",
        {
            **source,
            **_collect_signature(project),
            **_collect_section(project, "torchscript"),
            "parity.seed": _get_trace_seed(project),
        },
    )


def make_onnx_key(project: Project, source: Mapping[str, str]) -> CacheKey:
    """The graph before it is judged."""
    return CacheKey(
        "onnx",
        {
            **source,
            **_collect_signature(project),
            **_collect_section(project, "export"),
            **_collect_section(project, "optimize"),
            **_collect_section(project, "torchscript"),  # the trace or script that it may be exported from
            "parity.seed": _get_trace_seed(project),
            "target.providers": _to_json(project.manifest.target.providers),
            **_collect_versions("onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime"),
        },
    )


def make_parity_key(made: CacheKey, output: CacheEntry, reference: CacheEntry, project: Project) -> CacheKey:
    """An artifact on the cases of the reference."""
    runs_on = (
        {"target.providers": _to_json(project.manifest.target.providers), **_collect_versions("onnxruntime")}
        if made.stage == "onnx"
        else _collect_versions("torch")
    )
    return CacheKey(
        f"{made.stage} parity",
        {
            "artifact": output.digest,
            "reference": reference.digest,
            **runs_on,
            **collect_machine(),
            **digest_own_code(),
        },
    )


def make_bundle_key(
    project: Project, source: Mapping[str, str], assets: Mapping[str, Path], sha256: FileHasher
) -> CacheKey:
    """The whole bundle."""
    fields = project.manifest.model_dump(mode="json", by_alias=True)
    fields["checkpoint"]["path"] = project.checkpoint_display_name
    return CacheKey(
        "bundle",
        {
            **source,
            **{f"manifest.{name}": _to_json(value) for name, value in fields.items()},
            "manifest": project.sha256,
            **{name: sha256(path) for name, path in files(project, assets).items()},
            **_collect_versions(*TOOLCHAIN, *_BUNDLE_WRITERS),
        },
    )


def files(project: Project, assets: Mapping[str, Path]) -> dict[str, Path]:
    """Return the paths of the data, the assets and the templates by the name of the bundle's input."""
    data = project.manifest.parity.data
    return {
        **({"parity.data": project.folder / data} if data else {}),
        **{f"asset:{name}": path for name, path in assets.items()},
        **_templates(),
    }


def _templates() -> dict[str, Path]:
    """What the bundle's README is rendered from."""
    return {f"template:{path.name}": path for path in sorted(data_folder("templates").iterdir())}


# -- the same inputs, evaluated again ---------------------------------------------------------

_FILES = ("code", "read", "asset", "parity.data", "manifest")  # the kinds whose value is a file's SHA-256
_SURROUNDINGS = ("python", "machine", "cores", "environment")


@dataclass(frozen=True)
class RecordedInputs:
    """The inputs of a bundle by name, as they were when it was built.

    `files` are the paths of those that are digests of files; `folder` is the manifest's, absolute. A kind of input is
    what stands before the colon of its name.
    """

    values: Mapping[str, str]
    files: Mapping[str, Path]
    folder: Path


def unchanged(recorded: RecordedInputs, sha256: FileHasher) -> bool:
    """Whether every input of a bundle still has its value, and no template or setting has come to them.

    False where the kind of an input is unknown here, so that a build goes on until `_present` evaluates it.
    The caller compares `own_times`. Raises OSError and `UserError` where an input cannot be read.
    """
    present = {name: _present(name, recorded, sha256) for name in recorded.values}
    # As a whole, since another one may have come.
    templates = {name: sha256(path) for name, path in _templates().items()}
    return {**present, **templates, **collect_machine()} == dict(recorded.values)


def _present(name: str, recorded: RecordedInputs, sha256: FileHasher) -> str | None:
    """The value that an input has now; None where there is no way to find it."""
    kind, _, subject = name.partition(":")
    if kind in _FILES:
        return sha256(recorded.files[name]) if name in recorded.files else None
    if name == "checkpoint":
        return _present_checkpoint(recorded, sha256)
    if kind == "importable":
        return list_importable(recorded.folder / subject)
    if kind == "package":
        return distributions.distribution_identity(subject, sha256)
    if kind == "tool":
        return distributions.tool_version(subject)
    if kind in _SURROUNDINGS:
        return {**collect_python_version(), **collect_machine()}.get(name)
    follows = name == "packager" or _is_field(name, recorded.values)
    return recorded.values[name] if follows else None


def _present_checkpoint(recorded: RecordedInputs, sha256: FileHasher) -> str | None:
    """The digest of the checkpoint's files, or the pin of one that only a server has."""
    fields = json.loads(recorded.values.get("manifest.checkpoint", "{}"))
    path = recorded.files.get("checkpoint")
    if path is None:
        pin: str | None = fields.get("sha256")
        return pin
    return digest_checkpoint(locate_files(path, weights=fields.get("weights", "auto"), sha256=sha256), sha256)


def _is_field(name: str, values: Mapping[str, str]) -> bool:
    """Whether an input is a field of the manifest, which cannot change while its digest does not."""
    section, _, field = name.partition(".")
    fields = json.loads(values.get(f"manifest.{section}", "null"))
    return "manifest" in values and (section == "manifest" or (isinstance(fields, dict) and field in fields))


# -- the parts ------------------------------------------------------------------------------


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


def _get_trace_seed(project: Project) -> str:
    """The seed of the example that is traced."""
    return _to_json(project.manifest.parity.seed)


def _collect_versions(*tools: str) -> dict[str, str]:
    return {f"tool:{name}": distributions.tool_version(name) for name in tools}


@functools.cache
def digest_own_code() -> dict[str, str]:
    """Our own version of the stages: the digest of our code, so that no change of it is ever forgotten."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return {"packager": found.hexdigest()[:16]}


def digest_own_mtimes() -> str:
    """A digest of when our code was last changed: the same means that `own` is."""
    found = [
        (os.path.relpath(one.path, PACKAGE), one.stat().st_size, one.stat().st_mtime_ns)
        for place, _, _ in os.walk(PACKAGE)
        for one in os.scandir(place)
        if one.name.endswith(".py")
    ]
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def collect_python_version() -> dict[str, str]:
    """The version of the interpreter."""
    return {"python": ".".join(str(one) for one in sys.version_info[:3])}


@functools.cache
def collect_machine() -> dict[str, str]:
    """The kind of machine: measured errors are its own, and nothing else in a bundle is."""
    lines: tuple[str, ...] = ()
    if sys.platform == "linux":
        text = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
        lines = tuple(line for line in text.splitlines() if line.startswith(("model name", "flags", "Features")))
    name = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    described = "\n".join((sys.platform, name, *lines))
    settings = {f"environment:{one}": os.environ[one] for one in _CPU_SETTINGS if one in os.environ}
    return {
        **settings,
        "machine": f"{name} {hashlib.sha256(described.encode()).hexdigest()[:12]}",
        "cores": str(count_cores()),
    }


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=False)
