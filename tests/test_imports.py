"""The import law: which modules may import which, checked in real processes and in the source."""

import ast
import json
import sys

import pki
import pytest
from projects import ROOT, python

import packager

HEAVY = {"torch", "onnx", "onnxsim", "onnxscript", "jinja2", "transformers"}
BUILD_SIDE = tuple(
    f"packager.{name}"
    for name in (
        "builder", "checkpoint", "export", "model", "project", "bundle.writer", "bundle.readme",
        "parity.cases", "parity.coverage", "parity.diagnosis", "parity.forward",
        "parity.noise_variants", "parity.noise_cases", "parity.noise_measurement",
        "parity.nudges", "parity.reference", "parity.results", "parity.ties",
    )
)  # fmt: skip

RECORD_TYPES = {"packager.export", "packager.export.graph", "packager.export.graph.messages"}
"""Plain values that parity.json records and the worker answers with: numpy and the standard library alone."""


def build_side(modules):
    """Return the modules that only a build needs."""
    return {module for module in modules if any(f"{module}.".startswith(f"{room}.") for room in BUILD_SIDE)}


def own(modules):
    """Return the modules of packager, without the package itself."""
    return {module for module in modules if module.startswith("packager.")}


def imported(code, *arguments):
    """Return the modules that a process has imported after it ran the code."""
    done = python(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))", *arguments)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_packager_imports_nothing_heavy():
    found = imported("import packager")
    assert not found & {*HEAVY, "onnxruntime", "numpy", "pydantic", "yaml", "rich", "click", "safetensors"}
    assert own(found) == {"packager.common", "packager.common.lazy_import"}


def test_loading_and_running_a_bundle_imports_neither_torch_nor_onnx_nor_the_build_side(built):
    code = (
        "import sys, numpy, packager\n"
        "bundle = packager.load(sys.argv[1])\n"
        "out = bundle.run({'image': numpy.zeros((2, 1, 8, 8), numpy.float32)})\n"
        "assert out['logits'].shape == (2, 10) and bundle.backend == 'onnx'"
    )
    found = imported(code, built.bundle)
    assert "onnxruntime" in found
    assert not found & {*HEAVY, "pydantic", "yaml", "rich", "click"}
    assert not build_side(found)


def test_only_an_archive_takes_time_for_temporary_folders():
    assert not imported("import packager.runtime.loader, onnxruntime") & {"tempfile", "shutil", "zipfile"}


def test_loading_an_archive_imports_nothing_heavy_either(archived):
    found = imported("import sys, packager\npackager.load(sys.argv[1])", archived)
    assert not found & {*HEAVY, "pydantic", "yaml", "rich", "click", "zipfile"}
    assert not build_side(found)


def test_measuring_a_bundle_imports_libraries_in_the_measuring_processes_alone(built):
    code = (
        "import sys; from pathlib import Path; from packager.benchmark.run import bench\n"
        "bench(Path(sys.argv[1]), trust_program=True, batches=(1,), threads=(1,), seconds=0.05)"
    )
    assert not imported(code, built.bundle) & {*HEAVY, "onnxruntime", "pydantic", "yaml", "rich", "click"}


def test_a_selftest_needs_no_torch_either(built):
    found = imported("import sys, packager\npackager.load(sys.argv[1], selftest=True)", built.bundle)
    assert not found & {*HEAVY, "pydantic"}


def test_only_a_key_imports_what_checks_a_signature(bundle, tmp_path):
    private, public = pki.write_key(tmp_path)
    packager.sign(bundle, key=private)
    code = "import sys, packager\npackager.load(sys.argv[1], public_key=sys.argv[2] if sys.argv[2:] else None)"
    assert not imported(code, bundle) & {"cryptography", "model_signing", "OpenSSL"}
    found = imported(code, bundle, public)
    assert "cryptography" in found
    assert not found & {*HEAVY, "pydantic", "model_signing", "OpenSSL", "securesystemslib", "sigstore"}


@pytest.mark.parametrize(
    ("missing", "extra"), [("model_signing", "sign"), ("OpenSSL", "sign"), ("cryptography", "sign")]
)
def test_signing_without_its_extra_says_what_to_install(bundle, tmp_path, missing, extra):
    private, public = pki.write_key(tmp_path)
    hide = f"import sys, packager\nsys.modules[{missing!r}] = None\n"
    done = python(hide + "packager.sign(sys.argv[1], key=sys.argv[2])", bundle, private)
    assert f"requires {missing}" in done.stderr and f"pip install 'torch-packager[{extra}]'" in done.stderr
    done = python(hide + "print(packager.load(sys.argv[1], public_key=sys.argv[2]))", bundle, public)
    if missing == "cryptography":
        assert "pip install 'torch-packager[verify-signature]'" in done.stderr
    else:
        assert "signature-missing" in done.stderr


def test_verifying_without_torch_imports_no_onnx_and_no_build_side(built):
    code = "import sys; sys.modules['torch'] = None\nimport packager\nassert packager.verify(sys.argv[1]).ok"
    found = imported(code, built.bundle)
    assert not found & (HEAVY - {"torch"})
    assert not build_side(found) - RECORD_TYPES


def test_only_the_child_that_replays_the_evidence_imports_onnxruntime(built):
    found = imported("import sys, packager\nassert packager.verify(sys.argv[1]).parity['onnx'] == 'pass'", built.bundle)
    assert not found & {*HEAVY, "onnxruntime"}
    found = imported("from packager.runtime import replay_process, bundled_onnx, check, onnx_backend")
    assert not found & {*HEAVY, "pydantic"}
    assert not build_side(found)


def test_comparing_bundles_imports_onnx_for_models_that_differ_and_torch_never(built):
    found = imported("import sys, packager\nassert packager.diff(sys.argv[1], sys.argv[1]).same", built.bundle)
    assert "packager.differences" in found
    assert not found & {*HEAVY, "pydantic", "yaml", "rich", "click"}
    assert not build_side(found)
    found = imported("from packager.differences import onnx_model")
    assert "onnx" in found
    assert not found & (HEAVY - {"onnx"})
    assert not build_side(found)


@pytest.mark.parametrize("target", ["triton", "kserve", "bentoml", "ray-serve", "docker"])
def test_exporting_a_bundle_needs_nothing_that_a_build_does(built, tmp_path, target):
    code = (
        "import sys\nfrom pathlib import Path\nfrom packager.deployment.exporter import export_bundle\n"
        "export_bundle(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))"
    )
    found = imported(code, built.bundle, target, tmp_path / "out")
    assert not found & HEAVY
    assert not build_side(found) - {"packager.bundle.writer", *RECORD_TYPES}


def test_a_checkpoint_is_located_and_described_without_a_tensor_library(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"x")
    code = (
        "import sys\nfrom pathlib import Path\nfrom packager.common.hashing import sha256_file\n"
        "from packager.checkpoint.locate import digest_checkpoint, locate_files\n"
        "assert len(digest_checkpoint(locate_files(Path(sys.argv[1])), sha256_file)) == 64\n"
    )
    found = imported(code, tmp_path / "best.pt")
    heavy = {*HEAVY, "onnxruntime", "numpy", "pydantic", "yaml", "rich", "click", "safetensors"}
    assert not found & heavy
    assert not build_side(found) - {
        "packager.checkpoint",
        "packager.common.archive_directory",
        "packager.checkpoint.locate",
        "packager.checkpoint.run_folder",
        "packager.checkpoint.safetensors_header",
        "packager.checkpoint.sharded_index",
    }
    found = imported("from packager.checkpoint import metadata, safetensors_header")
    assert not found & heavy
    assert not imported("import packager.cli.describe") & (HEAVY | {"safetensors"})


def test_looking_whether_a_build_has_anything_to_do_reads_no_manifest_and_no_checkpoint():
    found = imported("import packager.builder.incremental.up_to_date")
    assert not found & {*HEAVY, "onnxruntime", "numpy", "pydantic", "yaml", "rich", "safetensors"}
    assert not found & {
        "packager.checkpoint.open_files",
        "packager.checkpoint.state_dict",
        "packager.project.preflight",
    }


def test_the_command_imports_nothing_before_it_knows_what_to_do():
    found = imported("import packager.cli")
    assert "click" in found
    assert not found & {*HEAVY, "onnxruntime", "numpy", "pydantic", "yaml", "rich", "safetensors"}
    assert {module for module in own(found) if not module.startswith("packager.cli")} == {
        "packager.common", "packager.common.lazy_import", "packager.common.progress", "packager.errors"
    }  # fmt: skip
    assert not found & {"packager.cli.describe", "packager.cli.schemas"}


@pytest.mark.parametrize("command", ["build", "vet"])
def test_a_bad_manifest_is_answered_before_torch_is_imported(tmp_path, command):
    (tmp_path / "package.yaml").write_text("schema: 1\nnme: x\n")
    code = (
        "import sys\nfrom packager.cli.main import cli\nfrom packager.errors import ManifestInvalid\n"
        "try:\n    cli(sys.argv[1:], standalone_mode=False)\n"
        "except ManifestInvalid:\n    pass\nelse:\n    sys.exit(9)"
    )
    assert not imported(code, command, tmp_path / "package.yaml") & {*HEAVY, "onnxruntime"}


def test_the_worker_of_the_onnx_passes_does_not_import_torch():
    # Like the worker, block torch before anything else is imported.
    found = imported(
        "import sys; sys.modules['torch'] = None\nimport onnxsim\nfrom packager.export.passes import runner"
    )
    assert not {module for module in found if module.startswith("torch.")}
    assert not {module for module in found if module.startswith("packager.model")}


# -- in the source --------------------------------------------------------------------------


def imports_of(path, *, inside_functions=True):
    """Return the modules that a file imports, except for type checking."""
    tree = ast.parse(path.read_text())
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
            if (ROOT / node.module.replace(".", "/")).is_dir():
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {module for module in found if module.partition(".")[0] not in sys.stdlib_module_names}


def reached(start):
    """Map a module of packager, and each module imported with it, to its imports outside of functions."""
    seen, waiting = {}, [start]
    while waiting:
        name = waiting.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if not path.is_file():
            path = ROOT / name.replace(".", "/") / "__init__.py"
        if name in seen or not path.is_file():
            continue
        seen[name] = imports_of(path, inside_functions=False)
        waiting += [module for module in seen[name] if module.startswith("packager")]
    return seen


def outside(seen):
    """Return the packages other than packager that these modules import."""
    return {module.partition(".")[0] for found in seen.values() for module in found} - {"packager"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def files_in(room):
    return sorted((ROOT / "packager" / room).rglob("*.py"))


@pytest.mark.parametrize("path", files_in("parity/numerics"), ids=lambda path: path.name)
def test_the_comparison_is_numpy_only(path):
    seen = reached(module_name(path))
    assert outside(seen) == ({"numpy"} if path.name != "__init__.py" else set())
    numerics = {module_name(module) for module in files_in("parity/numerics")}
    assert set(seen) <= {"packager.parity", *numerics}
    assert imports_of(path) <= {"numpy", "numpy.typing", *numerics}


@pytest.mark.parametrize("path", files_in("runtime"), ids=lambda path: path.name)
def test_the_runtime_reaches_torch_in_the_fallbacks_and_the_build_side_in_no_module(path):
    seen = reached(module_name(path))
    extra = {"torchscript_backend.py": "torch", "exported_program_backend.py": "torch"}
    extra |= {"verify.py": "pydantic", "replay.py": "pydantic"}
    allowed = {"numpy", "onnxruntime", "safetensors", extra.get(path.name)}
    assert outside(seen) <= allowed
    assert not build_side(seen) - (RECORD_TYPES if path.name == "verify.py" else set())
    inside = imports_of(path)
    assert not {module for module in inside if module.partition(".")[0] == "onnx"}
    assert not build_side(inside)


@pytest.mark.parametrize(
    "room",
    [
        "__init__.py", "errors.py", "bundle", "cli", "common", "deployment", "differences", "project",
        "builder/api.py", "builder/pipeline.py", "builder/incremental",
        "checkpoint/__init__.py", "checkpoint/locate.py", "checkpoint/metadata.py", "checkpoint/safetensors_header.py",
        "export/graph", "export/passes", "parity/cases", "parity/numerics", "runtime/loader.py", "runtime/verify.py",
    ],
)  # fmt: skip
def test_a_room_that_is_light_does_not_import_torch_at_the_top(room):
    path = ROOT / "packager" / room
    files = [path] if path.suffix else files_in(room)
    assert files and all(file.is_file() for file in files)
    imports = {file: imports_of(file, inside_functions=False) for file in files}
    packages = {file: {module.partition(".")[0] for module in modules} for file, modules in imports.items()}
    assert [file for file in packages if "torch" in packages[file]] == []


def test_loading_a_model_imports_torch_at_the_top():
    assert "torch" in imports_of(ROOT / "packager/model/loader.py", inside_functions=False)


def test_the_modules_of_the_commands_import_the_rest_inside_functions():
    light = {"describe.py", "describe_onnx.py", "schemas.py"}  # imported by a command when it runs
    top = set().union(*(imports_of(path, inside_functions=False) for path in files_in("cli") if path.name not in light))
    assert {module for module in top if not module.startswith("packager.cli")} == {
        "click", "packager.common.progress", "packager.errors"
    }  # fmt: skip


def test_onnxruntime_is_imported_in_one_place_where_its_telemetry_is_off():
    importers = {
        path.relative_to(ROOT / "packager").as_posix()
        for path in (ROOT / "packager").rglob("*.py")
        if any(module.partition(".")[0] == "onnxruntime" for module in imports_of(path))
    }
    assert importers == {"common/ort.py", "export/passes/fuse.py"}
    lines = (ROOT / "packager/export/passes/fuse.py").read_text().splitlines()
    first, second = (line.strip() for line in lines if "onnxruntime" in line and line.strip().startswith("from"))
    assert first.startswith("from packager.common.ort") and second.startswith("from onnxruntime.transformers")
