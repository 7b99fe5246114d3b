"""Builds whose main thread raises while other threads work end with that error and leave nothing behind."""

import json
import subprocess
import sys

import pytest
from projects import project

# Build again and again, raising at the first event, then at the second, and so on until a build gets to its end.
# The kinds of error alternate: of the two arguments after the folder, the first is raised first.
RAISE_AT_EACH_EVENT = """
import json, os, sys, threading, packager

class Failure(Exception):
    pass

KINDS = {"Failure": Failure, "KeyboardInterrupt": KeyboardInterrupt}

def raise_at(count):
    events = []
    def listen(event):
        events.append(f"{type(event).__name__} {getattr(event, 'stage', '')}")
        if len(events) == count:
            raise KINDS[sys.argv[3 + (count - 1) % 2]]
    return events, listen

count = 1
while True:
    events, listen = raise_at(count)
    try:
        packager.build(sys.argv[1], sys.argv[2], cache="off", listener=listen)
    except (Failure, KeyboardInterrupt) as error:
        left = sorted(os.listdir(os.path.dirname(sys.argv[2])))
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        print(json.dumps([events[count - 1], type(error).__name__, left, threads]), flush=True)
    else:
        assert len(events) < count, events
        break
    count += 1
"""
KINDS = ["Failure", "KeyboardInterrupt"]


@pytest.mark.parametrize("kinds", [KINDS, pytest.param(KINDS[::-1], marks=pytest.mark.slow)], ids=" first, then ".join)
def test_a_listener_that_raises_at_any_event_ends_the_build_with_its_error(tmp_path, kinds):
    path = project(tmp_path / "project")
    (tmp_path / "output").mkdir()
    code = [sys.executable, "-c", RAISE_AT_EACH_EVENT, path, tmp_path / "output/out", *kinds]
    process = subprocess.run(code, capture_output=True, text=True, timeout=100)
    assert process.returncode == 0, process.stderr
    builds = [json.loads(line) for line in process.stdout.splitlines()]
    assert [build for build in builds if build[2:] != [[], []]] == []
    assert [kind for _, kind, _, _ in builds] == [kinds[number % 2] for number in range(len(builds))]
    stages = ["import", "source", "noise", "trace", "export", "reference", "torchscript", "onnx", "bundle"]
    expected = [f"{kind} {stage}" for stage in stages for kind in ("StageStarted", "StageFinished")]
    assert [event for event, *_ in builds if not event.startswith("Note")] == expected
