"""What is refused because it would take memory, or because one of two values would be lost."""

import json
import pickle
import struct

import pytest
import safetensors.torch
import torch
from messages import mentions
from torch import nn

from packager import checkpoint
from packager.checkpoint import CheckpointManager, Retention, export_huggingface, run_folder
from packager.checkpoint.dcp import _refuse_oversized_memo
from packager.checkpoint.key_matching import fit
from packager.checkpoint.safetensors_header import read_header
from packager.cli.describe import inspect
from packager.errors import (
    CheckpointNeedsCode,
    CheckpointNotSaved,
    CheckpointUnreadable,
    HuggingFaceExportRefused,
    StateDoesNotFit,
    TrainingStateDiffers,
)


class Zeros:
    """A pickle of this makes a bytearray of so many zeros."""

    def __reduce__(self):
        return bytearray, (1 << 20,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bytearray_of_any_size_is_refused(tmp_path, zipped, golden):
    saved = {"state_dict": {"w": torch.ones(2)}, "beside": Zeros()}
    torch.save(saved, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointUnreadable) as caught:
        checkpoint.read(tmp_path / "best.pt")
    golden(caught.value.why)


def test_the_word_bytearray_in_the_values_of_a_tensor_is_harmless(tmp_path):
    word = torch.frombuffer(bytearray(b"bytearray " * 8), dtype=torch.uint8)
    for zipped in (True, False):
        torch.save({"w": word}, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
        assert torch.equal(checkpoint.read(tmp_path / "best.pt").state["w"], word)


@pytest.mark.parametrize("memo", [b"r" + struct.pack("<I", 1 << 24), b"p16777216\n"])
def test_a_memo_index_beyond_the_end_of_a_pickle_is_refused_and_no_other(memo, golden):
    with pytest.raises(ValueError) as caught:
        _refuse_oversized_memo(b"\x80\x04N" + memo + b".")
    golden(caught.value)
    _refuse_oversized_memo(pickle.dumps({f"r{index}": b"r\xff\xff\xff\xff" for index in range(300)}))


def header(path, tensors, size):
    text = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


@pytest.mark.parametrize(
    ("offsets", "shape", "size", "facts"),
    [
        ([0, 4], [1], 3, ("4", "3")),
        ([0, 4], [1], 5, ("4", "5")),
        ([0, 16], [1 << 40], 16, ("w",)),
        ([4, 8], [1], 8, ("w",)),
        (["a", "b"], [1], 8, ("w",)),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path, offsets, shape, size, facts, golden):
    path = header(tmp_path / "x.safetensors", {"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, size)
    with pytest.raises(ValueError) as caught:
        read_header(path)
    golden(str(caught.value), *facts)


def test_the_header_of_a_file_that_safetensors_wrote_is_accepted(tmp_path):
    tensors = {
        "a": torch.ones(3),
        "b": torch.zeros(0),
        "c": torch.ones(2, 2, dtype=torch.bfloat16),
        "d": torch.tensor(1),
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"note": "x"})
    assert set(read_header(tmp_path / "x.safetensors")) == {*tensors, "__metadata__"}


TIED = (frozenset({"emb.weight", "dec.weight"}),)
SHAPES = {"emb.weight": [3], "dec.weight": [3]}


def test_tied_weights_that_disagree_are_refused_and_those_that_agree_are_not(golden):
    with pytest.raises(StateDoesNotFit) as caught:
        fit({"emb.weight": torch.ones(3), "dec.weight": torch.zeros(3)}, SHAPES, tied=TIED)
    golden(caught.value.why, "dec.weight", "emb.weight")
    assert fit({"emb.weight": torch.ones(3), "dec.weight": torch.ones(3)}, SHAPES, tied=TIED).missing == ()


def test_a_prefix_that_makes_two_keys_collide_is_refused(golden):
    with pytest.raises(StateDoesNotFit) as caught:
        fit({"m.bias": torch.ones(2), "bias": torch.zeros(2)}, {"bias": [2]}, prefix="m.")
    golden(caught.value.why, "checkpoint.prefix", "m", "m.bias")


class Exported(nn.Linear):
    def save_pretrained(self, folder):
        from pathlib import Path

        Path(folder).mkdir()
        safetensors.torch.save_file(self.state_dict(), f"{folder}/model.safetensors")
        Path(folder, "config.json").write_text("{}")


def test_a_file_of_the_user_survives_a_second_export(tmp_path, golden):
    folder = export_huggingface(Exported(2, 2), tmp_path / "out")
    (folder / "tokenizer.json").touch()
    export_huggingface(Exported(2, 2), folder)  # an earlier export, with a tokenizer
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    (folder / "thesis.tex").write_text("all of it")
    with pytest.raises(HuggingFaceExportRefused) as caught:
        export_huggingface(Exported(2, 2), folder)
    golden(caught.value.why, "thesis.tex")
    assert (folder / "thesis.tex").read_text() == "all of it"


def test_a_manager_without_a_metric_keeps_the_metric_of_the_run(tmp_path):
    model = nn.Linear(1, 1)
    CheckpointManager(tmp_path, keep=Retention(metric="loss", mode="max")).save(
        step=1, model=model, metrics={"loss": 1}
    )
    CheckpointManager(tmp_path).save(step=2, model=model, metrics={"loss": 0})
    assert run_folder.read_run_settings(tmp_path) == ("loss", "max")


def test_moments_that_differ_in_shape_from_their_parameter_are_refused(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW([model.weight, model.bias])
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    manager = CheckpointManager(tmp_path)
    manager.save(step=1, model=model, optimizer=optimizer)
    with pytest.raises(TrainingStateDiffers) as caught:
        manager.restore(model=model, optimizer=torch.optim.AdamW([model.bias, model.weight]))
    mentions(str(caught.value), "optimizer", "exp_avg", "0", "[3, 4]", "[3]")
    manager.restore(model=model, optimizer=torch.optim.AdamW([model.weight, model.bias]))


def test_an_error_in_the_background_is_raised_by_the_next_look_at_the_run(tmp_path):
    (tmp_path / "runs").write_text("no folder")
    manager = CheckpointManager(tmp_path / "runs")
    manager.save(step=1, model=nn.Linear(1, 1), blocking=False)
    while not manager._pending.done():
        pass
    with pytest.raises(CheckpointNotSaved):
        manager.latest()


@pytest.mark.parametrize("kind", ["TorchScript", "an exported program"])
def test_an_exported_program_is_recognized_by_the_entries_of_its_archive(tmp_path, kind, golden):
    path = tmp_path / ("net.ts" if kind == "TorchScript" else "net.pt2")
    if kind == "TorchScript":
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path)
    else:
        torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), path)
    description = inspect(path)
    golden(description["format"], kind, "forward()")
    assert sorted(description["tensors"].values()) == ["12 bytes", "24 bytes"]


def test_an_index_with_a_tensor_that_no_shard_has_is_refused(tmp_path, golden):
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointUnreadable) as caught:
        inspect(tmp_path / "model.safetensors.index.json")
    golden(caught.value.why, "model.safetensors.index.json")


def test_a_whole_module_in_the_legacy_format_is_refused_with_every_class_it_needs(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    torch.save({"model": module}, tmp_path / "best.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointNeedsCode) as caught:
        checkpoint.read(tmp_path / "best.pt")
    classes = ("container.Sequential", "linear.Linear", "activation.ReLU")
    assert all(f"torch.nn.modules.{name}" in str(caught.value) for name in classes)
