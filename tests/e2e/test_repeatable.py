"""Real architectures are built to the same bytes in another process, elsewhere, and the builds prove and verify."""

import os
import shutil

import pytest
from architectures import ARCHITECTURES, LSTM, RESNET, write
from projects import LINEAR, project

import packager
from packager.bundle import archive
from packager.errors import BuildNotRepeatable, render_error

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_a_real_architecture_gives_the_same_bytes_elsewhere(architecture, tmp_path):
    path = write(architecture, tmp_path / "project")
    built = packager.build(path, tmp_path / "out", archive=True, cache="off", check=True)  # or BuildNotRepeatable
    assert built.parity == {"onnx": "pass", "torchscript": "pass"}
    report = packager.verify(built.bundle, trust_program=True)
    assert report.ok
    assert report.parity == built.parity
    assert packager.verify(built.archive, fingerprint=built.fingerprint).ok
    archive.write_archive(_older(built.bundle, tmp_path / "copy"), tmp_path / "copy.zip")
    assert (tmp_path / "copy.zip").read_bytes() == built.archive.read_bytes()


@pytest.mark.parametrize("architecture", [RESNET, LSTM], ids=lambda architecture: architecture.name)
def test_a_scripted_program_has_the_same_bytes_elsewhere(architecture, tmp_path):
    path = write(architecture, tmp_path / "project", torchscript={"method": "script"})
    built = packager.build(path, tmp_path / "out", cache="off", check=True)
    assert built.facts["torchscript"].endswith(", script")


@pytest.mark.parametrize("taken", ["int.from_bytes(__file__.encode(), 'big')", "hash('a model')"])
def test_a_module_that_depends_on_its_location_is_refused_with_the_first_difference(tmp_path, taken):
    path = project(tmp_path, LINEAR.replace("return self.layer(x)", f"return self.layer(x) + {taken} % 9973"))
    with pytest.raises(BuildNotRepeatable) as caught:
        packager.build(path, tmp_path / "out", cache="off", check=True)
    assert caught.value.exit_status == 1
    assert "\n  model.onnx: weight " in render_error(caught.value)
    assert not (tmp_path / "out").exists()


def _older(bundle, target):
    """Return a copy with different times and modes."""
    shutil.copytree(bundle, target)
    for number, path in enumerate(sorted(path for path in target.rglob("*") if path.is_file())):
        path.chmod(0o600)
        os.utime(path, (number * 86400.0, 1e9 + number))
    return target
