"""Builds whose main thread raises while other threads work: they end with that error, and leave nothing behind."""

import json
import subprocess
import sys

import pytest
from projects import project

# Build again and again, raising at the first event, then at the second, and so on until a build gets to its end.
RAISE_AT_EACH_EVENT = """
import json, os, sys, threading, packager

class Stop({base}):
    pass

def raising_at(count):
    events = []
    def listen(event):
        events.append(f"{{type(event).__name__}} {{getattr(event, 'stage', '')}}")
        if len(events) == count:
            raise Stop
    return events, listen

count = 1
while True:
    events, listen = raising_at(count)
    try:
        packager.build(sys.argv[1], sys.argv[2], cache="off", listener=listen)
    except Stop:
        left = sorted(os.listdir(os.path.dirname(sys.argv[2])))
        threads = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
        print(json.dumps([events[count - 1], left, threads]), flush=True)
    else:
        assert len(events) < count, events
        break
    count += 1
"""


@pytest.mark.parametrize("base", ["Exception", "KeyboardInterrupt"])
def test_a_listener_that_raises_at_any_event_ends_the_build_with_its_error(tmp_path, base):
    path = project(tmp_path / "project")
    (tmp_path / "place").mkdir()
    code = [sys.executable, "-c", RAISE_AT_EACH_EVENT.format(base=base)]
    done = subprocess.run([*code, path, tmp_path / "place/out"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    raised = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one for one in raised if one[1:] != [[], []]] == []
    stages = ["import", "source", "noise", "trace", "export", "reference", "torchscript", "onnx", "bundle"]
    expected = [f"{kind} {stage}" for stage in stages for kind in ("Started", "Finished")]
    assert [event for event, _, _ in raised if not event.startswith("Told")] == expected
