"""Saving: which checkpoints stay, and what a kill or a failing background save leaves; restoring: which is chosen."""

import json
import logging
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from messages import mentions
from projects import ROOT
from torch import nn

from packager.checkpoint import run_folder, state_tree_file
from packager.checkpoint.training.manager import CheckpointManager
from packager.checkpoint.training.retention import Retention
from packager.errors import (
    CheckpointDamaged,
    CheckpointNotFound,
    CheckpointNotSaved,
    NoCheckpointYet,
    RunSettingsWrong,
    StateNotExpressible,
    render_error,
)


def filled(value, size=4):
    model = nn.Linear(size, size, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def value_of(model):
    (value,) = set(model.weight.flatten().tolist())
    return value


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def names(folder):
    return sorted(os.listdir(folder))


# -- what stays -------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
def test_checkpoints_that_no_rule_wants_are_deleted(tmp_path, blocking):
    keep = Retention(latest=2, metric="loss", every_steps=4)
    with CheckpointManager(tmp_path, keep=keep) as manager:
        for step in range(8):
            manager.save(step=step, model=filled(step), metrics={"loss": abs(step - 3)}, blocking=blocking)
    assert names(tmp_path) == [".lock", "run.json", *(f"step-0000000{step}" for step in (0, 3, 4, 6, 7))]
    assert (manager.best().step, manager.latest().step) == (3, 7)
    assert [entry.step for entry in manager.list()] == [0, 3, 4, 6, 7]


def test_a_checkpoint_that_is_being_read_stays(tmp_path):
    manager = CheckpointManager(tmp_path, keep=Retention(latest=1))
    path = manager.save(step=0, model=filled(0))
    with run_folder.lock_for_reading(path):
        manager.save(step=1, model=filled(1))
        assert [entry.step for entry in manager.list()] == [0, 1]
    manager.save(step=2, model=filled(2))
    assert [entry.step for entry in manager.list()] == [2]


def test_a_step_saved_again_replaces_the_first(tmp_path):
    manager, model = CheckpointManager(tmp_path), filled(0)
    for step, value in ((1, 1), (2, 2), (1, 3)):
        manager.save(step=step, model=filled(value))
    assert manager.latest().step == 1
    manager.restore(model=model)
    assert value_of(model) == 3
    assert names(tmp_path) == [".lock", "run.json", "step-00000001", "step-00000002"]


def test_a_run_that_continues_from_an_earlier_step_has_the_history_of_its_own_branch(tmp_path):
    manager = CheckpointManager(tmp_path, keep=Retention(metric="loss"))
    for step in range(4):
        manager.save(step=step, model=filled(step), metrics={"loss": abs(step - 1)})
    again = CheckpointManager(tmp_path, keep=Retention(metric="loss", latest=1))
    assert again.restore("best", model=filled(0)).step == 1
    again.save(step=2, model=filled(9), metrics={"loss": 5})
    assert [line["step"] for line in again.latest().history] == [0, 1, 2]
    assert [entry.step for entry in again.list()] == [1, 2]


# -- which one is restored --------------------------------------------------------------------


def test_the_latest_the_best_or_the_one_at_a_path_is_restored(tmp_path):
    manager, model = CheckpointManager(tmp_path, keep=Retention(metric="accuracy", mode="max")), filled(0)
    paths = [
        manager.save(step=step, epoch=7, model=filled(step), metrics={"accuracy": torch.tensor(value)}, extra=(step,))
        for step, value in enumerate([0.5, 0.9, 0.7])
    ]
    for asked, step in ((None, 2), ("latest", 2), ("best", 1), (paths[0], 0), (str(paths[1]), 1)):
        restored = manager.restore(asked, model=model)
        assert (restored.step, restored.epoch, restored.extra, value_of(model)) == (step, 7, (step,), step)
        assert restored.path == paths[step]


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, caplog, golden):
    manager, model = CheckpointManager(tmp_path), filled(0)
    paths = [manager.save(step=step, model=filled(step)) for step in range(4)]
    spoil(paths[3] / "model.safetensors")
    (paths[2] / "training.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        assert manager.restore(model=model).step == 1
    assert value_of(model) == 1
    changed, missing = (record.message.splitlines()[0] for record in caplog.records)
    golden(changed, f"{paths[3]}/model.safetensors", manager.list()[3].digests["model.safetensors"])
    golden(missing, f"{paths[2]}/training.safetensors", "No such file or directory")


def test_a_damaged_checkpoint_that_was_named_is_refused(tmp_path, golden):
    manager = CheckpointManager(tmp_path)
    path = manager.save(step=1, model=filled(1))
    spoil(path / "model.safetensors")
    with pytest.raises(CheckpointDamaged) as caught:
        manager.restore(path, model=filled(0))
    lines = render_error(caught.value).splitlines()
    golden(lines[0], "error[checkpoint-damaged]", f"{path}/model.safetensors")
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", "\n".join(lines[1:3])))) == 2


@pytest.mark.parametrize(
    ("asked", "saved", "metric", "facts"),
    [
        ("latest", False, None, ()),
        ("best", True, None, ("keep=Retention(metric=…)", "best")),
        ("best", True, "loss", ("loss",)),
    ],
)
def test_if_nothing_can_be_restored_the_error_says_why(tmp_path, asked, saved, metric, facts, golden):
    manager = CheckpointManager(tmp_path, keep=Retention(metric=metric))
    if saved:
        manager.save(step=0, model=filled(0))
    assert manager.best() is None
    with pytest.raises(NoCheckpointYet) as caught:
        manager.restore(asked, model=filled(0))
    golden(render_error(caught.value), "error[no-checkpoint-yet]", tmp_path, *facts, "manager.latest()")


@pytest.mark.parametrize("asked", ["lastest", "step-00000007"])
def test_a_path_that_does_not_exist_is_not_found(tmp_path, asked, monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    manager = CheckpointManager(tmp_path)
    manager.save(step=0, model=filled(0))
    with pytest.raises(CheckpointNotFound) as caught:
        manager.restore(asked, model=filled(0))
    golden(render_error(caught.value), "error[checkpoint-not-found]", tmp_path / asked, "latest", "best")


# -- what is refused --------------------------------------------------------------------------


def test_state_that_cannot_be_expressed_is_refused_and_nothing_is_written(tmp_path, golden):
    manager = CheckpointManager(tmp_path / "runs")
    with pytest.raises(StateNotExpressible) as caught:
        manager.save(step=1, model=filled(0), extra={"callback": print})
    golden(caught.value.message, "extra.callback")
    with pytest.raises(StateNotExpressible) as caught:
        manager.save(step=1, model=filled(0), metrics={"loss": "low"})
    golden(caught.value.message, "metrics.loss")
    assert not (tmp_path / "runs").exists()


def test_there_is_no_pickle_in_any_file(tmp_path):
    model = filled(1)
    optimizer = torch.optim.Adam(model.parameters())
    path = CheckpointManager(tmp_path).save(step=1, model=model, optimizer=optimizer, ema=filled(2))
    assert names(path) == ["checkpoint.json", "ema.safetensors", "model.safetensors", "training.safetensors"]
    for file in path.glob("*.safetensors"):
        with file.open("rb") as stream:
            assert isinstance(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))), dict)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"name": "Net"}, ("Net", "_")),
        ({"version": "1.0"}, ("1.0", "1.0.0")),
    ],
)
def test_an_invalid_name_or_version_is_refused(tmp_path, settings, facts, golden):
    with pytest.raises(RunSettingsWrong) as caught:
        CheckpointManager(tmp_path, **settings)
    golden(caught.value.why, *facts)


@pytest.mark.parametrize("step", [-1, 1.0, True, "1"])
def test_a_step_or_epoch_that_is_not_a_count_is_refused(tmp_path, step):
    with pytest.raises(RunSettingsWrong):
        CheckpointManager(tmp_path).save(step=step, model=filled(0))
    with pytest.raises(RunSettingsWrong):
        CheckpointManager(tmp_path).save(step=0, epoch=step, model=filled(0))


# -- in the background ------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """Hold every write until the gate opens, and list the checkpoints whose writing has started."""
    gate, started, write_tree = threading.Event(), [], state_tree_file.write_tree

    def wait_and_write(path, *arguments):
        started.append(path.parent.name)
        gate.wait(20)
        return write_tree(path, *arguments)

    monkeypatch.setattr(state_tree_file, "write_tree", wait_and_write)
    yield gate, started
    gate.set()


def test_a_background_save_has_the_state_of_the_moment_it_was_called(tmp_path, held):
    gate, _ = held
    manager, model, other = CheckpointManager(tmp_path), filled(1), filled(0)
    path = manager.save(step=1, model=model, blocking=False)
    nn.init.constant_(model.weight, 2)
    assert not path.exists()
    gate.set()
    manager.wait()
    manager.restore(model=other)
    assert value_of(other) == 1
    manager.save(step=2, model=model, blocking=False)  # into the same memory as the first
    manager.restore(model=other)
    assert value_of(other) == 2


def test_only_one_save_is_written_at_a_time(tmp_path, held):
    gate, started = held
    manager = CheckpointManager(tmp_path)
    manager.save(step=1, model=filled(1), blocking=False)
    second = threading.Thread(target=lambda: manager.save(step=2, model=filled(2), blocking=False))
    second.start()
    second.join(0.2)
    assert second.is_alive() and len({*started}) <= 1
    gate.set()
    second.join()
    manager.close()
    assert [entry.step for entry in manager.list()] == [1, 2]


@pytest.mark.parametrize("call", ["save", "restore", "wait", "close"])
def test_the_error_of_a_background_save_is_raised_by_the_next_call(tmp_path, call, golden):
    folder = tmp_path / "runs"
    folder.write_text("a file in the way")
    manager = CheckpointManager(folder)
    manager.save(step=1, model=filled(1), blocking=False)
    arguments = {"save": {"step": 2, "model": filled(2)}, "restore": {"model": filled(0)}}.get(call, {})
    with pytest.raises(CheckpointNotSaved) as caught:
        getattr(manager, call)(**arguments)
    golden(render_error(caught.value), "error[checkpoint-not-saved]", f"{folder}/step-00000001")
    folder.unlink()
    if call != "close":
        manager.save(step=3, model=filled(3))
        assert [entry.step for entry in manager.list()] == [3]


def test_leaving_the_context_raises_the_error_of_a_save_unless_the_loop_failed_itself(tmp_path, caplog):
    folder = tmp_path / "runs"
    folder.write_text("a file in the way")
    with pytest.raises(CheckpointNotSaved), CheckpointManager(folder) as manager:
        manager.save(step=1, model=filled(1), blocking=False)
    with pytest.raises(ZeroDivisionError), CheckpointManager(folder) as manager:
        1 / len([manager.save(step=1, model=filled(1), blocking=False)][1:])
    mentions(caplog.text, "step-00000001", "File exists")


def test_a_full_disk_leaves_the_checkpoints_before_and_no_leftovers(tmp_path):
    code = (
        "import resource, signal, sys, torch\n"
        "from packager.checkpoint.training.manager import CheckpointManager\n"
        "from packager.errors import CheckpointNotSaved, render_error\n"
        "manager = CheckpointManager(sys.argv[1])\n"
        "manager.save(step=1, model=torch.nn.Linear(2, 2))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    manager.save(step=2, model=torch.nn.Linear(400, 400))\n"
        "except CheckpointNotSaved as error:\n"
        "    print(render_error(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[1] == "  File too large", done.stderr
    assert names(tmp_path) == [".lock", "run.json", "step-00000001"]
    assert CheckpointManager(tmp_path).restore(model=nn.Linear(2, 2)).step == 1


# -- killed -----------------------------------------------------------------------------------


def test_leftovers_of_a_killed_process_are_cleared_and_a_renamed_checkpoint_is_put_back(tmp_path):
    manager = CheckpointManager(tmp_path)
    path = manager.save(step=1, model=filled(1))
    os.rename(path, tmp_path / ".step-00000001.old")  # killed between the two renames
    (tmp_path / ".step-00000001.new-abc").mkdir()
    (tmp_path / ".step-00000009.gone").mkdir()
    assert manager.restore(model=filled(0)).step == 1
    manager.save(step=2, model=filled(2))
    assert names(tmp_path) == [".lock", "run.json", "step-00000001", "step-00000002"]
    assert [entry.step for entry in manager.list()] == [1, 2]


KILLED = """
import os, random, signal, sys, time
import torch
from packager.checkpoint.training.manager import CheckpointManager
from packager.checkpoint.training.retention import Retention

folder, times = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)

def loop(acknowledged):
    manager, step = CheckpointManager(folder, keep=Retention(latest=2)), 0
    if manager.latest():
        step = manager.latest().step
    model = torch.nn.Linear(300, 300, bias=False)
    while True:
        step += random.choice([0, 1])  # the same step again replaces a checkpoint
        torch.nn.init.constant_(model.weight, step)
        manager.save(step=step, model=model, blocking=step % 3 != 0)
        manager.wait()
        os.write(acknowledged, b"%d\\n" % step)

for turn in range(times):
    random.seed(turn)
    receive, acknowledged = os.pipe()
    child = os.fork()
    if child == 0:
        loop(acknowledged)
    os.close(acknowledged)
    time.sleep(random.uniform(0.02, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(receive) as stream:
        done = [int(step) for step in stream.read().split()]
    model = torch.nn.Linear(300, 300, bias=False)
    manager = CheckpointManager(folder)
    if manager.latest() is None and not done:
        continue
    restored = manager.restore(model=model)
    assert set(model.weight.flatten().tolist()) == {float(restored.step)}, restored
    assert not done or restored.step >= done[-1], (restored, done)
    print(turn, len(done), restored.step, sorted(name for name in os.listdir(folder) if name.endswith((".old", ".gone"))
        or ".new" in name))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_last_good_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "runs", "30"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    assert sum("step-" in line for line in lines) > 3  # this many were killed in the middle of a change
