"""`package export`: what every target has in common."""

import ast
import hashlib
import json
import os
import string

import pytest
from projects import ANOTHER, package, reseal

from packager.bundle.fingerprint import list_files
from packager.deployment.exporter import RECORD, export_bundle
from packager.deployment.source import open_source
from packager.errors import (
    DeploymentUnsupported,
    FingerprintWrong,
    IntegrityFailed,
    NotABundle,
    OutputRefused,
    PackagerError,
    ProgramNotTrusted,
)

TARGETS = {
    "triton": {"digits-cnn/config.pbtxt", "digits-cnn/1/model.onnx"},
    "kserve": {
        "inferenceservice.yaml", "model-repository/digits-cnn/config.pbtxt", "model-repository/digits-cnn/1/model.onnx",
    },
    "bentoml": {"service.py", "bentofile.yaml", "requirements.txt", "bundle/model.onnx", "bundle/FINGERPRINT"},
    "ray-serve": {"app.py", "requirements.txt", "bundle/model.onnx", "bundle/FINGERPRINT"},
    "docker": {"Dockerfile", ".dockerignore", "requirements.txt", "bundle/model.onnx", "bundle/FINGERPRINT"},
    "huggingface": {"onnx/model.onnx", "README.md", "config.json", "labels.txt"},
}  # fmt: skip


def read_all(folder):
    return {path: (folder / path).read_bytes() for path in list_files(folder)}


def edit_config(bundle, **fields):
    config = json.loads((bundle / "config.json").read_text())
    config.update(fields)
    (bundle / "config.json").write_text(json.dumps(config))
    return config


@pytest.fixture
def complete(bundle):
    """Return a bundle with transformers' config.json among its assets, which every target takes."""
    (bundle / "assets/config.json").write_text('{"model_type": "bert"}')
    edit_config(bundle, assets=["config.json", "labels.txt"])
    reseal(bundle)
    return bundle


@pytest.fixture
def without_onnx(bundle):
    """Return a bundle with the TorchScript fallback alone."""
    (bundle / "model.onnx").unlink()
    config = edit_config(bundle)
    config["artifacts"]["onnx"] = None
    edit_config(bundle, artifacts=config["artifacts"])
    reseal(bundle)
    return bundle


@pytest.mark.parametrize("target", TARGETS)
def test_an_export_has_the_files_of_its_target_and_a_record_of_them(complete, tmp_path, target):
    result = export_bundle(complete, target, tmp_path / "out")
    files = read_all(tmp_path / "out")
    assert set(files) == set(result.files) and TARGETS[target] < set(files)
    record = json.loads(files.pop(RECORD))
    assert record["fingerprint"] == result.fingerprint == (complete / "FINGERPRINT").read_text().strip()
    assert (record["target"], record["name"], record["version"]) == (target, "digits-cnn", "1.0.0")
    assert record["files"] == {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_the_model_is_copied_byte_by_byte_and_the_fingerprint_is_in_a_file_that_people_read(complete, tmp_path, target):
    fingerprint = export_bundle(complete, target, tmp_path / "out").fingerprint
    files = read_all(tmp_path / "out")
    models = [content for path, content in files.items() if path.endswith("model.onnx")]
    assert models == [(complete / "model.onnx").read_bytes()]
    texts = [path for path, content in files.items() if fingerprint.encode() in content]
    assert set(texts) - {RECORD, "bundle/FINGERPRINT", "bundle/README.md"}


@pytest.mark.parametrize("target", ["bentoml", "ray-serve", "docker"])
def test_a_service_gets_the_bundle_as_it_is(bundle, tmp_path, target):
    (bundle / "model.sig").write_bytes(b"signature")
    export_bundle(bundle, target, tmp_path / "out")
    assert read_all(tmp_path / "out/bundle") == read_all(bundle)
    assert package("verify", tmp_path / "out/bundle", "--no-parity").returncode == 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_folder_and_the_archive_of_a_bundle_give_the_same_bytes(complete, tmp_path, target):
    archive = tmp_path / "digits.zip"
    assert package("pack", complete, "-o", archive).returncode == 0
    export_bundle(complete, target, tmp_path / "first")
    export_bundle(archive, target, tmp_path / "elsewhere/second")
    assert read_all(tmp_path / "first") == read_all(tmp_path / "elsewhere/second")


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_bundle_is_refused_and_nothing_is_written(complete, tmp_path, target):
    with (complete / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityFailed):
        export_bundle(complete, target, tmp_path / "out/folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["triton", "kserve", "docker", "huggingface"])
def test_a_target_that_runs_onnx_alone_refuses_a_bundle_without_it(without_onnx, tmp_path, target, golden):
    with pytest.raises(DeploymentUnsupported) as caught:
        export_bundle(without_onnx, target, tmp_path / "out", trust_program=True)
    assert not (tmp_path / "out").exists()
    golden(str(caught.value), "error[deployment-unsupported]", "digits-cnn-1.0.0", target, "ONNX")


@pytest.mark.parametrize("target", ["bentoml", "ray-serve"])
def test_a_service_runs_a_fallback_if_the_bundle_is_trusted(without_onnx, tmp_path, target):
    with pytest.raises(ProgramNotTrusted):
        export_bundle(without_onnx, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fingerprint = (without_onnx / "FINGERPRINT").read_text().strip()
    export_bundle(without_onnx, target, tmp_path / "out", fingerprint=fingerprint)
    export_bundle(without_onnx, target, tmp_path / "out", trust_program=True)
    service = "service.py" if target == "bentoml" else "app.py"
    assert "packager.load(BUNDLE, fingerprint=FINGERPRINT)" in (tmp_path / "out" / service).read_text()
    assert any(line.startswith("torch==") for line in (tmp_path / "out/requirements.txt").read_text().splitlines())


@pytest.mark.parametrize("target", ["bentoml", "ray-serve"])
def test_a_service_never_runs_the_program_of_a_bundle_that_has_an_onnx_model(bundle, tmp_path, target):
    export_bundle(bundle, target, tmp_path / "out")
    service = "service.py" if target == "bentoml" else "app.py"
    assert "packager.load(BUNDLE, fingerprint=FINGERPRINT, fallback=False)" in (tmp_path / "out" / service).read_text()
    assert "torch==" not in (tmp_path / "out/requirements.txt").read_text().replace("torch-packager==", "")


def test_a_different_fingerprint_is_refused(built, tmp_path):
    with pytest.raises(FingerprintWrong):
        export_bundle(built.bundle, "triton", tmp_path / "out", fingerprint=ANOTHER)
    assert not (tmp_path / "out").exists()
    export_bundle(built.bundle, "triton", tmp_path / "out", fingerprint=built.fingerprint)


# -- names from config.json -----------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fields", [{"name": "../out-of-it"}, {"name": 'x"\nimport os #'}, {"version": "1.0.0/../.."}])
def test_a_name_that_no_manifest_allows_is_refused(complete, tmp_path, target, fields):
    edit_config(complete, **fields)
    reseal(complete, documents=False)
    with pytest.raises(NotABundle):
        export_bundle(complete, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x: print(1)", "class", "_hidden", "self", 'x", "y'])
@pytest.mark.parametrize("target", ["bentoml", "ray-serve"])
def test_an_input_that_is_no_name_in_python_is_refused(bundle, tmp_path, target, name):
    config = edit_config(bundle)
    config["inputs"][0]["name"] = name
    edit_config(bundle, inputs=config["inputs"])
    reseal(bundle, documents=False)
    with pytest.raises(DeploymentUnsupported):
        export_bundle(bundle, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("target", "path"), [("bentoml", "service.py"), ("ray-serve", "app.py")])
def test_a_service_is_a_python_program_without_placeholders(bundle, tmp_path, target, path):
    export_bundle(bundle, target, tmp_path / "out")
    text = (tmp_path / "out" / path).read_text()
    ast.parse(text)
    assert not string.Template(text).get_identifiers()


# -- the folder -----------------------------------------------------------------------------


def test_an_untouched_export_is_replaced_by_any_other(built, tmp_path):
    export_bundle(built.bundle, "docker", tmp_path / "out")
    export_bundle(built.bundle, "triton", tmp_path / "out")
    assert set(list_files(tmp_path / "out")) == {*TARGETS["triton"], RECORD}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("change", ["added", "changed"])
def test_an_export_that_was_changed_by_hand_is_kept_without_force(built, tmp_path, change):
    export_bundle(built.bundle, "docker", tmp_path / "out")
    path = "torch_packager.whl" if change == "added" else "Dockerfile"
    (tmp_path / "out" / path).write_text("mine")
    before = read_all(tmp_path / "out")
    with pytest.raises(OutputRefused) as caught:
        export_bundle(built.bundle, "docker", tmp_path / "out")
    assert path in str(caught.value.why)
    assert read_all(tmp_path / "out") == before
    export_bundle(built.bundle, "docker", tmp_path / "out", force=True)
    assert read_all(tmp_path / "out") != before


@pytest.mark.parametrize("kind", ["folder", "file", "link", "malformed record"])
def test_what_is_not_an_export_is_replaced_with_force_alone(built, tmp_path, kind, golden):
    target = tmp_path / "out"
    if kind in ("folder", "malformed record"):
        target.mkdir()
        (target / (RECORD if kind == "malformed record" else "mine")).write_text("[]")
    elif kind == "file":
        target.write_text("mine")
    else:
        (tmp_path / "real").mkdir()
        target.symlink_to(tmp_path / "real")
    with pytest.raises(OutputRefused) as caught:
        export_bundle(built.bundle, "triton", target)
    golden(str(caught.value), "error[output-refused]", target)
    export_bundle(built.bundle, "triton", target, force=True)
    assert (target / RECORD).is_file() and not target.is_symlink()


@pytest.mark.parametrize("place", ["the bundle", "inside", "around"])
def test_an_export_never_damages_the_bundle_it_is_made_from(bundle, tmp_path, place):
    target = {"the bundle": bundle, "inside": bundle / "assets/triton", "around": bundle.parent}[place]
    before = read_all(bundle)
    with pytest.raises(OutputRefused):
        export_bundle(bundle, "triton", target, force=True)
    assert read_all(bundle) == before


def test_a_bundle_with_more_files_than_a_process_may_open_is_exported(bundle, tmp_path):
    resource = pytest.importorskip("resource")
    names = [f"{number:04}.txt" for number in range(300)]
    for name in names:
        (bundle / "assets" / name).write_text(name)
    edit_config(bundle, assets=sorted([*names, "labels.txt"]))
    reseal(bundle)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, hard))
    try:
        export_bundle(bundle, "docker", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_all(tmp_path / "out/bundle") == read_all(bundle)


@pytest.mark.parametrize("path", ["model.onnx", "config.json"])
def test_a_file_that_changes_after_the_seal_was_checked_is_not_copied(bundle, tmp_path, path):
    with open_source(bundle) as source:
        (bundle / path).write_bytes(b"something else")
        with pytest.raises(IntegrityFailed):
            source.copy(path, tmp_path / "copied")
        with pytest.raises(IntegrityFailed):
            source.read(path)


# -- the command ----------------------------------------------------------------------------


def test_the_command_prints_what_it_wrote(built, tmp_path):
    done = package("export", built.bundle, "--to", "triton", tmp_path / "out", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record == {
        "folder": str(tmp_path / "out"),
        "target": "triton",
        "fingerprint": built.fingerprint,
        "files": ["digits-cnn/1/model.onnx", "digits-cnn/config.pbtxt", RECORD],
        "notes": [],
    }
    done = package(
        "export", built.bundle, "--to", "kserve", tmp_path / "kserve", "--storage-uri", "pvc://models/digits"
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert {f"fingerprint  {built.fingerprint}", "inferenceservice.yaml"} < set(lines)
    assert any(line.startswith("note: ") and "pvc://models/digits" in line for line in lines)


@pytest.mark.parametrize(
    "options",
    [
        ["--to", "tensorrt"],
        [],
        ["--to", "triton", "--image", "digits:1"],
        ["--to", "docker", "--storage-uri", "s3://models/digits"],
        ["--to", "kserve", "--image", "digits:1", "--storage-uri", "s3://models/digits"],
    ],
)
def test_options_that_do_not_belong_together_exit_with_2(built, tmp_path, options):
    done = package("export", built.bundle, *options, tmp_path / "out", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage"
    assert not (tmp_path / "out").exists()


def test_an_error_has_no_hint_for_an_option_that_export_lacks(built, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PackagerError) as caught:
        export_bundle(built.bundle, "triton", tmp_path / "file/out")
    assert caught.value.code == "output-refused" and "-o" not in caught.value.hint
