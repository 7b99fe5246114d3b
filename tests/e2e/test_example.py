"""The digits example gives the same run whether it is stopped and resumed or not."""

import shutil
import subprocess
import sys

import pytest
from messages import mentions
from projects import ROOT

from packager.checkpoint import run_folder


def train(folder, *arguments):
    done = subprocess.run([sys.executable, folder / "train.py", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_digits_example_resumes_where_it_stopped(tmp_path):
    ignored = shutil.ignore_patterns("runs", "dist", "__pycache__")
    whole, halves = (shutil.copytree(ROOT / "examples/digits", tmp_path / name, ignore=ignored) for name in "ab")
    train(whole, "--epochs", "4")
    train(halves, "--epochs", "2")
    mentions(train(halves, "--epochs", "4", "--resume"), "1")
    expected, actual = (
        run_folder.find_latest(run_folder.list_checkpoints(folder / "runs")) for folder in (whole, halves)
    )
    for file in (run_folder.MODEL_FILE, run_folder.EMA_FILE):
        assert actual.digests[file] == expected.digests[file]
    assert actual.history == expected.history and actual.epoch == 3
