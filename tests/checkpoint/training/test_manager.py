"""Saving: what stays, what a kill leaves, what the background owes; restoring: which checkpoint it is."""

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
    (found,) = set(model.weight.flatten().tolist())
    return found


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def names(folder):
    return sorted(os.listdir(folder))


# -- what stays -------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
def test_what_no_rule_wants_is_deleted(tmp_path, blocking):
    keep = Retention(latest=2, metric="loss", every_steps=4)
    with CheckpointManager(tmp_path, keep=keep) as manager:
        for step in range(8):
            manager.save(step=step, model=filled(step), metrics={"loss": abs(step - 3)}, blocking=blocking)
    assert names(tmp_path) == [".lock", "run.json", *(f"step-0000000{one}" for one in (0, 3, 4, 6, 7))]
    assert (manager.best().step, manager.latest().step) == (3, 7)
    assert [one.step for one in manager.list()] == [0, 3, 4, 6, 7]


def test_a_checkpoint_that_is_being_read_stays(tmp_path):
    manager = CheckpointManager(tmp_path, keep=Retention(latest=1))
    path = manager.save(step=0, model=filled(0))
    with run_folder.lock_for_reading(path):
        manager.save(step=1, model=filled(1))
        assert [one.step for one in manager.list()] == [0, 1]
    manager.save(step=2, model=filled(2))
    assert [one.step for one in manager.list()] == [2]


def test_a_step_saved_again_takes_the_place_of_the_first(tmp_path):
    manager, model = CheckpointManager(tmp_path), filled(0)
    for step, value in ((1, 1), (2, 2), (1, 3)):
        manager.save(step=step, model=filled(value))
    assert manager.latest().step == 1
    manager.restore(model=model)
    assert value_of(model) == 3
    assert names(tmp_path) == [".lock", "run.json", "step-00000001", "step-00000002"]


def test_a_run_that_goes_on_from_an_earlier_step_has_the_history_of_its_own_branch(tmp_path):
    manager = CheckpointManager(tmp_path, keep=Retention(metric="loss"))
    for step in range(4):
        manager.save(step=step, model=filled(step), metrics={"loss": abs(step - 1)})
    again = CheckpointManager(tmp_path, keep=Retention(metric="loss", latest=1))
    assert again.restore("best", model=filled(0)).step == 1
    again.save(step=2, model=filled(9), metrics={"loss": 5})
    assert [one["step"] for one in again.latest().history] == [0, 1, 2]
    assert [one.step for one in again.list()] == [1, 2]


# -- which one is restored --------------------------------------------------------------------


def test_latest_best_or_a_path(tmp_path):
    manager, model = CheckpointManager(tmp_path, keep=Retention(metric="accuracy", mode="max")), filled(0)
    paths = [
        manager.save(step=step, epoch=7, model=filled(step), metrics={"accuracy": torch.tensor(one)}, extra=(step,))
        for step, one in enumerate([0.5, 0.9, 0.7])
    ]
    for asked, step in ((None, 2), ("latest", 2), ("best", 1), (paths[0], 0), (str(paths[1]), 1)):
        found = manager.restore(asked, model=model)
        assert (found.step, found.epoch, found.extra, value_of(model)) == (step, 7, (step,), step)
        assert found.path == paths[step]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, golden):
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
def test_where_nothing_can_be_restored_it_says_why(tmp_path, asked, saved, metric, facts, golden):
    manager = CheckpointManager(tmp_path, keep=Retention(metric=metric))
    if saved:
        manager.save(step=0, model=filled(0))
    assert manager.best() is None
    with pytest.raises(NoCheckpointYet) as caught:
        manager.restore(asked, model=filled(0))
    golden(render_error(caught.value), "error[no-checkpoint-yet]", tmp_path, *facts, "manager.latest()")


@pytest.mark.parametrize("asked", ["lastest", "step-00000007"])
def test_a_checkpoint_named_by_a_path_that_is_not_there_is_not_found(tmp_path, asked, monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    manager = CheckpointManager(tmp_path)
    manager.save(step=0, model=filled(0))
    with pytest.raises(CheckpointNotFound) as caught:
        manager.restore(asked, model=filled(0))
    golden(render_error(caught.value), "error[checkpoint-not-found]", tmp_path / asked, "latest", "best")


# -- what is refused --------------------------------------------------------------------------


def test_what_cannot_be_expressed_is_refused_and_nothing_is_written(tmp_path, golden):
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
    for one in path.glob("*.safetensors"):
        with one.open("rb") as stream:
            assert isinstance(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))), dict)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"name": "Net"}, ("Net", "_")),
        ({"version": "1.0"}, ("1.0", "1.0.0")),
    ],
)
def test_a_name_or_version_that_is_none_is_refused(tmp_path, settings, facts, golden):
    with pytest.raises(RunSettingsWrong) as caught:
        CheckpointManager(tmp_path, **settings)
    golden(caught.value.why, *facts)


@pytest.mark.parametrize("step", [-1, 1.0, True, "1"])
def test_a_step_that_is_no_count_is_refused(tmp_path, step):
    with pytest.raises(RunSettingsWrong):
        CheckpointManager(tmp_path).save(step=step, model=filled(0))
    with pytest.raises(RunSettingsWrong):
        CheckpointManager(tmp_path).save(step=0, epoch=step, model=filled(0))


# -- in the background ------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """Writing waits until it is let go; how many are at it is counted."""
    gate, began, write = threading.Event(), [], state_tree_file.write_tree

    def waiting(path, *given):
        began.append(path.parent.name)
        gate.wait(20)
        return write(path, *given)

    monkeypatch.setattr(state_tree_file, "write", waiting)
    yield gate, began
    gate.set()


def test_a_save_in_the_background_has_the_state_of_the_moment_it_was_asked(tmp_path, held):
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


def test_one_save_is_in_flight_and_the_next_waits(tmp_path, held):
    gate, began = held
    manager = CheckpointManager(tmp_path)
    manager.save(step=1, model=filled(1), blocking=False)
    second = threading.Thread(target=lambda: manager.save(step=2, model=filled(2), blocking=False))
    second.start()
    second.join(0.2)
    assert second.is_alive() and len({*began}) <= 1
    gate.set()
    second.join()
    manager.close()
    assert [one.step for one in manager.list()] == [1, 2]


@pytest.mark.parametrize("call", ["save", "restore", "wait", "close"])
def test_what_went_wrong_in_the_background_is_raised_by_the_next_call(tmp_path, call, golden):
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
        assert [one.step for one in manager.list()] == [3]


def test_leaving_the_context_raises_what_went_wrong_unless_the_loop_failed_itself(tmp_path, caplog):
    folder = tmp_path / "runs"
    folder.write_text("a file in the way")
    with pytest.raises(CheckpointNotSaved), CheckpointManager(folder) as manager:
        manager.save(step=1, model=filled(1), blocking=False)
    with pytest.raises(ZeroDivisionError), CheckpointManager(folder) as manager:
        1 / len([manager.save(step=1, model=filled(1), blocking=False)][1:])
    mentions(caplog.text, "step-00000001", "File exists")


def test_a_disk_that_is_full_leaves_the_checkpoints_before_and_no_rest(tmp_path):
    code = (
        "import resource, signal, sys, torch\n"
        "from packager.checkpoint.training.manager import CheckpointManager\n"
        "from packager.errors import CheckpointNotSaved, render\n"
        "manager = CheckpointManager(sys.argv[1])\n"
        "manager.save(step=1, model=torch.nn.Linear(2, 2))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    manager.save(step=2, model=torch.nn.Linear(400, 400))\n"
        "except CheckpointNotSaved as error:\n"
        "    print(render(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[1] == "  File too large", done.stderr
    assert names(tmp_path) == [".lock", "run.json", "step-00000001"]
    assert CheckpointManager(tmp_path).restore(model=nn.Linear(2, 2)).step == 1


# -- killed -----------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_cleared_and_what_it_put_aside_is_put_back(tmp_path):
    manager = CheckpointManager(tmp_path)
    path = manager.save(step=1, model=filled(1))
    os.rename(path, tmp_path / ".step-00000001.old")  # killed between the two renames
    (tmp_path / ".step-00000001.new-abc").mkdir()
    (tmp_path / ".step-00000009.gone").mkdir()
    assert manager.restore(model=filled(0)).step == 1
    manager.save(step=2, model=filled(2))
    assert names(tmp_path) == [".lock", "run.json", "step-00000001", "step-00000002"]
    assert [one.step for one in manager.list()] == [1, 2]


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
        done = [int(one) for one in stream.read().split()]
    model = torch.nn.Linear(300, 300, bias=False)
    manager = CheckpointManager(folder)
    if manager.latest() is None and not done:
        continue
    found = manager.restore(model=model)
    assert set(model.weight.flatten().tolist()) == {float(found.step)}, found
    assert not done or found.step >= done[-1], (found, done)
    print(turn, len(done), found.step, sorted(one for one in os.listdir(folder) if one.endswith((".old", ".gone"))
        or ".new" in one))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_last_good_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "runs", "30"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stderr and "passed over" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    assert sum("step-" in one for one in lines) > 3  # so many were killed in the midst of a change
