"""The fuzzers of the runner's parsers: every earlier find again, and a short run of each."""

import os
import subprocess
import sys

import pytest
from userlands import ROOT, need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_fuzzers_find_nothing_in_a_short_run():
    path = os.environ["PATH"].split(os.pathsep)
    names = [name for folder in path if os.path.isdir(folder) for name in os.listdir(folder)]
    need(any(name.startswith("clang++") for name in names), "needs clang and its sanitizers: docs/standalone.md")
    command = [sys.executable, ROOT / "runner/fuzz/run.py", "--runs", "20000"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
    fuzzers = {path.stem for path in (ROOT / "runner/fuzz").glob("*.cpp")}
    assert all(f"{name}: " in result.stdout for name in fuzzers)
    assert f"{20_000 * len(fuzzers)} executions, no findings" in result.stdout
