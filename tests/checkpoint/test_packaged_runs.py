"""A run of CheckpointManager as the checkpoint of a manifest: its best, its averaged weights, its table."""

import json

import pytest
import torch
from projects import LINEAR, package, project
from torch import nn

import packager
from packager import manifest, source
from packager.checkpoint import CheckpointManager, Retention, locate
from packager.vet import vet


class Net(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.weight.fill_(value)
            self.layer.bias.fill_(value)


@pytest.fixture
def run(tmp_path):
    """A project whose checkpoint is a run of three, the second of which is the best."""
    path = project(tmp_path / "project", LINEAR, checkpoint={"path": "runs"})
    with CheckpointManager(path.parent / "runs", keep=Retention(latest=3, metric="loss")) as manager:
        for step, loss in enumerate([3.0, 1.0, 2.0]):
            manager.save(step=step, epoch=step, model=Net(step), ema=Net(step + 10), metrics={"loss": loss})
    return path


def weight(path):
    with source.opened(manifest.load(path)) as opening:
        return opening().module.layer.weight.detach().flatten()[0].item()


@pytest.mark.parametrize(("weights", "value"), [("auto", 1.0), ("model", 1.0), ("ema", 11.0)])
def test_a_manifest_that_names_a_run_gets_its_best_checkpoint(run, weights, value):
    text = run.read_text().replace("path: runs", f"path: runs\n  weights: {weights}")
    run.write_text(text)
    assert weight(run) == value


def test_a_manifest_may_name_one_checkpoint_of_a_run(run):
    run.write_text(run.read_text().replace("path: runs", "path: runs/step-00000002"))
    assert weight(run) == 2.0


def test_the_best_that_is_damaged_is_passed_over_and_the_build_says_what_it_takes(run, tmp_path, golden):
    weights = run.parent / "runs/step-00000001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    told = []
    packager.build(run, tmp_path / "out", listener=told.append)
    (note,) = [note for note in vet(run).notes if "step-00000001" in note]
    assert note in [getattr(event, "message", "") for event in told]
    golden(note, "step-00000001", "model.safetensors", "step-00000002")


def test_a_better_checkpoint_is_another_build_and_the_same_one_is_none(run, tmp_path):
    first = packager.build(run, tmp_path / "out")
    assert packager.build(run, tmp_path / "out").cached
    with CheckpointManager(run.parent / "runs", keep=Retention(latest=3, metric="loss")) as manager:
        manager.save(step=3, model=Net(3), metrics={"loss": 5.0})
    assert packager.build(run, tmp_path / "out").cached
    with CheckpointManager(run.parent / "runs", keep=Retention(latest=3, metric="loss")) as manager:
        manager.save(step=4, model=Net(4), metrics={"loss": 0.5})
    second = packager.build(run, tmp_path / "out")
    assert not second.cached
    assert second.fingerprint != first.fingerprint


def test_the_digest_of_a_run_is_that_of_the_weights_that_are_read(run):
    located = locate.locate(run.parent / "runs")
    assert [file.relative_to(run.parent).as_posix() for file in located.files] == [
        "runs/step-00000001/model.safetensors"
    ]


def test_a_run_without_a_checkpoint_is_refused(run):
    for path in (run.parent / "runs").glob("step-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    answer = package("vet", run)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error[")


def test_inspect_lists_a_run(run):
    answer = package("inspect", run.parent / "runs")
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0].split() == ["step", "epoch", "metrics", "bytes", "age", "path"]
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"]
    assert "best" in lines[2] and "latest" in lines[3]
    found = json.loads(package("inspect", run.parent / "runs", "--json").stdout)
    assert found["kind"] == "run"
    assert [one["metrics"]["loss"] for one in found["checkpoints"]] == [3.0, 1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_vet_and_inspect_tell_what_the_record_of_the_checkpoint_says(run, weights):
    run.write_text(run.read_text().replace("path: runs", f"path: runs\n  weights: {weights}"))
    expected = {
        "epoch": 1, "step": 1, "metrics": {"loss": 1.0}, "hyperparameters": {}, "optimizer": False, "scheduler": False,
        "ema": True, "name": "model", "version": "0.1.0",
    }  # fmt: skip
    report = json.loads(package("vet", run, "--json").stdout)
    assert report["about"] == {**expected, "revision": report["about"]["revision"]}
    shown = json.loads(package("inspect", run.parent / "runs/step-00000001", "--json").stdout)
    assert shown["about"] == report["about"]
    assert "tree" not in shown["metadata"]
    lines = package("vet", run).stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert (rows["run"], rows["step"], rows["metrics"]) == (["model", "0.1.0"], ["1"], ["loss", "1"])


@pytest.mark.slow
def test_what_averaged_weights_took_from_the_model_is_told_by_vet_and_build(tmp_path, golden):
    source = LINEAR.replace("self.layer = ", "self.norm = nn.BatchNorm1d(3)\n        self.layer = ")
    namespace = {}
    exec(source, namespace)
    module = namespace["Net"]()
    shadow = {name: one.detach().clone() for name, one in module.named_parameters()}
    path = project(tmp_path, source, checkpoint={"path": "best.pt", "weights": "ema"})
    torch.save({"model": module.state_dict(), "ema": {"shadow": shadow}}, tmp_path / "best.pt")
    answer = package("vet", path)
    (note,) = [line for line in answer.stdout.splitlines() if "norm.running_mean" in line]
    golden(note, "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    answer = package("build", path, "-o", tmp_path / "out")
    assert note in answer.stdout.splitlines() + answer.stderr.splitlines()
