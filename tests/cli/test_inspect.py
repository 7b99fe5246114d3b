"""`package inspect` and `package schema`: what they print for each kind of file."""

import json

import pytest
import torch
from messages import mentions
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
