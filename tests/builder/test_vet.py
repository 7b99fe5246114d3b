"""`package vet` refuses what a build would refuse before its export."""

import re

import onnxruntime
import pytest
from projects import FLOATS, LINEAR, project

import packager
from packager.builder import vet as vetting
from packager.builder.vet import vet
from packager.errors import ForwardFailed, ManifestInvalid, render_error

SIZES = LINEAR.replace("return", "if x.shape[0] {}:\n            raise ValueError(x.shape[0])\n        return")


@pytest.mark.parametrize(
    ("condition", "dims", "size"),
    [
        ("== 1", {}, "1"),
        ("== 7", {"batch": {"min": 7}}, "7"),
        ("== 99", {"batch": {"max": 99}}, "99"),
        ("== 128", {}, "128"),
    ],
    ids=["smallest", "declared smallest", "declared largest", "largest"],
)
def test_a_size_at_either_end_on_which_forward_fails_is_refused_as_by_a_build(tmp_path, condition, dims, size):
    path = project(tmp_path / "project", SIZES.format(condition), dims=dims)
    for run in (vet, lambda path: packager.build(path, tmp_path / "out")):
        with pytest.raises(ForwardFailed, match=f"ValueError: {size}"):
            run(path)


def test_a_size_that_would_take_long_is_left_to_the_build_and_reported(tmp_path, monkeypatch, golden):
    monkeypatch.setattr(vetting, "_MAX_SECONDS", 0.5)
    source = LINEAR.replace("return", "__import__('time').sleep(0.02 * x.shape[0])\n        return")
    report = vet(project(tmp_path, source, dims={"batch": {"max": 1000}}))
    golden(report.notes[-1], "batch=1000")


@pytest.mark.parametrize(
    ("export", "facts"),
    [
        ({"opset": 99}, ("99", "13")),
        ({"opset": 25, "exporter": "torchscript"}, ("25", "23", "torch-export")),
    ],
    ids=["no such opset", "not by this exporter"],
)
def test_an_opset_that_cannot_be_written_or_loaded_is_refused_as_by_a_build(tmp_path, export, facts, golden):
    path = project(tmp_path / "project", LINEAR, inputs=FLOATS, export=export)
    for run in (vet, lambda path: packager.build(path, tmp_path / "out")):
        with pytest.raises(ManifestInvalid) as refused:
            run(path)
        lines = render_error(refused.value).splitlines()
        values = {"version": onnxruntime.__version__, "largest": re.search(r"13 to (\d+)", lines[3])[1]}
        golden("\n".join(lines[1:4]), f"{path}:15: export.opset", *facts, **(values if "99" in facts else {}))
    assert not (tmp_path / "out").exists()


def test_an_opset_that_one_exporter_can_write_is_not_refused(tmp_path):
    assert vet(project(tmp_path, LINEAR, export={"opset": 25})).name == "net"
