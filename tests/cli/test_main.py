"""The command `package`: exit statuses, what stands on stdout and what on stderr."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from messages import mentions
from projects import ANOTHER, LINEAR, ROOT, package, project

import packager
from packager import cli, errors


@pytest.fixture
def command(capsys, monkeypatch):
    """The command in this process: arguments → (exit status, stdout, stderr)."""

    def run(*arguments):
        arguments = [str(one) for one in arguments]
        monkeypatch.setattr("sys.argv", ["package", *arguments])
        status = cli._status(cli.cli)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def linear(tmp_path):
    return project(tmp_path / "project", LINEAR)


# -- as real processes ----------------------------------------------------------------------


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
    assert set(record) == {"bundle", "archive", "fingerprint", "cached", "stages", "parity"}
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


def test_a_bad_manifest_exits_with_2_and_its_json_stands_alone_on_stdout(tmp_path, golden):
    done = package("build", tmp_path / "package.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"code", "message", "where", "hint"}
    assert (error["code"], error["where"]) == ("manifest-not-found", None)
    mentions(error["message"], tmp_path / "package.yaml")
    assert done.stderr == f"error[{error['code']}]: {error['message']}\nhint: {error['hint']}\n"
    golden(done.stderr, "error[manifest-not-found]", tmp_path / "package.yaml", "package.yaml")
    assert os.listdir(tmp_path) == []


# -- statuses -------------------------------------------------------------------------------


def test_a_bug_exits_with_3_a_traceback_and_where_to_report_it(command, monkeypatch, linear, golden):
    def bug(path, listener):
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr("packager.builder.vet.vet", bug)
    status, out, err = command("vet", linear)
    assert (status, out) == (3, "")
    assert err.startswith("Traceback (most recent call last):\n")
    golden(err[err.index("ZeroDivisionError: oh no") :], "error[bug]", "package --version")
    status, out, _ = command("vet", linear, "--json")
    assert status == 3
    assert json.loads(out)["error"]["code"] == "bug"


def test_native_code_that_ends_the_process_leaves_the_line_that_called_it(tmp_path):
    text = LINEAR.replace("return self.layer(x)", "import ctypes\n        return ctypes.string_at(0)")
    done = package("build", project(tmp_path, text), "-o", tmp_path / "out")
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    mentions(done.stderr, f"{tmp_path}/model.py", "13")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "Missing argument 'MANIFEST'."),
        (["bulid"], "No such command 'bulid'."),
        (["build", "a", "b"], "Got unexpected extra argument (b)"),
        (["vet", "--fast", "x"], "No such option"),
        (["run", "x"], "Missing option '--input'."),
        (["schema", "manifets"], "Invalid value for '{manifest|config|parity}': 'manifets' is not one of"),
    ],
)
def test_bad_usage_exits_with_2(command, arguments, message):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    mentions(err, "error[usage]", message)
    assert "Traceback" not in err and "Usage:" not in err
    mentions(err.splitlines()[-1], "hint", "--help")
    status, out, _ = command(*arguments, "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "usage"


def test_bad_usage_reads_like_any_other_error(command, golden):
    golden(command("verify", "x", "--no-pairty")[2], "error[usage]", "--no-pairty", "--no-parity")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full is Linux's")
@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["schema", "manifest"], ["verify", "BUNDLE", "--no-parity"],
     ["verify", "BUNDLE", "--no-parity", "--json"], ["inspect", "nowhere", "--json"]],
    ids=" ".join,
)  # fmt: skip
def test_an_answer_that_cannot_be_written_is_no_bug_and_no_verdict(arguments, built, golden):
    arguments = [str(built.bundle) if one == "BUNDLE" else one for one in arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "packager", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    if "nowhere" not in arguments:
        golden(done.stderr, "error[output-refused]", "No space left on device")


def test_an_interrupted_command_says_so(command, monkeypatch, linear):
    def interrupt(path, listener):
        raise KeyboardInterrupt

    monkeypatch.setattr("packager.builder.vet.vet", interrupt)
    status, out, err = command("vet", linear)
    assert (status, out, err.strip()) == (130, "", "interrupted")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["build", "--help"], ["--version"]])
def test_help_and_version_exit_with_0(command, arguments):
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out


# -- commands -------------------------------------------------------------------------------


def test_vet_says_what_a_build_would_start_from(command, digits):
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


def test_verify_says_yes_with_0_and_no_with_1(command, bundle, built, golden):
    status, out, err = command("verify", bundle)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["fingerprint", built.fingerprint]
    assert out.splitlines()[-1] == "ok"
    (bundle / "extra").touch()
    status, out, _ = command("verify", bundle)
    assert status == 1
    golden(out.splitlines()[-1], "ok")
    assert "extra" in [line.split()[-1] for line in out.splitlines()]
    status, out, _ = command("verify", bundle, "--json")
    assert status == 1
    record = json.loads(out)
    assert {"ok", "fingerprint", "integrity", "structure", "parity"} <= set(record)
    assert record["integrity"] == {"missing": [], "extra": ["extra"], "changed": []}
    status, out, err = command("verify", bundle.parent, "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "not-a-bundle"
    mentions(err, "error[not-a-bundle]")


def test_an_archive_is_taken_like_a_folder(command, archived, built, tmp_path, temporary):
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    for arguments in (["verify"], ["verify", "--json"], ["inspect"], ["inspect", "--json"], ["run", "--input"]):
        rest = [tmp_path / "x.npz"] if arguments[0] == "run" else []
        of_folder, of_archive = (
            command(*arguments[:1], one, *arguments[1:], *rest) for one in (built.bundle, archived)
        )
        assert of_archive == of_folder
        assert of_archive[0] == 0


@pytest.mark.parametrize("name", ["verify", "inspect", "run"])
def test_an_archive_that_is_none_is_answered_with_2_and_a_damaged_one_with_1(command, archived, tmp_path, name, golden):
    rest = ["--input", "x.npz"] if name == "run" else []
    content = bytearray(archived.read_bytes())
    path = tmp_path / "x.zip"
    path.write_bytes(content[:-1])
    status, out, err = command(name, path, *rest)
    assert (status, out) == (2, "")
    golden(err, "error[archive-refused]", path)
    content[100] ^= 1
    path.write_bytes(content)
    status, out, err = command(name, path, *rest)
    assert (status, out) == (1, "")
    golden(err.splitlines()[0], "error[integrity-failed]", path)


def test_verify_asks_for_a_fingerprint(command, bundle, built):
    assert command("verify", bundle, "--fingerprint", built.fingerprint, "--no-parity")[0] == 0
    status, out, _ = command("verify", bundle, "--fingerprint", ANOTHER, "--no-parity")
    assert status == 1
    mentions(out, "FAIL", built.fingerprint, ANOTHER)


def test_inspect_shows_a_bundle_a_checkpoint_and_an_onnx_file(command, built, digits, tmp_path):
    import safetensors.torch

    status, out, err = command("inspect", built.bundle)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["bundle", "digits-cnn", "1.0.0"]
    record = json.loads(command("inspect", built.bundle, "--json")[1])
    assert (record["kind"], record["fingerprint"]) == ("bundle", built.fingerprint)
    assert record["files"]["model.onnx"] == (built.bundle / "model.onnx").stat().st_size

    status, out, _ = command("inspect", built.bundle / "model.onnx", "--json")
    record = json.loads(out)
    assert (status, record["kind"], record["opset"]["ai.onnx"]) == (0, "onnx", 20)
    assert record["inputs"] == [{"name": "image", "dtype": "float", "shape": ["batch", 1, 8, 8]}]
    assert "Conv" in command("inspect", built.bundle / "model.onnx")[1]

    record = json.loads(command("inspect", digits.parent / "best.pt", "--json")[1])
    assert (record["kind"], record["format"]) == ("checkpoint", "pytorch")
    assert record["tensors"]["features.0.weight"] == "float32[4, 1, 3, 3]"
    safetensors.torch.save_file({"w": torch.zeros(2, 3)}, tmp_path / "w.safetensors")
    record = json.loads(command("inspect", tmp_path / "w.safetensors", "--json")[1])
    assert record["tensors"] == {"w": "F32[2, 3]"}
    assert command("inspect", tmp_path / "w.safetensors")[0] == 0


def test_inspect_shows_what_lay_beside_the_weights(command, tmp_path, golden):
    saved = {
        "model": {"layer.weight": torch.zeros(3, 4)},
        "optimizer": {"state": {}},
        "epoch": 3,
        "global_step": 120,
        "val_loss": 0.25,
        "config": {"lr": 0.001, "layers": [4, 3]},
    }
    torch.save(saved, tmp_path / "best.pt")
    status, out, err = command("inspect", tmp_path / "best.pt")
    assert (status, err) == (0, "")
    golden(
        out,
        "1",
        "model",
        "global_step",
        "val_loss",
        "3",
        "120",
        "0.25",
        "0.001",
        "[4, 3]",
        "layer.weight",
        "float32[3, 4]",
        "optimizer",
    )
    record = json.loads(command("inspect", tmp_path / "best.pt", "--json")[1])
    assert record["about"] == {
        "epoch": 3,
        "step": 120,
        "metrics": {"val_loss": 0.25},
        "hyperparameters": {"lr": 0.001, "layers": [4, 3]},
        "optimizer": True,
        "scheduler": False,
        "ema": False,
        "name": None,
        "version": None,
        "revision": None,
    }


def test_inspect_shows_no_control_characters_of_a_file(command, tmp_path):
    name = "w\x1b[2Jeight\n"
    saved = {"model": {name: torch.zeros(1)}, "no\x1bte": 1, "config": {"na\x1bme": "evil\x1b]0;title\x07"}}
    torch.save(saved, tmp_path / "best.pt")
    status, out, _ = command("inspect", tmp_path / "best.pt")
    assert status == 0
    assert "w\\x1b[2Jeight\\n" in out
    assert all(one.isprintable() or one == "\n" for one in out)
    assert name in json.loads(command("inspect", tmp_path / "best.pt", "--json")[1])["tensors"]


def test_inspect_shows_a_folder_of_shards_by_their_headers(command, tmp_path, golden):
    import safetensors.torch

    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file({f"{name}.weight": torch.zeros(2)}, path, {"epoch": "7"})
    places = {"a.weight": "a.safetensors", "b.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    record = json.loads(command("inspect", tmp_path, "--json")[1])
    assert record["about"]["epoch"] == 7
    golden(record["format"], "2", "safetensors")
    assert record["tensors"] == {"a.weight": "F32[2]", "b.weight": "F32[2]"}
    (tmp_path / "b.safetensors").unlink()
    status, _, err = command("inspect", tmp_path)
    assert status == 2
    mentions(err, "b.safetensors")


@pytest.mark.parametrize("name", ["x.onnx", "x.safetensors", "x.pt", "x"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_inspect_refuses_what_it_cannot_read(command, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, out, err = command("inspect", tmp_path / name)
    assert (status, out) == (2, "")
    assert err.startswith("error[checkpoint-")
    assert "Traceback" not in err


def test_run_makes_a_prediction(command, built, tmp_path):
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "x.npz", image=images)
    status, out, err = command("run", built.bundle, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert (status, err) == (0, "")
    assert out.startswith("logits: float32[2, 10] = [[")
    expected = packager.load(built.bundle)(image=images)["logits"]
    assert np.array_equal(np.load(tmp_path / "y.npz")["logits"], expected)
    assert command("run", built.bundle, "--input", tmp_path / "no.npz")[0] == 2
    np.savez(tmp_path / "x.npz", picture=images)
    status, out, err = command("run", built.bundle, "--input", tmp_path / "x.npz")
    assert (status, out) == (2, "")
    mentions(err, "error[data-does-not-fit]")
    np.savez(tmp_path / "x.npz", image=images)
    status, _, err = command("run", built.bundle, "--input", tmp_path / "x.npz", "--output", tmp_path / "no" / "y.npz")
    assert status == 2
    mentions(err, "error[output-refused]")


@pytest.mark.parametrize("name", ["manifest", "config", "parity"])
def test_schema_prints_the_published_schema(command, name):
    status, out, err = command("schema", name)
    assert (status, err) == (0, "")
    assert out == (ROOT / "schemas" / f"{name}.schema.json").read_text()


# -- bad input: each with a clear error, exit 2, nothing left behind ------------------------


def change(path, **sections):
    document = yaml.safe_load(path.read_text())
    for name, value in sections.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def corrupt(folder, kind):
    """Make one thing about a good project bad."""
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


@pytest.mark.parametrize(
    ("assets", "facts"),
    [(["a\nb"], ()), (["x/a", "../x"], ("x", "x/a"))],
)
def test_assets_that_a_bundle_cannot_hold_are_refused_before_any_work(command, linear, assets, facts, golden):
    (linear.parent / "x").mkdir()
    (linear.parent / "x/a").touch()
    (linear.parent.parent / "x").touch()
    change(linear, assets=assets)
    status, _, err = command("build", linear)
    assert status == 2
    golden(err.splitlines()[2], *facts)


def test_a_checkpoint_whose_name_is_too_long_is_refused(command, linear):
    change(linear, checkpoint={"path": "x" * 300})
    status, _, err = command("vet", linear)
    assert (status, err.splitlines()[2]) == (2, "  File name too long")


def test_a_command_whose_output_nobody_wants_works_as_well(linear):
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m packager vet {linear} >&- 2>&- <&-"])
    assert done.returncode == 0


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_answered_with_2_and_a_clear_error_and_leaves_nothing(command, linear, monkeypatch, kind, golden):
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
    assert [one for one in sorted(os.listdir(linear.parent)) if one != "__pycache__"] == before


def test_the_codes_of_errors_are_all_different_and_kebab_case():
    def below(kind):
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    codes = [one.code for one in below(errors.PackagerError) if "code" in vars(one)]
    assert len(codes) == len(set(codes)) > 25
    assert all(code == code.lower().replace("_", "-") for code in codes)


def test_what_stands_in_the_way_of_an_output_is_named(command, linear, built, tmp_path, golden):
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


def test_inspect_speaks_of_no_manifest(command, tmp_path, golden):
    (tmp_path / "best.pt").touch()
    golden(command("inspect", tmp_path / "last.pt")[2], "error[checkpoint-not-found]", tmp_path / "last.pt", "best.pt")
