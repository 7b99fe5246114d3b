"""A checkpoint's weights in the module: NaN and infinity, what keeps its initial value, and how both are reported."""

import hashlib
import shutil

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from loading import load
from messages import mentions
from projects import LINEAR, package, project, python

import packager
from packager import checkpoint
from packager.builder.vet import vet
from packager.checkpoint.locate import digest_checkpoint, locate_files
from packager.common.hashing import sha256_file
from packager.common.progress import Note
from packager.errors import CheckpointDigestWrong, InputChanged, StateDoesNotFit, WeightsNotFinite, render_error

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.tensor([1.0, 2.0, 3.0])}


# -- NaN and infinity -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, dtype):
    weight = STATE["layer.weight"].clone()
    weight[1, 2] = value
    path = project(tmp_path, state={**STATE, "layer.weight": weight.to(dtype)})
    with pytest.raises(WeightsNotFinite) as caught:
        vet(path)
    mentions(render_error(caught.value), "error[weights-not-finite]", f"{path}:6: checkpoint", "NaN", "layer.weight")
    assert caught.value.exit_status == 2


def test_the_command_refuses_weights_that_are_not_finite_with_status_2(tmp_path):
    path = project(tmp_path, state={**STATE, "layer.bias": torch.full((3,), float("nan"))})
    done = package("build", path, "-o", tmp_path / "dist")
    assert (done.returncode, done.stdout) == (2, "")
    mentions(done.stderr, "NaN", "layer.bias")
    assert not (tmp_path / "dist" / "net-1.0.0").exists()


MASKED = LINEAR.replace(
    "        self.layer = nn.Linear(4, 3)\n",
    "        self.layer = nn.Linear(4, 3)\n"
    "        self.register_buffer('mask', torch.full((3,), float('-inf')))\n"
    "        self.register_buffer('mean', torch.zeros(3))\n",
)


def test_a_mask_may_hold_infinities_and_another_buffer_may_not(tmp_path):
    buffers = {"mask": torch.tensor([0.0, float("-inf"), float("-inf")]), "mean": torch.zeros(3)}
    assert load(project(tmp_path, MASKED, state={**STATE, **buffers})).module.mask[0] == 0
    for name in buffers:
        damaged = {**buffers, name: torch.tensor([float("nan"), 0.0, 0.0])}
        with pytest.raises(WeightsNotFinite):
            load(project(tmp_path, MASKED, state={**STATE, **damaged}))
    with pytest.raises(WeightsNotFinite):
        load(project(tmp_path, MASKED, state={**STATE, **buffers, "mean": torch.full((3,), float("inf"))}))


def test_a_tensor_that_is_not_in_the_module_may_hold_anything(tmp_path):
    state = {**STATE, "queue": torch.full((2,), float("nan"))}
    path = project(tmp_path, state=state, checkpoint={"path": "best.pt", "allow_unexpected": ["queue"]})
    assert load(path).key_match.unexpected == ("queue",)


# -- what keeps its initial value ------------------------------------------------------------


@pytest.mark.slow
def test_parameters_that_keep_their_initial_value_are_reported_by_build_and_vet_and_recorded(tmp_path):
    events = []
    zero = LINEAR.replace("nn.Linear(4, 3)\n", "nn.Linear(4, 3)\n        nn.init.zeros_(self.layer.bias)\n")
    state = {"layer.weight": STATE["layer.weight"]}
    path = project(tmp_path, zero, state=state, checkpoint={"path": "best.pt", "allow_missing": ["*.bias"]})
    note = "missing from the checkpoint, initialized by the constructor: layer.bias"
    assert vet(path).notes == (note,)
    assert f"note: {note}" in package("vet", path).stdout
    result = packager.build(path, tmp_path / "dist", listener=events.append)
    assert Note(note) in events
    assert '"outcome": "layer.bias"' in (result.bundle / "evidence/build.json").read_text()


def test_a_prefix_that_no_key_has_is_refused_with_the_nearest(tmp_path, golden):
    state = {f"encoder.{name}": tensor for name, tensor in STATE.items()}
    path = project(tmp_path, state=state, checkpoint={"path": "best.pt", "prefix": "encodr."})
    with pytest.raises(StateDoesNotFit) as caught:
        load(path)
    golden(
        render_error(caught.value),
        "error[state-does-not-fit]",
        f"{path}:6: checkpoint",
        "checkpoint.prefix",
        "encodr",
        "encoder.layer.weight",
        "encoder.layer.bias",
        "encoder",
    )
    assert load(project(tmp_path, state=state, checkpoint={"path": "best.pt", "prefix": "encoder."})).parameters == 15


def test_vet_reports_what_the_checkpoint_holds_beside_the_weights(tmp_path):
    report = vet(project(tmp_path, state={"model": STATE, "epoch": 3, "val_loss": 0.5, "optimizer": {"state": {}}}))
    assert report.as_json()["about"] == {
        "epoch": 3,
        "step": None,
        "metrics": {"val_loss": 0.5},
        "hyperparameters": {},
        "optimizer": True,
        "scheduler": False,
        "ema": False,
        "name": None,
        "version": None,
        "revision": None,
    }


# -- folders in a build -----------------------------------------------------------------------


def test_a_folder_is_pinned_cached_and_built_again_when_one_file_changes(tmp_path):
    dcp.save({"model": STATE}, checkpoint_id=tmp_path / "run", no_dist=True)
    pinned = digest_checkpoint(locate_files(tmp_path / "run"), sha256_file)
    path = project(tmp_path, checkpoint={"path": "run", "sha256": pinned})
    first = packager.build(path, tmp_path / "dist")
    assert packager.build(path, tmp_path / "dist").cached
    assert pinned in (first.bundle / "config.json").read_text()

    shutil.rmtree(tmp_path / "run")
    dcp.save({"model": {**STATE, "layer.bias": torch.zeros(3)}}, checkpoint_id=tmp_path / "run", no_dist=True)
    with pytest.raises(CheckpointDigestWrong):
        packager.build(path, tmp_path / "dist")
    other = packager.build(project(tmp_path, checkpoint={"path": "run"}), tmp_path / "dist")
    assert not other.cached
    assert other.fingerprint != first.fingerprint


@pytest.mark.slow
def test_a_folder_that_has_not_changed_is_seen_to_be_the_same_without_reading_the_manifest(tmp_path):
    dcp.save({"model": STATE}, checkpoint_id=tmp_path / "run", no_dist=True)
    path = project(tmp_path, checkpoint={"path": "run"})
    code = "import sys, packager\npackager.build(sys.argv[1], sys.argv[2])\nprint('pydantic' in sys.modules)"
    outputs = [python(code, path, tmp_path / "dist").stdout.strip() for _ in range(3)]
    assert outputs == ["True", "False", "False"]


def test_a_shard_that_goes_away_is_noticed_by_the_next_build(tmp_path, golden):
    for name, tensor in STATE.items():
        safetensors.torch.save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    entries = ", ".join(f'"{name}": "{name}.safetensors"' for name in STATE)
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{entries}}}}}')
    path = project(tmp_path, checkpoint={"path": "model.safetensors.index.json"})
    packager.build(path, tmp_path / "dist")
    assert packager.build(path, tmp_path / "dist").cached
    (tmp_path / "layer.bias.safetensors").unlink()
    with pytest.raises(packager.PackagerError) as caught:
        packager.build(path, tmp_path / "dist")
    golden(caught.value.why, "layer.bias.safetensors")


def test_a_shard_that_changes_during_the_build_is_noticed(tmp_path):
    dcp.save({"model": STATE}, checkpoint_id=tmp_path / "run", no_dist=True)
    touch = f"import os\nos.utime({str(tmp_path / 'run' / '__0_0.distcp')!r}, (1, 1))\n"
    path = project(tmp_path, touch + LINEAR, state=STATE, checkpoint={"path": "run"})
    with pytest.raises(InputChanged):
        packager.build(path, tmp_path / "dist")


def test_one_file_has_the_digest_it_always_had(tmp_path):
    path = project(tmp_path, state=STATE)
    expected = hashlib.sha256((tmp_path / "best.pt").read_bytes()).hexdigest()
    assert load(path).checkpoint_sha256 == expected
    assert checkpoint.read(tmp_path / "best.pt").key == ""
