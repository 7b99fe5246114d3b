"""`package standalone` puts a bundle, the runner and the library into one file, always the same bytes."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from executables import call
from projects import reseal

import packager
from packager.bundle.executable_layout import read_trailer
from packager.errors import OutputRefused, StandaloneUnsupported
from packager.standalone import assemble
from packager.standalone.assemble import make_beside, make_standalone


def open_trailer(path):
    with path.open("rb") as stream:
        return read_trailer(stream.fileno())


def test_the_executable_of_a_folder_an_archive_and_an_executable_has_the_same_bytes(
    executable, bundle, archived, tmp_path, monkeypatch
):
    for path in bundle.rglob("*"):
        os.utime(path, (1, 1))
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.chdir(bundle.parent)
    for number, source in enumerate((bundle.relative_to(bundle.parent), archived, executable)):
        made = make_standalone(source, tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == executable.read_bytes()
        assert made.fingerprint == packager.load(bundle).fingerprint


def test_it_ends_in_the_archive_byte_for_byte_and_zip_tools_read_it(executable, archived):
    content, trailer = executable.read_bytes(), open_trailer(executable)
    assert content[trailer.archive_offset :] == archived.read_bytes()
    with zipfile.ZipFile(executable) as ours, zipfile.ZipFile(archived) as archive:
        assert ours.testzip() is None
        assert ours.namelist() == archive.namelist()
        assert ours.read("model.onnx") == archive.read("model.onnx")


def test_it_is_the_bundle_the_library_and_at_most_one_and_a_half_megabytes(executable):
    trailer = open_trailer(executable)
    assert executable.stat().st_size - trailer.archive_size - trailer.library.size <= 1_500_000


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_lists_it(executable):
    assert "model.onnx" in subprocess.run(["unzip", "-l", executable], capture_output=True, text=True).stdout


def test_weights_and_library_can_be_mapped(executable):
    trailer = open_trailer(executable)
    assert trailer.library.offset % 65536 == trailer.archive_offset % 65536 == 0
    assert executable.read_bytes()[trailer.library.offset :].startswith(b"\x7fELF")


def test_it_is_executable_by_everyone_and_written_by_its_owner(executable):
    assert executable.stat().st_mode & 0o7777 == 0o755


def test_python_loads_inspects_and_unpacks_it(executable, built, tmp_path):
    assert packager.load(executable, fingerprint=built.fingerprint).name == "digits-cnn"
    arguments = [sys.executable, "-m", "packager"]
    shown = subprocess.run([*arguments, "inspect", executable, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["fingerprint"] == built.fingerprint
    subprocess.run([*arguments, "unpack", executable, "-o", tmp_path / "copy"], check=True, capture_output=True)
    assert packager.diff(built.bundle, tmp_path / "copy").same


def test_what_lies_at_the_output_is_replaced_only_by_force(executable, built, tmp_path):
    target = tmp_path / "file"
    target.write_text("precious")
    with pytest.raises(OutputRefused, match="it exists"):
        make_standalone(built.bundle, target)
    assert target.read_text() == "precious"
    make_standalone(built.bundle, target, force=True)
    assert target.read_bytes() == executable.read_bytes()
    assert os.listdir(tmp_path) == ["file"]


def test_beside_a_bundle_only_an_earlier_executable_is_replaced(bundle, runner):
    path = make_beside(bundle, force=False).executable
    assert path.name == f"{bundle.name}.run"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OutputRefused, match="it exists"):
        make_beside(bundle, force=False)
    make_beside(bundle, force=True)
    assert make_beside(bundle, force=False).executable == path
    assert call(path, "verify").returncode == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"artifacts": {"onnx": None, "torchscript": {"path": "model.ts", "sha256": "0" * 64}}}, "no ONNX model"),
        ({"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}, "asks for CUDAExecutionProvider, CPU"),
        ({"source": {"toolchain": {"onnxruntime": "../1"}}}, "no usable version of onnxruntime"),
    ],
)
def test_a_bundle_that_cannot_run_alone_is_refused(bundle, tmp_path, change, why):
    config = json.loads((bundle / "config.json").read_text())
    for key, value in change.items():
        if isinstance(value, dict):
            config[key] = {**config[key], **value}
        else:
            config[key] = value
    if "artifacts" in change:
        config["artifacts"]["torchscript"] = json.loads((bundle / "config.json").read_text())["artifacts"][
            "torchscript"
        ]
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle, documents=False)
    with pytest.raises(StandaloneUnsupported, match=why):
        make_standalone(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_changes_while_it_is_copied_is_refused(bundle, runner, tmp_path, monkeypatch):
    write = assemble.write_archive

    def change(folder, target):
        (folder / "README.md").write_text("changed")
        reseal(folder)
        write(folder, target)

    monkeypatch.setattr(assemble, "write_archive", change)
    with pytest.raises(packager.PackagerError, match="changed while it was copied"):
        make_standalone(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()
