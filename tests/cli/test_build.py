"""`package build` and `package vet`: what they print, and how they refuse bad input."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from messages import mentions
from projects import LINEAR, package, project


def test_a_build_prints_its_result_on_stdout_and_its_progress_on_stderr(linear, tmp_path):
    done = package("build", linear, "-o", tmp_path / "out", env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert rows["bundle"] == str(tmp_path / "out" / "net-1.0.0")
    assert rows["fingerprint"] == (tmp_path / "out/net-1.0.0/FINGERPRINT").read_text().strip()
    assert rows["model"] == "net 1.0.0"
    for stage in ("source", "trace", "export", "reference", "torchscript", "onnx", "bundle"):
        assert f"\n{stage} " in "\n" + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_a_build_for_programs_prints_one_json_object_though_an_exporter_fails(tmp_path):
    text = LINEAR.replace(
        "return self.layer(x)", "print('hello')\n        return torch.heaviside(self.layer(x), torch.tensor(0.5))"
    )
    path = project(tmp_path / "project", text)
    done = package("build", path, "--json", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert set(record) == {"bundle", "archive", "fingerprint", "cached", "stages", "parity", "not_compared", "notes"}
    assert record["parity"] == {"onnx": "pass", "torchscript": "pass"}


@pytest.mark.slow
def test_a_parity_failure_exits_with_1_without_a_traceback(tmp_path):
    text = LINEAR.replace(
        "return self.layer(x)",
        "y = self.layer(x)\n        for _ in range(20):\n"
        "            y = torch.sin(y * 1.7) + torch.exp(-y * y)\n        return y",
    )
    settings = {"export": {"exporter": "torchscript"}, "torchscript": {"method": "trace"}}
    path = project(tmp_path / "project", text, parity={"tolerance": {"atol": 0, "rtol": 0}}, **settings)
    done = package("build", path, "--json", "-o", tmp_path / "out")
    assert done.returncode == 1
    record = json.loads(done.stdout)
    assert record["error"]["code"] == "parity-failed"
    mentions(done.stderr, "error[parity-failed]")
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_vet_shows_what_a_build_would_start_from(command, digits):
    status, out, err = command("vet", digits)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split(None, 1) == ["model", "digits-cnn 1.0.0, 1,650 parameters"]
    assert lines[-1] == "ok"
    assert any(line.split() == ["input", "image", "float32", "[batch,", "1,", "8,", "8]"] for line in lines)
    assert any(line.split() == ["output", "logits", "float32", "[batch,", "10]"] for line in lines)
    status, out, err = command("vet", digits, "--json")
    record = json.loads(out)
    assert (status, err, record["ok"], record["parameters"]) == (0, "", True, 1650)
    assert record["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]


def test_an_output_that_cannot_be_written_is_named(command, linear, built, tmp_path, golden):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/dist"):
        status, out, err = command("build", linear, "-o", path)
        assert (status, out) == (2, "")
        golden(err, "error[output-refused]", path, tmp_path / "file")
    inputs = tmp_path / "x.npz"
    np.savez(inputs, image=np.zeros((1, 1, 8, 8), np.float32))
    status, out, err = command("run", built.bundle, "--input", inputs, "--output", tmp_path / "nowhere/y.npz")
    assert (status, out) == (2, "")
    golden(err, "error[output-refused]", tmp_path / "nowhere/y.npz")


# -- bad input: each with a clear error, exit status 2, and no files left behind --------------


def change(path, **sections):
    document = yaml.safe_load(path.read_text())
    for name, value in sections.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def corrupt(folder, kind):
    """Break one thing in a valid project."""
    path = folder / "package.yaml"
    if kind == "no manifest":
        path.unlink()
    elif kind == "empty manifest":
        path.write_text("# nothing yet\n")
    elif kind == "no yaml":
        path.write_text("schema: 1\nname: [net\n")
    elif kind == "unknown field":
        path.write_text(path.read_text() + "outptus: [y]\n")
    elif kind == "missing field":
        change(path, version=None)
    elif kind == "wrong type":
        change(path, checkpoint={"path": "best.pt", "strict": "maybe"})
    elif kind == "bad name":
        change(path, name="Net!")
    elif kind == "bad version":
        change(path, version="1.0")
    elif kind == "no entry":
        change(path, model={"entry": "model.py:Nett"})
    elif kind == "entry does not import":
        (folder / "model.py").write_text("import not_installed\n")
    elif kind == "entry is no module":
        (folder / "model.py").write_text("Net = dict\n")
    elif kind == "kwargs":
        change(path, model={"entry": "model.py:Net", "kwargs": {"layers": 3}})
    elif kind == "no checkpoint":
        (folder / "best.pt").unlink()
    elif kind == "empty checkpoint":
        (folder / "best.pt").write_bytes(b"")
    elif kind == "truncated checkpoint":
        (folder / "best.pt").write_bytes((folder / "best.pt").read_bytes()[:-100])
    elif kind == "no pickle":
        (folder / "best.pt").write_text("best weights\n")
    elif kind == "code":
        torch.save({"layer": torch.nn.Linear(4, 3)}, folder / "best.pt")
    elif kind == "keys":
        torch.save({"layer.wieght": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}, folder / "best.pt")
    elif kind == "shapes":
        torch.save({"layer.weight": torch.zeros(5, 4), "layer.bias": torch.zeros(5)}, folder / "best.pt")
    elif kind == "inputs":
        change(path, inputs={"x": {"dtype": "float32", "shape": ["batch", 4]}, "y": {"dtype": "bool", "shape": []}})
    elif kind == "forward fails":
        change(path, inputs={"x": {"dtype": "float32", "shape": ["batch", 5]}})
    elif kind == "no range":
        change(path, inputs={"x": {"dtype": "int64", "shape": ["batch", 4]}})


BAD = {
    "no manifest": (
        "error[manifest-not-found]",
        "package.yaml",
    ),
    "empty manifest": (
        "error[manifest-empty]",
        "package.yaml",
    ),
    "no yaml": (
        "error[manifest-syntax]",
        "package.yaml:3",
        "]",
        "<stream end>",
    ),
    "unknown field": (
        "error[manifest-invalid]",
        "1",
        "package.yaml",
        "package.yaml:14: outptus",
        "outptus",
        "outputs",
    ),
    "missing field": (
        "error[manifest-invalid]",
        "1",
        "package.yaml",
        "package.yaml:1: version",
        "version",
    ),
    "wrong type": (
        "error[manifest-invalid]",
        "1",
        "package.yaml",
        "package.yaml:8: checkpoint.strict",
        "maybe",
    ),
    "bad name": (
        "error[manifest-invalid]",
        "1",
        "package.yaml",
        "package.yaml:2: name",
        "Net",
        "^[a-z0-9][a-z0-9._-]*$",
        "_",
    ),
    "bad version": None,
    "no entry": (
        "error[entry-not-found]",
        "model.entry",
        "model.py:Nett",
        "package.yaml:5: model.entry",
        "model.py",
        "Nett",
        "Net",
    ),
    "entry does not import": (
        "error[entry-import-failed]",
        "model.py:Net",
        "package.yaml:5: model.entry",
        "model.py:1",
        "not_installed",
        "ModuleNotFoundError",
    ),
    "entry is no module": None,
    "kwargs": (
        "error[model-arguments]",
        "model.py:Net",
        "package.yaml:6: model.kwargs",
        "layers",
    ),
    "no checkpoint": (
        "error[checkpoint-not-found]",
        "best.pt",
        "package.yaml:7: checkpoint.path",
    ),
    "empty checkpoint": (
        "error[checkpoint-unreadable]",
        "best.pt",
        "package.yaml:7: checkpoint.path",
    ),
    "truncated checkpoint": (
        "error[checkpoint-unreadable]",
        "best.pt",
        "package.yaml:7: checkpoint.path",
    ),
    "no pickle": None,
    "code": (
        "error[checkpoint-needs-code]",
        "best.pt",
        "package.yaml:7: checkpoint.path",
        "torch.nn.modules.linear.Linear",
        "checkpoint.trust_pickle",
    ),
    "keys": (
        "error[state-does-not-fit]",
        "package.yaml:6: checkpoint",
        "(1)",
        "layer.weight",
        "layer.wieght",
        "checkpoint.prefix",
        "model.kwargs",
    ),
    "shapes": (
        "error[state-does-not-fit]",
        "package.yaml:6: checkpoint",
        "layer.weight",
        "[3, 4]",
        "[5, 4]",
        "layer.bias",
        "[3]",
        "[5]",
        "model.kwargs",
    ),
    "inputs": (
        "error[inputs-do-not-fit]",
        "forward()",
        "package.yaml:8: inputs",
        "2",
    ),
    "forward fails": None,
    "no range": (
        "error[manifest-invalid]",
        "1",
        "package.yaml",
        "package.yaml:9: inputs.x",
        "int64",
        "[low, high]",
        "[0, 30522]",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_exits_with_2_and_a_clear_error_and_leaves_no_files(command, linear, monkeypatch, kind, golden):
    corrupt(linear.parent, kind)
    before = sorted(os.listdir(linear.parent))
    monkeypatch.chdir(linear.parent)
    status, out, err = command("vet", "package.yaml")
    assert (status, out) == (2, "")
    if BAD[kind] is not None:
        golden(err.replace(f"{linear.parent}/", ""), *BAD[kind])
    built_status, out, built_err = command("build", "package.yaml")
    assert (built_status, out) == (2, "")
    assert built_err.endswith(err)
    assert "Traceback" not in built_err
    shutil.rmtree("__pycache__", ignore_errors=True)
    assert [name for name in sorted(os.listdir(linear.parent)) if name != "__pycache__"] == before


def test_an_asset_that_a_bundle_cannot_contain_is_refused_before_any_work(command, linear, golden):
    change(linear, assets=["a\nb"])
    status, _, err = command("build", linear)
    assert status == 2
    golden(err.splitlines()[2])


def test_a_checkpoint_whose_name_is_too_long_is_refused(command, linear):
    change(linear, checkpoint={"path": "x" * 300})
    status, _, err = command("vet", linear)
    assert (status, err.splitlines()[2]) == (2, "  File name too long")
