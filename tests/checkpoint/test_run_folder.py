"""A run folder: its table, the checkpoint it stands for, and its locks, without torch."""

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


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["run_folder", "training/retention"])
def test_a_run_folder_is_read_without_torch(name):
    tree = ast.parse((ROOT / f"packager/checkpoint/{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    third_party = {module for module in modules if module.partition(".")[0] not in sys.stdlib_module_names}
    assert third_party <= {
        "packager.errors",
        "packager.common.file_lock",
        "packager.common.hashing",
        "packager.common.strict_json",
        "packager.checkpoint.run_folder",
    }


def test_the_table_has_a_row_for_each_checkpoint(run):
    now = datetime.fromisoformat(run_folder.list_checkpoints(run)[0].created) + timedelta(hours=1)
    rows = run_folder.tabulate_checkpoints(run, now)
    assert [(row.step, row.epoch, row.best, row.latest) for row in rows] == [
        (0, 0, False, False), (1, 0, False, False), (2, 1, True, False), (3, 1, False, True),
    ]  # fmt: skip
    assert rows[0].age_seconds == 3600 and rows[0].path == "step-00000000"
    assert [row.metrics["loss"] for row in rows[:3]] == [3.0, 2.0, 1.0]
    size = sum(file.stat().st_size for file in (run / "step-00000000").glob("*.safetensors"))
    assert rows[0].bytes == size


def test_a_checkpoint_records_what_it_is(run):
    record = json.loads((run / "step-00000003/checkpoint.json").read_text())
    assert (record["schema"], record["name"], record["version"], record["parameters"]) == (1, "net", "0.1.0", 3)
    assert record["metrics"] == {"loss": "nan"}
    assert [save["step"] for save in record["history"]] == [0, 1, 2, 3]
    assert sorted(record["files"]) == ["ema.safetensors", "model.safetensors", "training.safetensors"]
    assert run_folder.find_damage(run_folder.read_checkpoint(run / "step-00000003")) is None
    assert json.loads((run / "run.json").read_text()) == {
        "schema": 1, "name": "net", "version": "0.1.0", "metric": "loss", "mode": "min",
    }  # fmt: skip


def test_a_run_is_told_apart_from_a_checkpoint(run, tmp_path):
    assert run_folder.is_run(run) and not run_folder.is_checkpoint(run)
    assert run_folder.is_checkpoint(run / "step-00000001") and not run_folder.is_run(run / "step-00000001")
    assert not run_folder.is_run(tmp_path / "nowhere") and not run_folder.is_checkpoint(tmp_path)


@pytest.mark.parametrize(("weights", "file"), [("auto", "model"), ("model", "model"), ("ema", "ema")])
def test_a_run_stands_for_its_best_checkpoint(run, weights, file, golden):
    chosen = run_folder.choose_checkpoint(run, weights)
    assert chosen.files == (run / f"step-00000002/{file}.safetensors",)
    golden(chosen.reason)


def test_a_run_without_a_metric_stands_for_its_latest_checkpoint(run):
    (run / "run.json").unlink()
    assert run_folder.choose_checkpoint(run).files == (run / "step-00000003/model.safetensors",)
    assert run_folder.choose_checkpoint(run / "step-00000001").files == (run / "step-00000001/model.safetensors",)


def test_a_damaged_checkpoint_is_skipped_with_a_message(run):
    flip_last_bit(run / "step-00000002/model.safetensors")
    chosen = run_folder.choose_checkpoint(run)
    assert chosen.checkpoint.step == 1
    (message,) = chosen.skipped_checkpoints
    mentions(message, "step-00000002", "model.safetensors", "SHA-256")
    assert run_folder.find_damage(run_folder.read_checkpoint(run / "step-00000002")).startswith(
        "model.safetensors\nSHA-256 saved:"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", {}), ("name", None), ("version", 1), ("created", "yesterday"), ("created", "2026-01-01"),
        ("revision", 7), ("epoch", "1"), ("epoch", [1]), ("parameters", None), ("history", {}), ("step", 1e400),
        ("number", 1e400), ("metrics", []), ("files", ["model.safetensors", "training.safetensors"]),
        ("files", {"../outside": {"sha256": "", "bytes": 1}}), ("files", {"/dev/zero": {"sha256": "", "bytes": 1}}),
        ("files", {"x": {"sha256": [], "bytes": 1}}), ("files", {"x": {"sha256": "", "bytes": "1"}}),
    ],
)  # fmt: skip
def test_a_record_with_a_field_of_the_wrong_type_is_damaged(run, field, value):
    path = run / "step-00000003/checkpoint.json"
    record = json.loads(path.read_text())
    if field == "files" and isinstance(value, dict):
        value = {**record["files"], **value}
    path.write_text(json.dumps({**record, field: value}))
    with pytest.raises(CheckpointDamaged) as caught:
        run_folder.read_checkpoint(path.parent)
    mentions(caught.value.why, "checkpoint.json")
    assert [row.step for row in run_folder.tabulate_checkpoints(run)] == [0, 1, 2]


def test_a_record_with_a_key_twice_is_damaged(run):
    path = run / "step-00000003/checkpoint.json"
    path.write_text(path.read_text().replace("{", '{"step": 4,', 1))
    with pytest.raises(CheckpointDamaged, match="appears twice"):
        run_folder.read_checkpoint(path.parent)


@pytest.mark.parametrize("change", [{"metric": []}, {"mode": "median"}, {"mode": None}])
def test_run_settings_of_the_wrong_type_are_damaged(run, change):
    (run / "run.json").write_text(json.dumps({**json.loads((run / "run.json").read_text()), **change}))
    with pytest.raises(CheckpointDamaged, match=r"run\.json"):
        run_folder.choose_checkpoint(run)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "number": 9, "files": {}}', "\0", "[" * 9999]
)
def test_an_unreadable_record_is_skipped_with_a_warning(run, caplog, content):
    (run / "step-00000003/checkpoint.json").write_text(content)
    assert [entry.step for entry in run_folder.list_checkpoints(run)] == [0, 1, 2]
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


@pytest.mark.parametrize(("damaged", "facts"), [((), ()), ((0, 1, 2, 3), ())])
def test_a_run_without_an_intact_checkpoint_is_refused(run, tmp_path, damaged, facts, golden):
    for step in damaged:
        flip_last_bit(run / f"step-0000000{step}/model.safetensors")
    folder = run if damaged else tmp_path / "empty"
    with pytest.raises(NoCheckpointYet) as caught:
        run_folder.choose_checkpoint(folder)
    golden(caught.value.why, *facts)


def test_averaged_weights_that_were_not_saved_are_refused(tmp_path, golden):
    CheckpointManager(tmp_path).save(step=1, model=nn.Linear(1, 1))
    with pytest.raises(NoCheckpointYet) as caught:
        run_folder.choose_checkpoint(tmp_path, "ema")
    golden(caught.value.why, "step-00000001", "ema.safetensors")


def test_a_checkpoint_that_is_being_read_is_not_deleted(run):
    path = run / "step-00000001"
    with (
        run_folder.lock_for_reading(path),
        run_folder.lock_for_reading(path),
        run_folder.lock_for_removal(path, wait=False) as free,
    ):
        assert not free
    with run_folder.lock_for_removal(path, wait=False) as free:
        assert free


def test_reading_a_checkpoint_that_was_just_deleted_is_refused(run, golden):
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
    (error,) = caught
    golden(error.message, path)
