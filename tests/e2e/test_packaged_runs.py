"""A run of CheckpointManager as the checkpoint of a manifest: its best, its averaged weights, its table."""

import hashlib
import json
import os
import shutil
import time

import pytest
import torch
from messages import mentions
from projects import LINEAR, package, project, python
from torch import nn

import packager
from packager.builder.vet import vet
from packager.checkpoint import CheckpointManager, Retention, locate
from packager.errors import CheckpointDigestWrong, InputChanged
from packager.model import loader
from packager.project import manifest


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
    with loader.open_model_loader(manifest.load_manifest(path)) as opening:
        return opening().module.layer.weight.detach().flatten()[0].item()


@pytest.mark.parametrize(("weights", "value"), [("auto", 1.0), ("model", 1.0), ("ema", 11.0)])
def test_a_manifest_that_names_a_run_gets_its_best_checkpoint(run, weights, value):
    text = run.read_text().replace("path: runs", f"path: runs\n  weights: {weights}")
    run.write_text(text)
    assert weight(run) == value


def test_a_manifest_may_name_one_checkpoint_of_a_run(run):
    run.write_text(run.read_text().replace("path: runs", "path: runs/step-00000002"))
    assert weight(run) == 2.0


def test_a_damaged_best_checkpoint_is_skipped_and_the_build_names_the_one_it_uses(run, tmp_path, golden):
    weights = run.parent / "runs/step-00000001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    events = []
    packager.build(run, tmp_path / "out", listener=events.append)
    (note,) = [note for note in vet(run).notes if "step-00000001" in note]
    assert note in [getattr(event, "message", "") for event in events]
    golden(note, "step-00000001", "model.safetensors", "step-00000002")


def test_a_better_checkpoint_is_built_and_a_worse_one_changes_nothing(run, tmp_path):
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


def test_the_files_of_a_run_are_the_weights_of_its_best_checkpoint(run):
    located = locate.locate_files(run.parent / "runs")
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
    record = json.loads(package("inspect", run.parent / "runs", "--json").stdout)
    assert record["kind"] == "run"
    assert [checkpoint["metrics"]["loss"] for checkpoint in record["checkpoints"]] == [3.0, 1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_vet_and_inspect_show_the_record_of_the_checkpoint(run, weights):
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
def test_vet_and_build_report_buffers_that_averaged_weights_take_from_the_model(tmp_path, golden):
    source = LINEAR.replace("self.layer = ", "self.norm = nn.BatchNorm1d(3)\n        self.layer = ")
    namespace = {}
    exec(source, namespace)
    module = namespace["Net"]()
    shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    path = project(tmp_path, source, checkpoint={"path": "best.pt", "weights": "ema"})
    torch.save({"model": module.state_dict(), "ema": {"shadow": shadow}}, tmp_path / "best.pt")
    answer = package("vet", path)
    (note,) = [line for line in answer.stdout.splitlines() if "norm.running_mean" in line]
    golden(note, "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    answer = package("build", path, "-o", tmp_path / "out")
    assert note in answer.stdout.splitlines() + answer.stderr.splitlines()


# -- how often the weights are read -----------------------------------------------------------

COUNT_HASHES = """
import json, sys

hashed = []

def audit(event, arguments):
    if event != "open" or not str(arguments[0]).startswith(sys.argv[1]):
        return
    frame, callers = sys._getframe(1), []
    while frame is not None:
        callers.append(frame.f_code.co_name)
        frame = frame.f_back
    if "sha256_file" in callers:
        hashed.append(str(arguments[0]).removeprefix(sys.argv[1]))

import packager
from packager.builder.vet import vet
sys.addaudithook(audit)
for code in sys.argv[2:]:
    hashed.clear()
    exec(code)
    print(json.dumps(hashed))
"""
BEST = "/step-00000001/model.safetensors"


def list_hashed_files(run, *commands):
    """Return for each command the files of the run that it hashes, one name for each pass, in one process."""
    answer = python(COUNT_HASHES, run.parent / "runs", *commands, cwd=run.parent)
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("[")]


def settle(run):
    """Wait until the run is so old that any later write to it shows in the times of its files."""
    newest = max(path.stat().st_ctime_ns for path in (run.parent / "runs").rglob("*"))
    time.sleep(max(0.0, (newest + 2_100_000_000 - time.time_ns()) / 1e9))


def test_a_build_hashes_the_weights_of_a_run_once_unless_their_times_cannot_show_a_change(run):
    # One pass: the choice of the best checkpoint compares its weights with the digest that the run has saved. The pin,
    # the bundle's record and the cache's keys take that digest over, and file times show that nothing changed since.
    settle(run)
    # Weights whose times cannot show a change are hashed once more when the bundle is done: a file written within two
    # seconds of the first pass, or dated in the future, may be written again without a new time.
    later = time.time() + 3600
    assert list_hashed_files(
        run,
        "packager.build('package.yaml', 'out')",
        "packager.build('package.yaml', 'out', cache='off')",
        "vet('package.yaml')",
        f"import os; os.utime('runs{BEST}', ({later}, {later})); packager.build('package.yaml', 'out', cache='off')",
    ) == [[BEST], [BEST], [BEST], [BEST, BEST]]


def at(stage, change):
    """Return a listener that calls `change` once, when a stage starts."""
    waiting = [change]

    def listen(event):
        if getattr(event, "stage", "") == stage and waiting:
            waiting.pop()()

    return listen


def written_in_place(path):
    """Change one weight; the size, the inode and the modification time stay."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchanged(path):
    """Replace the file with a copy."""
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [written_in_place, exchanged])
@pytest.mark.parametrize("age", ["settled", "fresh"])
def test_weights_of_a_run_that_change_during_the_build_are_refused(run, tmp_path, monkeypatch, change, age):
    path = run.parent / f"runs{BEST}"
    if age == "settled":
        monkeypatch.setattr(locate, "_SETTLED_NS", 0)
    with pytest.raises(InputChanged) as caught:
        packager.build(run, tmp_path / "out", listener=at("bundle", lambda: change(path)))
    mentions(caught.value.message, "runs")
    assert not (tmp_path / "out").exists()


def test_weights_of_a_run_that_vanish_before_they_are_loaded_are_refused(run, tmp_path):
    path = run.parent / f"runs{BEST}"
    with pytest.raises(InputChanged) as caught:
        packager.build(run, tmp_path / "out", listener=at("source", lambda: shutil.rmtree(path.parent)))
    mentions(caught.value.message, "runs")


def test_the_pin_of_a_run_is_checked_before_its_weights_are_parsed(run, tmp_path):
    run.write_text(run.read_text().replace("path: runs", f"path: runs\n  sha256: {'f' * 64}"))
    path = run.parent / f"runs{BEST}"
    saved = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"no safetensors")  # which the run says that it has saved
    record = path.with_name("checkpoint.json")
    record.write_text(record.read_text().replace(saved, hashlib.sha256(b"no safetensors").hexdigest()))
    with pytest.raises(CheckpointDigestWrong) as caught:
        packager.build(run, tmp_path / "out")
    mentions(caught.value.message, "runs")
    mentions(caught.value.why, "f" * 64)


def test_a_better_checkpoint_saved_during_the_build_is_left_to_the_next_one(run, tmp_path):
    def save():
        with CheckpointManager(run.parent / "runs", keep=Retention(latest=3, metric="loss")) as manager:
            manager.save(step=3, model=Net(3), metrics={"loss": 0.5})

    expected = packager.build(run, tmp_path / "before", cache="off").fingerprint
    first = packager.build(run, tmp_path / "out", listener=at("trace", save))
    assert first.fingerprint == expected
    second = packager.build(run, tmp_path / "out")
    assert not second.cached
    assert second.fingerprint != expected
