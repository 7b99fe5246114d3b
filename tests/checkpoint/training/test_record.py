"""The record of a checkpoint: metrics as JSON numbers, and the revision of the code."""

import json
import subprocess

import numpy as np
import pytest
import torch

from packager.checkpoint.training.record import build_record, history_line, read_git_revision
from packager.errors import StateNotExpressible

FACTS = {"name": "net", "version": "1.0.0", "step": 3, "epoch": None, "revision": None, "parameters": 7}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [(1, 1.0), (torch.tensor(0.5), 0.5), (np.float32(0.25), 0.25), (float("nan"), "nan"), (float("-inf"), "-inf")],
)
def test_a_metric_is_a_number_or_the_text_of_one_that_json_lacks(metric, expected):
    record = build_record(**FACTS, metrics={"loss": metric})
    assert record["metrics"] == {"loss": expected} and type(record["metrics"]["loss"]) is type(expected)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert history_line(record) == {"step": 3, "epoch": None, "metrics": {"loss": expected}}


@pytest.mark.parametrize("metric", ["low", None, torch.zeros(2)])
def test_a_metric_that_is_not_a_number_is_refused(metric):
    with pytest.raises(StateNotExpressible, match=r"metrics\.loss"):
        build_record(**FACTS, metrics={"loss": metric})


def test_the_revision_is_the_commit_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_git_revision() is None
    author = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "First"]):
        subprocess.run(["git", *command], check=True)
    log = subprocess.run(["git", "log", "-1", "--format=%H"], capture_output=True, text=True, check=True)
    assert read_git_revision() == log.stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_git_revision() is None
