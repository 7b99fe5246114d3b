"""`package inspect` and `package schema`: what they print for each kind of file."""

import json
import os
import subprocess
import sys

import onnx
import pytest
import torch
from messages import mentions
from onnx import helper
from projects import ROOT


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


def test_inspect_shows_what_was_saved_beside_the_weights(command, tmp_path, golden):
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
    assert all(character.isprintable() or character == "\n" for character in out)
    assert name in json.loads(command("inspect", tmp_path / "best.pt", "--json")[1])["tensors"]


@pytest.mark.parametrize("name", ["x.onnx", "x.safetensors", "x.pt", "x.zip", "x", "model.safetensors.index.json"])
def test_inspect_does_not_wait_for_a_pipe(tmp_path, name):
    os.mkfifo(tmp_path / name)
    command = [sys.executable, "-m", "packager", "inspect", tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    mentions(done.stderr, "error[checkpoint-unreadable]", tmp_path / name)


@pytest.fixture
def graph(tmp_path):
    """An ONNX file to change, and how to write it."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["x"])], "graph", [value], [value]))

    def write(content=None):
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString() if content is None else content)
        return tmp_path / "x.onnx"

    return model, write


def test_inspect_shows_an_onnx_file_with_an_unknown_type(command, graph):
    model, write = graph
    model.graph.input[0].type.tensor_type.elem_type = 4711
    record = json.loads(command("inspect", write(), "--json")[1])
    assert (record["inputs"][0]["dtype"], record["outputs"][0]["dtype"]) == ("unknown (4711)", "float")
    assert command("inspect", write())[0] == 0


def test_inspect_shows_an_onnx_file_with_names_that_are_not_utf_8(command, graph):
    model, write = graph
    for name in ("Relu", "batch"):
        content = model.SerializeToString()
        assert name.encode() in content
        path = write(content.replace(name.encode(), b"\xff" * len(name)))
        assert r"\xff\xff" in command("inspect", path, "--json")[1].replace("\\\\", "\\")
        assert command("inspect", path)[0] == 0


CONTROLS = "\x1b[2J\u202e\x07\x85\u2028"


def assert_harmless(text):
    assert all(character.isprintable() or character == "\n" for character in text)
    mentions(text, repr(CONTROLS)[1:-1])


def test_inspect_shows_no_control_characters_of_an_onnx_file(command, graph):
    model, write = graph
    model.graph.input[0].name = model.graph.node[0].op_type = f"x{CONTROLS}"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = f"d{CONTROLS}"
    model.opset_import[0].domain = f"o{CONTROLS}"
    status, out, _ = command("inspect", write())
    assert status == 0
    assert out.count("u202e") == 4
    assert_harmless(out)


def test_inspect_shows_no_control_characters_of_a_safetensors_file(command, tmp_path):
    header = json.dumps({f"w{CONTROLS}": {"dtype": f"F{CONTROLS}", "shape": [], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    status, out, _ = command("inspect", tmp_path / "x.safetensors")
    assert status == 0
    assert_harmless(out)


def test_an_error_shows_no_control_characters_of_a_file(command, tmp_path):
    places = {"a": f"{CONTROLS} b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    status, _, err = command("inspect", tmp_path)
    assert status == 2
    assert_harmless(err)


def test_inspect_shows_no_control_characters_of_a_bundle(command, built, tmp_path):
    config = json.loads((built.bundle / "config.json").read_text())
    config["inputs"][0]["name"] = f"x{CONTROLS}"
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text(json.dumps(config))
    (tmp_path / "bundle" / "SHA256SUMS").write_text("")
    (tmp_path / "bundle" / f"y{CONTROLS}").touch()
    status, out, _ = command("inspect", tmp_path / "bundle")
    assert status == 0
    assert out.count("u202e") == 2
    assert_harmless(out)


@pytest.mark.parametrize("name", ["run.json", "model.safetensors.index.json", "model.pieces.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"schema":' * 100_000, '{"schema": 1, "schema": 1}', "9" * 5000])
def test_inspect_refuses_json_that_is_deep_or_has_a_key_twice(command, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    status, out, err = command("inspect", tmp_path / name if name.startswith("model") else tmp_path)
    assert (status, out) == (2 if name.startswith("model") else 1, "")
    assert err.startswith("error[checkpoint-")
    assert "Traceback" not in err


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
def test_inspect_refuses_a_file_that_it_cannot_read(command, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, out, err = command("inspect", tmp_path / name)
    assert (status, out) == (2, "")
    assert err.startswith("error[checkpoint-")
    assert "Traceback" not in err


def test_inspect_does_not_mention_a_manifest(command, tmp_path, golden):
    (tmp_path / "best.pt").touch()
    golden(command("inspect", tmp_path / "last.pt")[2], "error[checkpoint-not-found]", tmp_path / "last.pt", "best.pt")


@pytest.mark.parametrize("name", ["manifest", "config", "parity"])
def test_schema_prints_the_published_schema(command, name):
    status, out, err = command("schema", name)
    assert (status, err) == (0, "")
    assert out == (ROOT / "schemas" / f"{name}.schema.json").read_text()
