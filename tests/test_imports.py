"""The import law: who may import what, held from outside by processes and from inside by the source."""

import ast
import json
import sys

import pytest
from projects import ROOT, python

HEAVY = {"torch", "onnx", "onnxsim", "onnxscript", "jinja2", "transformers"}
BUILD_SIDE = {
    f"packager.{name}"
    for name in (
        "building", "pipeline", "source", "samples", "signature", "optimize", "graph_file", "onnx_side", "jobs",
        "candidates", "fallback", "export", "checkpoint", "manifest", "schema", "vet", "work", "draws", "results",
        "recall", "parity.reference", "parity.noise", "parity.coverage",
        "bundle.assemble", "bundle.writer", "bundle.readme",
    )
}  # fmt: skip


def imported(code, *arguments):
    """Which modules a process has imported when the code is done."""
    done = python(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))", *arguments)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_packager_imports_nothing_heavy():
    found = imported("import packager")
    assert not found & {*HEAVY, "onnxruntime", "numpy", "pydantic", "yaml", "rich", "click", "safetensors"}
    assert not {one for one in found if one.startswith("packager.")}


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
    assert not found & BUILD_SIDE


def test_only_an_archive_takes_time_for_temporary_folders():
    assert not imported("import packager.runtime.loader, onnxruntime") & {"tempfile", "shutil", "zipfile"}


def test_loading_an_archive_imports_nothing_heavy_either(archived):
    found = imported("import sys, packager\npackager.load(sys.argv[1])", archived)
    assert not found & {*HEAVY, "pydantic", "yaml", "rich", "click", "zipfile"}
    assert not found & BUILD_SIDE


def test_a_selftest_needs_no_torch_either(built):
    found = imported("import sys, packager\npackager.load(sys.argv[1], selftest=True)", built.bundle)
    assert not found & {*HEAVY, "pydantic"}


def test_verifying_without_torch_imports_no_onnx_and_no_build_side(built):
    code = "import sys; sys.modules['torch'] = None\nimport packager\nassert packager.verify(sys.argv[1]).ok"
    found = imported(code, built.bundle)
    assert not found & (HEAVY - {"torch"})
    assert not found & (BUILD_SIDE - {"packager.export.graph.messages"})


def test_comparing_bundles_imports_onnx_for_models_that_differ_and_torch_never(built):
    found = imported("import sys, packager\nassert packager.diff(sys.argv[1], sys.argv[1]).same", built.bundle)
    assert "packager.differences" in found
    assert not found & {*HEAVY, "pydantic", "yaml", "rich", "click"}
    assert not found & BUILD_SIDE
    found = imported("from packager.differences import onnx_model")
    assert "onnx" in found
    assert not found & ((HEAVY - {"onnx"}) | BUILD_SIDE)


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
    ours = {
        "packager.checkpoint",
        "packager.checkpoint.safetensors_header",
        "packager.checkpoint.sharded_index",
        "packager.common.strict_json",
        "packager.checkpoint.locate",
        "packager.errors",
        "packager.checkpoint.run_folder",
        "packager.common",
        "packager.common.file_lock",
        "packager.common.hashing",
        "packager.common.lazy_import",
    }
    assert {one for one in found if one.startswith("packager.")} == ours
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
    ours = {one for one in found if one.startswith("packager.")}
    assert ours == {"packager.cli", "packager.errors", "packager.cli.stdio"}


@pytest.mark.parametrize("command", ["build", "vet"])
def test_a_bad_manifest_is_answered_before_torch_is_imported(tmp_path, command):
    (tmp_path / "package.yaml").write_text("schema: 1\nnme: x\n")
    code = (
        "import sys\nfrom packager.cli import cli\nfrom packager.errors import ManifestInvalid\n"
        "try:\n    cli(sys.argv[1:], standalone_mode=False)\n"
        "except ManifestInvalid:\n    pass\nelse:\n    sys.exit(9)"
    )
    assert not imported(code, command, tmp_path / "package.yaml") & {*HEAVY, "onnxruntime"}


def test_the_onnx_side_does_not_import_torch():
    # As the child does it: torch's name is taken before anything else is imported.
    code = "import sys; sys.modules['torch'] = None\nimport onnxsim\nfrom packager import optimize"
    found = imported(code)
    assert not {one for one in found if one.startswith("torch.")}
    assert "packager.model.loader" not in found


# -- in the source --------------------------------------------------------------------------


def imports_of(path, *, inside_functions=True):
    """Every module that a file imports, but for those of type checking."""
    tree = ast.parse(path.read_text())
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            found.update(one.name for one in node.names)
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
            if (ROOT / node.module.replace(".", "/")).is_dir():
                found.update(f"{node.module}.{one.name}" for one in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {one for one in found if one.partition(".")[0] not in sys.stdlib_module_names}


def reached(start):
    """What a module of packager imports, and what those import, on the way in (not inside functions)."""
    seen, waiting = {}, [start]
    while waiting:
        name = waiting.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if not path.is_file():
            path = ROOT / name.replace(".", "/") / "__init__.py"
        if name in seen or not path.is_file():
            continue
        seen[name] = imports_of(path, inside_functions=False)
        waiting += [one for one in seen[name] if one.startswith("packager")]
    return seen


def outside(seen):
    return {one.partition(".")[0] for found in seen.values() for one in found} - {"packager"}


COMPARISON = {f"packager.parity.{name}" for name in ("compare", "decisions", "gate", "limits")}


@pytest.mark.parametrize("name", sorted(COMPARISON))
def test_the_comparison_is_numpy_only(name):
    seen = reached(name)
    assert outside(seen) == {"numpy"}
    assert set(seen) <= {"packager.parity", *COMPARISON}
    assert imports_of(ROOT / f"{name.replace('.', '/')}.py") <= {"numpy", "numpy.typing", *COMPARISON}


@pytest.mark.parametrize("path", sorted((ROOT / "packager/runtime").glob("*.py")), ids=lambda path: path.name)
def test_the_runtime_reaches_torch_in_one_module_and_the_build_side_in_none(path):
    seen = reached(f"packager.runtime.{path.stem}".removesuffix(".__init__"))
    allowed = {"numpy", "onnxruntime", "safetensors"}
    if path.name == "torchscript_backend.py":
        allowed |= {"torch"}
    assert outside(seen) <= allowed
    assert not set(seen) & BUILD_SIDE
    inside = imports_of(path)
    assert not {one for one in inside if one.partition(".")[0] == "onnx"}
    assert not inside & BUILD_SIDE


def test_only_the_modules_of_the_build_and_the_fallback_import_torch_at_the_top():
    found = {
        path.relative_to(ROOT / "packager").as_posix()
        for path in (ROOT / "packager").rglob("*.py")
        if any(one.partition(".")[0] == "torch" for one in imports_of(path, inside_functions=False))
    }
    light = {"cli.py", "__init__.py", "building.py", "manifest.py", "errors.py", "samples.py", "signature.py"}
    light |= {f"checkpoint/{name}.py" for name in ("__init__", "locate", "header", "about")}
    light |= {
        "preflight.py",
        "identity.py",
        "again.py",
        "afresh.py",
        "inspect.py",
        "optimize.py",
        "onnx_side.py",
        "jobs.py",
        "graph_file.py",
        "runtime/loader.py",
        "bundle/verify.py",
    }
    assert "source.py" in found
    assert not found & light


def test_the_command_line_imports_its_worlds_inside_its_commands():
    top = imports_of(ROOT / "packager/cli.py", inside_functions=False)
    assert top == {"click", "packager", "packager.cli.stdio", "packager.errors"}
