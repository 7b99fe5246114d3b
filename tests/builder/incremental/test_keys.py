"""Which cache keys change with which input of a build: two tables, without torch and without a build."""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from packager.builder.incremental import environment, keys
from packager.builder.incremental.store import CacheEntry
from packager.common import installed_distributions
from packager.common.hashing import sha256_file
from packager.model.code_dependencies import CodeDependencies
from packager.project.manifest import Manifest, load_manifest

# Stages whose keys change together. The bundle's key covers all inputs of all stages.
BUNDLE = {"bundle"}
REFERENCE = {"reference", "bundle"}
TORCHSCRIPT = {"torchscript", "bundle"}
ONNX = {"onnx", "bundle"}
MODULE = {"reference", "torchscript", "onnx", "bundle"}  # the eager module, from which all three start
PARITY = {"torchscript parity", "onnx parity"}

# A manifest in which every optional part is there, so that every field can be changed.
MANIFEST = {
    "schema": 1,
    "name": "net",
    "version": "1.0.0",
    "model": {"entry": "model.py:Net", "kwargs": {"width": 4}},
    "checkpoint": {"path": "best.pt"},
    "inputs": {"x": {"dtype": "float32", "shape": ["batch", 4], "range": [0, 1]}},
    "outputs": ["scores"],
    "dims": {"batch": {"min": 1, "max": 8}},
    "parity": {
        "tolerance": {"atol": 1e-5, "rtol": 1e-4},
        "data": "real.npz",
        "decisions": {"scores": {"rule": "argmax", "axis": 1}},
    },
    "assets": ["labels.txt"],
}
UNCHANGEABLE = {"schema"}  # it has one value

# Every field of the manifest: a different value, and the keys that change with it. `*` is the only key of a mapping.
# The manifest's digest, which only the bundle's key contains, is kept the same here: it has a row of its own below.
FIELDS = {
    "name": ("other", BUNDLE),
    "version": ("1.0.1", BUNDLE),
    "description": ("A net", BUNDLE),
    "license": ("MIT", BUNDLE),
    "authors": (["somebody"], BUNDLE),
    "metadata": ({"a": 1}, BUNDLE),
    "model.entry": ("model.py:Other", MODULE),
    "model.kwargs": ({"width": 5}, MODULE),
    "model.dtype": ("float64", MODULE),
    "checkpoint.path": ("copy.pt", BUNDLE),  # its content has a row below
    "checkpoint.weights": ("ema", MODULE),
    "checkpoint.prefix": ("module.", MODULE),
    "checkpoint.strict": (False, MODULE),
    "checkpoint.allow_missing": (["head.*"], MODULE),
    "checkpoint.allow_unexpected": (["head.*"], MODULE),
    "checkpoint.sha256": ("d" * 64, BUNDLE),  # a build refuses a checkpoint with a different digest
    "checkpoint.trust_pickle": (True, MODULE),
    "inputs": ({**MANIFEST["inputs"], "y": {"dtype": "float32", "shape": ["batch"]}}, MODULE),
    "inputs.*.dtype": ("float64", MODULE),
    "inputs.*.shape": (["batch", 5], MODULE),
    "inputs.*.range": ([0, 2], MODULE),
    "outputs": (["logits"], MODULE),
    "dims": ({}, MODULE),
    "dims.*.min": (2, MODULE),
    "dims.*.max": (9, MODULE),
    "export.opset": (18, ONNX),
    "export.exporter": ("torch-export", ONNX),
    "export.required": (False, ONNX),
    "optimize.simplify": (False, ONNX),
    "optimize.level": ("basic", ONNX),
    "torchscript.method": ("script", TORCHSCRIPT | ONNX),  # a graph may be exported from the program
    "parity.effort": ("thorough", REFERENCE),
    "parity.samples": (9, REFERENCE),
    "parity.seed": (1, MODULE),  # of the example that is traced, too
    "parity.tolerance": ("auto", REFERENCE),
    "parity.tolerance.atol": (1e-6, REFERENCE),
    "parity.tolerance.rtol": (1e-5, REFERENCE),
    "parity.data": (None, REFERENCE),
    "parity.decisions": ({}, REFERENCE),
    "parity.decisions.*.rule": ("top-5", REFERENCE),
    "parity.decisions.*.axis": (0, REFERENCE),
    "target.providers": (["CUDAExecutionProvider", "CPUExecutionProvider"], ONNX | {"onnx parity"}),
    "assets": ([], BUNDLE),
}

# Every tool whose version a key contains, and the keys that change with it.
TOOLS = {
    "packager": BUNDLE,  # its code has a row below
    "torch": MODULE | {"torchscript parity"},
    "numpy": MODULE,
    "safetensors": MODULE,
    "onnx": ONNX,
    "onnx_ir": ONNX,
    "onnxscript": ONNX,
    "onnxsim": ONNX,
    "onnxruntime": ONNX | {"onnx parity"},
    "jinja2": BUNDLE,
    "markupsafe": BUNDLE,
    "pydantic": BUNDLE,
    "pydantic_core": BUNDLE,
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that the keys are made from. `setting` is the value of an environment variable of the CPU's kernels.

    The entries are results of stages that parity is measured on. Files lie in `folder`, package's own in `own_code`.
    """

    folder: Path
    own_code: Path
    templates: Path
    manifest: Mapping[str, object]
    dependencies: CodeDependencies
    reference: CacheEntry
    torchscript: CacheEntry
    onnx: CacheEntry
    manifest_sha256: str = "0" * 64
    checkpoint_sha256: str = "c" * 64
    tools: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict.fromkeys(TOOLS, "1.0"))
    packages: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"timm": "1.0 abc", "einops": "2.0 abc"})
    python: tuple[int, int, int] = (3, 11, 0)
    processor: str = "x86_64"
    cores: int = 2
    setting: str | None = None

    def write(self, path: str, text: str) -> "Inputs":
        """Change a file in place."""
        (self.folder / path).write_text(text)
        return self

    def depend(self, **dependencies: object) -> "Inputs":
        """Change what the code depends on."""
        return dataclasses.replace(self, dependencies=dataclasses.replace(self.dependencies, **dependencies))

    def set_field(self, path: str, value: object) -> "Inputs":
        """Change a field of the manifest, as `FIELDS` names it."""
        manifest = json.loads(json.dumps(self.manifest))
        section: dict[str, object] = manifest
        *parents, name = path.split(".")
        for parent in parents:
            section = section.setdefault(next(iter(section)) if parent == "*" else parent, {})
        assert section.get(name) != value
        section[name] = value
        return dataclasses.replace(self, manifest=manifest)

    def collect(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Mapping[str, str]]:
        """Return the inputs of every stage's key."""
        with monkeypatch.context() as patch:
            patch.setattr(sys, "version_info", self.python)
            patch.setattr(environment.os, "uname", lambda: types.SimpleNamespace(machine=self.processor))
            patch.setattr(environment, "count_cores", lambda: self.cores)
            patch.setattr(environment, "PACKAGE", self.own_code)
            patch.setattr(keys, "data_folder", lambda name: self.templates)
            patch.setattr(installed_distributions, "tool_version", self.tools.__getitem__)
            patch.setattr(installed_distributions, "distribution_identity", lambda name, sha256: self.packages[name])
            if self.setting is not None:
                patch.setenv("ATEN_CPU_CAPABILITY", self.setting)
            environment.collect_machine.cache_clear()
            environment.digest_own_code.cache_clear()
            try:
                return self._make_keys()
            finally:
                environment.collect_machine.cache_clear()
                environment.digest_own_code.cache_clear()

    def _make_keys(self) -> dict[str, Mapping[str, str]]:
        path = self.folder / "package.yaml"
        path.write_text(json.dumps(self.manifest))
        project = dataclasses.replace(load_manifest(path), sha256=self.manifest_sha256)
        module = keys.collect_module_inputs(project, self.checkpoint_sha256, self.dependencies, sha256_file)
        torchscript, onnx = keys.make_torchscript_key(project, module), keys.make_onnx_key(project, module)
        assets = {name: self.folder / name for name in project.manifest.assets}
        made = [
            keys.make_reference_key(project, module, sha256_file),
            torchscript,
            onnx,
            keys.make_parity_key(torchscript, self.torchscript, self.reference, project),
            keys.make_parity_key(onnx, self.onnx, self.reference, project),
            keys.make_bundle_key(project, module, assets, sha256_file),
        ]
        return {key.stage: key.inputs for key in made}


Change = Callable[[Inputs], Inputs]


def _write_template(inputs: Inputs, name: str) -> Inputs:
    (inputs.templates / name).write_text("changed")
    return inputs


def _write_own_code(inputs: Inputs, name: str) -> Inputs:
    (inputs.own_code / name).write_text("changed = True")
    return inputs


def _replace(**changes: object) -> Change:
    return lambda inputs: dataclasses.replace(inputs, **changes)


# Every other input: how it changes, and the keys that change with it.
OTHER_INPUTS: dict[str, tuple[Change, set[str]]] = {
    "the text of the manifest": (_replace(manifest_sha256="1" * 64), BUNDLE),
    "the weights": (_replace(checkpoint_sha256="d" * 64), MODULE),
    "a file of the code": (lambda inputs: inputs.write("model.py", "changed = True"), MODULE),
    "a file of the code outside the project": (lambda inputs: inputs.write("../library/helper.py", "B = 2"), MODULE),
    "one module less": (lambda inputs: inputs.depend(modules={"model": "model.py"}), MODULE),
    "a file that the code reads": (lambda inputs: inputs.write("factor.txt", "3"), MODULE),
    "one file less that the code reads": (lambda inputs: inputs.depend(read_files=()), MODULE),
    "a module that could be imported": (lambda inputs: inputs.write("fast.py", ""), MODULE),
    "a module that could be imported from elsewhere": (lambda inputs: inputs.write("../library/fast.py", ""), MODULE),
    "one folder less that is searched": (lambda inputs: inputs.depend(searched_folders=(".",)), MODULE),
    "a package of the code": (_replace(packages={"timm": "1.1 abc", "einops": "2.0 abc"}), MODULE),
    "the files of a package of the code": (_replace(packages={"timm": "1.0 abc", "einops": "2.0 def"}), MODULE),
    "one package less": (lambda inputs: inputs.depend(packages=("timm",)), MODULE),
    "the real inputs": (lambda inputs: inputs.write("real.npz", "changed"), REFERENCE),
    "the name of the real inputs": (
        lambda inputs: inputs.write("copy.npz", "x").set_field("parity.data", "copy.npz"),
        BUNDLE,
    ),
    "an asset": (lambda inputs: inputs.write("labels.txt", "b"), BUNDLE),
    "a template": (lambda inputs: _write_template(inputs, "README.md.j2"), BUNDLE),
    "one more template": (lambda inputs: _write_template(inputs, "macros.j2"), BUNDLE),
    "Python": (_replace(python=(3, 11, 1)), MODULE),
    "the processor": (_replace(processor="aarch64"), MODULE | PARITY),
    "the number of cores": (_replace(cores=3), MODULE | PARITY),
    "a setting of the CPU's kernels": (_replace(setting="avx2"), MODULE | PARITY),
    "packager's code": (lambda inputs: _write_own_code(inputs, "loader.py"), MODULE | PARITY),
    "one more file of packager's code": (lambda inputs: _write_own_code(inputs, "more.py"), MODULE | PARITY),
    "the reference's values": (_replace(reference=CacheEntry({"noise": 2}, {"outputs": "a" * 64})), PARITY),
    "the reference's outputs": (_replace(reference=CacheEntry({"noise": 1}, {"outputs": "b" * 64})), PARITY),
    "the fallback": (_replace(torchscript=CacheEntry({}, {"model.ts": "b" * 64})), {"torchscript parity"}),
    "the form of the fallback": (
        _replace(torchscript=CacheEntry({"a": 1}, {"model.ts": "a" * 64})),
        {"torchscript parity"},
    ),
    "the graph": (_replace(onnx=CacheEntry({}, {"model.onnx": "b" * 64})), {"onnx parity"}),
    "the graph's record": (_replace(onnx=CacheEntry({"a": 1}, {"model.onnx": "a" * 64})), {"onnx parity"}),
}


def make_inputs(root: Path) -> Inputs:
    """Return inputs of every kind, as small files below a folder that does not exist yet."""
    folder, library, own_code, templates = (root / name for name in ("project", "library", "own", "templates"))
    for path in (folder, library, own_code, templates):
        path.mkdir(parents=True)
    for name, text in {"model.py": "", "factor.txt": "2", "real.npz": "x", "labels.txt": "a"}.items():
        (folder / name).write_text(text)
    (library / "helper.py").write_text("B = 1")
    (own_code / "loader.py").write_text("")
    (templates / "README.md.j2").write_text("")
    modules = {"model": "model.py", "helper": "../library/helper.py"}
    return Inputs(
        folder,
        own_code,
        templates,
        MANIFEST,
        CodeDependencies(modules, ("factor.txt",), (".", "../library"), ("einops", "timm"), False),
        reference=CacheEntry({"noise": 1}, {"outputs": "a" * 64}),
        torchscript=CacheEntry({}, {"model.ts": "a" * 64}),
        onnx=CacheEntry({}, {"model.onnx": "a" * 64}),
    )


def _field_changes() -> dict[str, tuple[Change, set[str]]]:
    return {
        f"field {path}": (lambda inputs, path=path, value=value: inputs.set_field(path, value), stages)
        for path, (value, stages) in FIELDS.items()
    }


def _tool_changes() -> dict[str, tuple[Change, set[str]]]:
    return {
        f"version of {name}": (_replace(tools={**dict.fromkeys(TOOLS, "1.0"), name: "1.1"}), stages)
        for name, stages in TOOLS.items()
    }


CHANGES = {**_field_changes(), **_tool_changes(), **OTHER_INPUTS}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_alters_the_keys_of_the_stages_that_depend_on_it_and_no_others(tmp_path, monkeypatch, change):
    apply, stages = CHANGES[change]
    inputs = make_inputs(tmp_path / "inputs")
    before = inputs.collect(monkeypatch)
    after = apply(inputs).collect(monkeypatch)
    assert {stage for stage in before if before[stage] != after[stage]} == stages


def test_every_field_of_the_manifest_has_a_row():
    assert set(list_fields(Manifest)) == {*FIELDS, *UNCHANGEABLE}


def test_every_input_of_every_key_is_changed_by_a_row(tmp_path, monkeypatch):
    before = make_inputs(tmp_path / "before").collect(monkeypatch)
    unchanged = {(stage, name) for stage, values in before.items() for name in values}
    for number, (apply, _) in enumerate(CHANGES.values()):
        after = apply(make_inputs(tmp_path / str(number))).collect(monkeypatch)
        unchanged = {(stage, name) for stage, name in unchanged if before[stage][name] == after[stage].get(name)}
    assert unchanged == {("bundle", f"manifest.{field}") for field in UNCHANGEABLE}


def list_fields(model, prefix=""):
    """Return the paths of a model's fields, nested ones with dots; a section's own fields stand for the section."""
    paths = []
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        nested, in_mapping = find_models(field.annotation)
        if field.annotation not in nested:
            paths.append(path)
        for section in nested:
            paths += list_fields(section, f"{path}.*." if in_mapping else f"{path}.")
    return paths


def find_models(annotation):
    """Return the models that an annotation contains, and whether they are the values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], False
    arguments = [find_models(argument) for argument in typing.get_args(annotation)]
    in_mapping = typing.get_origin(annotation) is dict
    return [model for models, _ in arguments for model in models], in_mapping or any(inner for _, inner in arguments)
