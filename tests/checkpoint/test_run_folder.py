"""What a run folder says of itself, without torch."""

import ast
import json
import sys
import threading
import time
from datetime import datetime, timedelta

import pytest
import torch
from messages import mentions
from projects import ROOT
from torch import nn

from packager.checkpoint import run_folder
from packager.checkpoint.training.manager import CheckpointManager
from packager.checkpoint.training.retention import Retention
from packager.errors import CheckpointDamaged, NoCheckpointYet, RunSchemaUnknown, render_error


@pytest.fixture
def run(tmp_path):
    """Four checkpoints, of which step 2 has the best loss; all keep averaged weights."""
    manager, model = CheckpointManager(tmp_path / "runs", keep=Retention(metric="loss"), name="net"), nn.Linear(2, 1)
    for step, loss in enumerate([3.0, 2.0, 1.0, float("nan")]):
        with torch.no_grad():
            model.weight.fill_(step)
        manager.save(step=step, epoch=step // 2, model=model, ema=nn.Linear(2, 1), metrics={"loss": loss})
    return manager.folder


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["run_folder", "retention"])
def test_a_run_folder_is_read_without_torch(name):
    tree = ast.parse((ROOT / f"packager/checkpoint/{name}.py").read_text())
    found = {one.module for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)}
    found |= {alias.name for one in ast.walk(tree) if isinstance(one, ast.Import) for alias in one.names}
    outside = {one for one in found if one.partition(".")[0] not in sys.stdlib_module_names}
    assert outside <= {"packager.errors", "packager.common.hashing", "packager.checkpoint.run_folder"}


def test_the_table_has_a_line_for_each_checkpoint(run):
    now = datetime.fromisoformat(run_folder.list_checkpoints(run)[0].created) + timedelta(hours=1)
    rows = run_folder.tabulate_checkpoints(run, now)
    assert [(one.step, one.epoch, one.best, one.latest) for one in rows] == [
        (0, 0, False, False), (1, 0, False, False), (2, 1, True, False), (3, 1, False, True),
    ]  # fmt: skip
    assert rows[0].age_seconds == 3600 and rows[0].path == "step-00000000"
    assert [one.metrics["loss"] for one in rows[:3]] == [3.0, 2.0, 1.0]
    size = sum(one.stat().st_size for one in (run / "step-00000000").glob("*.safetensors"))
    assert rows[0].bytes == size


def test_a_checkpoint_says_what_it_is(run):
    record = json.loads((run / "step-00000003/checkpoint.json").read_text())
    assert (record["schema"], record["name"], record["version"], record["parameters"]) == (1, "net", "0.1.0", 3)
    assert record["metrics"] == {"loss": "nan"}
    assert [one["step"] for one in record["history"]] == [0, 1, 2, 3]
    assert sorted(record["files"]) == ["ema.safetensors", "model.safetensors", "training.safetensors"]
    found = run_folder.read_checkpoint(run / "step-00000003")
    assert run_folder.find_damage(found) is None
    assert json.loads((run / "run.json").read_text()) == {
        "schema": 1, "name": "net", "version": "0.1.0", "metric": "loss", "mode": "min",
    }  # fmt: skip


def test_a_folder_knows_whether_it_is_a_run_or_a_checkpoint(run, tmp_path):
    assert run_folder.is_run(run) and not run_folder.is_checkpoint(run)
    assert run_folder.is_checkpoint(run / "step-00000001") and not run_folder.is_run(run / "step-00000001")
    assert not run_folder.is_run(tmp_path / "nowhere") and not run_folder.is_checkpoint(tmp_path)


@pytest.mark.parametrize(("weights", "file"), [("auto", "model"), ("model", "model"), ("ema", "ema")])
def test_a_manifest_means_the_best_checkpoint(run, weights, file, golden):
    found = run_folder.choose_checkpoint(run, weights)
    assert found.files == (run / f"step-00000002/{file}.safetensors",)
    golden(found.reason)


def test_without_a_metric_a_manifest_means_the_latest(run):
    (run / "run.json").unlink()
    assert run_folder.choose_checkpoint(run).files == (run / "step-00000003/model.safetensors",)
    assert run_folder.choose_checkpoint(run / "step-00000001").files == (run / "step-00000001/model.safetensors",)


def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(run):
    spoil(run / "step-00000002/model.safetensors")
    chosen = run_folder.choose_checkpoint(run)
    assert chosen.checkpoint.step == 1
    (said,) = chosen.skipped_checkpoints
    mentions(said, "step-00000002", "model.safetensors", "SHA-256")
    assert run_folder.find_damage(run_folder.read_checkpoint(run / "step-00000002")).startswith(
        "model.safetensors\nSHA-256 saved:"
    )


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "number": 9, "files": {}}', "\0", "[" * 9999]
)
def test_a_record_that_cannot_be_read_is_passed_over_with_a_warning(run, caplog, content):
    (run / "step-00000003/checkpoint.json").write_text(content)
    assert [one.step for one in run_folder.list_checkpoints(run)] == [0, 1, 2]
    assert "skipped:" in caplog.text
    with pytest.raises(CheckpointDamaged):
        run_folder.read_checkpoint(run / "step-00000003")


def test_a_newer_schema_is_refused(run, golden):
    (run / "step-00000000/checkpoint.json").write_text('{"schema": 2}')
    with pytest.raises(RunSchemaUnknown) as caught:
        run_folder.read_checkpoint(run / "step-00000000")
    golden(render_error(caught.value), "error[run-schema-unknown]", run / "step-00000000/checkpoint.json", "2", "1")
    (run / "run.json").write_text('{"schema": 2, "metric": null, "mode": "min"}')
    with pytest.raises(RunSchemaUnknown):
        run_folder.read_run_settings(run)


@pytest.mark.parametrize(("spoiled", "facts"), [((), ()), ((0, 1, 2, 3), ())])
def test_where_there_is_nothing_to_take_it_says_so(run, tmp_path, spoiled, facts, golden):
    for step in spoiled:
        spoil(run / f"step-0000000{step}/model.safetensors")
    folder = run if spoiled else tmp_path / "empty"
    with pytest.raises(NoCheckpointYet) as caught:
        run_folder.choose_checkpoint(folder)
    golden(caught.value.why, *facts)


def test_averaged_weights_that_were_not_kept_are_not_made_up(tmp_path, golden):
    CheckpointManager(tmp_path).save(step=1, model=nn.Linear(1, 1))
    with pytest.raises(NoCheckpointYet) as caught:
        run_folder.choose_checkpoint(tmp_path, "ema")
    golden(caught.value.why, "step-00000001", "ema.safetensors")


def test_who_reads_holds_off_who_deletes(run):
    path = run / "step-00000001"
    with (
        run_folder.lock_for_reading(path),
        run_folder.lock_for_reading(path),
        run_folder.lock_for_removal(path, wait=False) as free,
    ):
        assert not free
    with run_folder.lock_for_removal(path, wait=False) as free:
        assert free


def test_who_comes_too_late_is_told(run, golden):
    path, reached = run / "step-00000001", threading.Event()
    caught = []

    def read():
        reached.set()
        try:
            with run_folder.lock_for_reading(path):
                pass
        except CheckpointDamaged as error:
            caught.append(error)

    with run_folder.lock_for_removal(path, wait=False):
        thread = threading.Thread(target=read)
        thread.start()
        reached.wait()
        time.sleep(0.3)  # until it has the file open, and waits for us
        path.rename(run / ".step-00000001.gone")
    thread.join()
    (line,) = [one.message for one in caught]
    golden(line, path)
