"""Checkpoint files → a state dict, with nothing in them run."""

import collections
import hashlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from messages import mentions
from projects import project

from packager import checkpoint
from packager.checkpoint.state_dict import EMA_KEYS, MODEL_KEYS
from packager.errors import (
    CheckpointDigestWrong,
    CheckpointNeedsCode,
    CheckpointNotFound,
    CheckpointUnreadable,
    WeightsNotFound,
    render_error,
)
from packager.model import loader
from packager.project import manifest

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.tensor([1.0, 2.0, 3.0])}


class Malicious:
    """Writes a marker file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def same(state):
    return set(state) == set(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


# -- what is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best.pt", "best.pth", "best.ckpt", "best.bin", "noending"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_of_torch_save_is_read_whatever_its_suffix_and_format(tmp_path, name, zipped):
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    result = checkpoint.read(tmp_path / name)
    assert same(result.state)
    assert (result.key, result.beside) == ("", ())


def test_safetensors_are_read(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "best.safetensors", {"step": "3"})
    assert same(checkpoint.read(tmp_path / "best.safetensors").state)


def test_an_ordered_dict_and_parameters_are_a_state_dict(tmp_path):
    state = collections.OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in STATE.items())
    torch.save(state, tmp_path / "best.pt")
    assert same(checkpoint.read(tmp_path / "best.pt").state)


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_auto_finds_the_state_dict_under_each_usual_key(tmp_path, key):
    torch.save({"epoch": 3, key: STATE, "optimizer": {"state": {}, "lr": 0.1}}, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt")
    assert same(result.state)
    assert (result.key, result.beside) == (key, ("epoch", "optimizer"))


@pytest.mark.parametrize("key", EMA_KEYS)
def test_ema_finds_the_averaged_weights_and_model_the_others(tmp_path, key):
    torch.save({"model": STATE, key: {name: tensor + 1 for name, tensor in STATE.items()}}, tmp_path / "best.pt")
    assert checkpoint.read(tmp_path / "best.pt", "ema").key == key
    assert torch.equal(checkpoint.read(tmp_path / "best.pt", "ema").state["layer.bias"], torch.tensor([2.0, 3.0, 4.0]))
    assert same(checkpoint.read(tmp_path / "best.pt", "model").state)


def test_a_dotted_key_leads_into_a_nested_checkpoint(tmp_path):
    torch.save({"run": {"student": STATE, "teacher": {"w": torch.zeros(1)}}}, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt", "run.student")
    assert same(result.state)
    assert result.key == "run.student"


def test_values_beside_the_weights_that_are_not_tensors_are_left_out(tmp_path):
    torch.save({"state_dict": {**STATE, "version": 2, "note": "x"}}, tmp_path / "best.pt")
    assert same(checkpoint.read(tmp_path / "best.pt").state)


def test_a_flat_file_with_a_number_beside_its_tensors_is_read(tmp_path):
    torch.save({**STATE, "epoch": 3}, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt")
    assert same(result.state)
    assert result.beside == ("epoch",)


def test_a_whole_module_in_a_trusted_pickle_is_read_as_its_state_dict(tmp_path):
    module = torch.nn.Linear(4, 3)
    torch.save(module, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt", trust_pickle=True)
    assert torch.equal(result.state["weight"], module.weight)
    with pytest.raises(CheckpointNeedsCode):
        checkpoint.read(tmp_path / "best.pt")


# -- keys that find nothing -----------------------------------------------------------------


def test_missing_averaged_weights_are_reported_with_the_keys_tried_and_those_present(tmp_path, golden):
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "best.pt")
    with pytest.raises(WeightsNotFound) as caught:
        checkpoint.read(tmp_path / "best.pt", "ema", where="package.yaml:7: checkpoint.path")
    golden(
        render_error(caught.value),
        "error[weights-not-found]",
        "checkpoint.weights",
        "package.yaml:7: checkpoint.path",
        "ema_state_dict",
        "state_dict_ema",
        "model_ema",
        "ema_model",
        "ema_state",
        "averaged_model",
        "swa_model",
        "swa_state_dict",
        "dotted.key",
        "ema",
    )


def test_a_missing_dotted_key_is_reported_with_the_most_similar_one(tmp_path, golden):
    torch.save({"run": {"student": STATE}}, tmp_path / "best.pt")
    with pytest.raises(WeightsNotFound) as caught:
        checkpoint.read(tmp_path / "best.pt", "run.studnet")
    golden(render_error(caught.value), "error[weights-not-found]", "checkpoint.weights", "run.studnet", "student")


@pytest.mark.parametrize(
    ("weights", "facts"),
    [
        ("run.step", ()),
        ("run.student.bias.deeper", ("deeper",)),
        ("run", ()),
    ],
)
def test_a_dotted_key_to_something_else_is_refused(tmp_path, weights, facts, golden):
    torch.save({"run": {"student": {"bias": STATE["layer.bias"]}, "step": 3}}, tmp_path / "best.pt")
    with pytest.raises(WeightsNotFound) as caught:
        checkpoint.read(tmp_path / "best.pt", weights)
    golden(caught.value.why, *facts)


@pytest.mark.parametrize("empty", [{}, {"model": {}}, {"epoch": 3}])
def test_a_file_without_weights_is_refused(tmp_path, empty):
    torch.save(empty, tmp_path / "best.pt")
    with pytest.raises(WeightsNotFound):
        checkpoint.read(tmp_path / "best.pt")


# -- files that are refused -----------------------------------------------------------------


def test_a_missing_file_is_reported_with_the_checkpoints_beside_it(tmp_path, golden):
    (tmp_path / "last.pt").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointNotFound) as caught:
        checkpoint.read(tmp_path / "best.pt", where="package.yaml:7: checkpoint.path")
    golden(
        render_error(caught.value),
        "error[checkpoint-not-found]",
        tmp_path / "best.pt",
        "package.yaml:7: checkpoint.path",
        "last.pt",
    )


def test_a_missing_folder_is_reported_as_a_missing_file(tmp_path):
    with pytest.raises(CheckpointNotFound):
        checkpoint.read(tmp_path / "runs" / "best.pt")


def refusal(path, **settings):
    with pytest.raises(CheckpointUnreadable) as caught:
        checkpoint.read(path, **settings)
    mentions(caught.value.message, path)
    return caught.value.why


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_an_empty_file_and_a_folder_are_refused(tmp_path, name, golden):
    (tmp_path / name).touch()
    golden(refusal(tmp_path / name))
    golden(refusal(tmp_path / name, trust_pickle=True))
    (tmp_path / "folder").mkdir()
    golden(refusal(tmp_path / "folder"))


def test_the_error_of_an_unreadable_checkpoint_is_readable_as_a_whole(tmp_path, golden):
    (tmp_path / "best.pt").touch()
    with pytest.raises(CheckpointUnreadable) as caught:
        checkpoint.read(tmp_path / "best.pt", where="package.yaml:7: checkpoint.path")
    golden(
        render_error(caught.value),
        "error[checkpoint-unreadable]",
        tmp_path / "best.pt",
        "package.yaml:7: checkpoint.path",
    )


def test_a_file_of_a_different_format_is_identified(tmp_path, golden):
    (tmp_path / "text.pt").write_text("epoch 3, loss 0.2\n")
    golden(refusal(tmp_path / "text.pt"))
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    (tmp_path / "arrays.npz").rename(tmp_path / "arrays.pt")
    golden(refusal(tmp_path / "arrays.pt"), "data.pkl")
    safetensors.torch.save_file(STATE, tmp_path / "best.pt")
    golden(refusal(tmp_path / "best.pt"), ".safetensors")
    torch.save(STATE, tmp_path / "best.safetensors")
    golden(refusal(tmp_path / "best.safetensors"), ".pt")


def whole(tmp_path, form):
    path = tmp_path / ("whole.safetensors" if form == "safetensors" else "whole.pt")
    if form == "safetensors":
        safetensors.torch.save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("trust_pickle", [False, True])
def test_a_file_truncated_anywhere_is_refused(tmp_path, form, trust_pickle):
    path = whole(tmp_path, form)
    content = path.read_bytes()
    lengths = {1, 2, 4, 7, 8, 9, 64, len(content) // 4, len(content) // 2, len(content) - 40, len(content) - 1}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        assert refusal(path, trust_pickle=trust_pickle), f"{length} bytes of {len(content)}"


def test_every_length_of_a_legacy_file_is_refused(tmp_path):
    path = whole(tmp_path, "legacy")
    content = path.read_bytes()
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises((CheckpointUnreadable, CheckpointNeedsCode)):  # the latter where a name is cut off
            checkpoint.read(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_are_read_or_refused_and_never_crash(tmp_path, form):
    path = whole(tmp_path, form)
    content, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            checkpoint.read(path)
        except (CheckpointUnreadable, CheckpointNeedsCode, WeightsNotFound):
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "content",
    [b"hello, world\n", b"\x00" * 4096, b"\x89PNG\r\n\x1a\n" + b"\x07" * 500, b"<!DOCTYPE html><p>404", b"\x80"],
    ids=["text", "zeros", "image", "web page", "byte"],
)
@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
@pytest.mark.parametrize("trust_pickle", [False, True])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, content, name, trust_pickle):
    (tmp_path / name).write_bytes(content)
    assert "\n" not in refusal(tmp_path / name, trust_pickle=trust_pickle)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert refusal(tmp_path / "best.pt")


@pytest.mark.parametrize("value", [torch.zeros(3), [torch.zeros(3)], 7, "text"])
def test_a_file_that_holds_something_else_is_refused(tmp_path, value, golden):
    torch.save(value, tmp_path / "best.pt")
    golden(refusal(tmp_path / "best.pt"), type(value).__name__)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("content", [{"layer.weight": [1.0, 2.0]}, {"layer.weight": torch.ones(3)}])
@pytest.mark.parametrize("trust_pickle", [False, True])
def test_a_plain_pickle_is_identified_and_refused(tmp_path, content, protocol, trust_pickle):
    (tmp_path / "best.pt").write_bytes(pickle.dumps(content, protocol))
    why = refusal(tmp_path / "best.pt", trust_pickle=trust_pickle)
    mentions(why, "pickle", "torch.save")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_protocol_that_torch_reads_only_by_running_code_is_named(tmp_path, protocol, zipped, golden):
    path = tmp_path / "best.pt"
    torch.save(STATE, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    golden(refusal(path), protocol, "2")
    read = checkpoint.read(path, trust_pickle=True).state
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())


def test_a_torchscript_archive_is_refused_by_name(tmp_path, golden):
    torch.jit.save(torch.jit.script(torch.nn.Linear(4, 3)), tmp_path / "best.pt")
    for trust_pickle in (False, True):
        why = refusal(tmp_path / "best.pt", trust_pickle=trust_pickle)
        golden(why)


# -- pickles that want to run code ----------------------------------------------------------


def save_malicious(path, marker, form):
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Malicious(marker), "epoch": 3}, protocol=2))
    else:
        torch.save({"model": Malicious(marker), **STATE}, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_needs_code_is_refused_and_not_executed(tmp_path, form, golden):
    marker = tmp_path / "marker"
    save_malicious(tmp_path / "best.pt", marker, form)
    with pytest.raises(CheckpointNeedsCode) as caught:
        checkpoint.read(tmp_path / "best.pt", where="package.yaml:7: checkpoint.path")
    assert not marker.exists()
    golden(
        render_error(caught.value),
        "error[checkpoint-needs-code]",
        tmp_path / "best.pt",
        "package.yaml:7: checkpoint.path",
        f"{os.mkdir.__module__}.mkdir",
        "checkpoint.trust_pickle",
    )


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_trusted_pickle_may_run_its_code(tmp_path, form):
    marker = tmp_path / "marker"
    save_malicious(tmp_path / "best.pt", marker, form)
    checkpoint.read(tmp_path / "best.pt", "auto", trust_pickle=True)
    assert marker.is_dir()


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_a_pickle_of_any_name_and_depth_is_not_executed(tmp_path, name):
    marker = tmp_path / "marker"
    torch.save({"a": [{"b": (Malicious(marker),)}], **STATE}, tmp_path / name)
    with pytest.raises((CheckpointNeedsCode, CheckpointUnreadable)):
        checkpoint.read(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_is_not_executed(tmp_path, protocol):
    marker = tmp_path / "marker"
    (tmp_path / "best.pt").write_bytes(pickle.dumps(Malicious(marker), protocol))
    with pytest.raises((CheckpointNeedsCode, CheckpointUnreadable)):
        checkpoint.read(tmp_path / "best.pt")
    assert not marker.exists()


def test_a_pickle_hidden_behind_a_second_zip_member_is_not_executed(tmp_path):
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(tmp_path / "best.pt", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            bad.writestr(name, pickle.dumps(Malicious(marker), 2) if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointNeedsCode):
        checkpoint.read(tmp_path / "best.pt")
    assert not marker.exists()


# -- the pin --------------------------------------------------------------------------------


def test_a_file_with_a_digest_other_than_the_pinned_one_is_refused(tmp_path, golden):
    path = project(tmp_path, checkpoint={"path": "best.pt", "sha256": "0" * 64})
    loaded = manifest.load_manifest(path)
    with loader.open_model_loader(loaded) as opening, pytest.raises(CheckpointDigestWrong) as caught:
        opening()
    digest = hashlib.sha256((tmp_path / "best.pt").read_bytes()).hexdigest()
    golden(
        render_error(caught.value),
        "error[checkpoint-digest]",
        "best.pt",
        f"{path}:8: checkpoint.sha256",
        "0" * 64,
        digest,
    )


def test_a_pin_is_checked_before_the_file_is_unpickled(tmp_path):
    path = project(tmp_path, checkpoint={"path": "best.pt", "sha256": "0" * 64, "trust_pickle": True})
    marker = tmp_path / "marker"
    save_malicious(tmp_path / "best.pt", marker, "zip")
    with loader.open_model_loader(manifest.load_manifest(path)) as opening, pytest.raises(CheckpointDigestWrong):
        opening()
    assert not marker.exists()


def test_a_file_with_the_pinned_digest_is_accepted(tmp_path):
    path = project(tmp_path)
    sha256 = hashlib.sha256((tmp_path / "best.pt").read_bytes()).hexdigest()
    path = project(tmp_path, checkpoint={"path": "best.pt", "sha256": sha256})
    with loader.open_model_loader(manifest.load_manifest(path)) as opening:
        assert opening().checkpoint_sha256 == sha256
