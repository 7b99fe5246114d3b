"""Builds that share a cache: at once, killed, and with a disk that is full."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from messages import mentions
from projects import LINEAR, package, project

import packager
from packager.common.progress import Note, StageStarted

pytestmark = pytest.mark.slow


def started(manifest, out, *flags, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "packager", "build", str(manifest), "-o", str(out), "--json", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def answers(children):
    records = []
    for child in children:
        out, err = child.communicate()
        assert child.returncode == 0, err
        records.append(json.loads(out))
    return records


def named(tmp_path, name):
    """Write a project with weights and a name of its own."""
    torch.manual_seed(len(name))
    state = {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3)}
    return project(tmp_path / name, LINEAR, state=state, name=name)


def test_twenty_builds_at_once_agree_and_leave_a_sound_cache(tmp_path):
    names = [f"n{'x' * number}" for number in range(5)]
    manifests = {name: named(tmp_path, name) for name in names}
    alone = {
        name: packager.build(path, tmp_path / "alone", cache="off").fingerprint for name, path in manifests.items()
    }
    # Four of each: two to one folder, two to folders of their own.
    children = [
        (name, started(path, tmp_path / ("shared" if number < 2 else f"own-{number}")))
        for number in range(4)
        for name, path in manifests.items()
    ]
    records = answers([child for _, child in children])
    assert [record["fingerprint"] for record in records] == [alone[name] for name, _ in children]
    for name, path in manifests.items():
        assert packager.verify(tmp_path / "shared" / f"{name}-1.0.0", trust_program=True).ok
        assert packager.build(path, tmp_path / "again").cached
        assert packager.build(path, tmp_path / "again", cache="verify").fingerprint == alone[name]
    assert sorted(os.listdir(tmp_path / "shared")) == sorted(f"{name}-1.0.0" for name in names)


@pytest.mark.timeout(900)
def test_builds_killed_at_fifty_random_moments_harm_neither_bundle_nor_cache(tmp_path, cache_folder):
    path = project(tmp_path / "project", LINEAR)
    began = time.monotonic()
    expected = answers([started(path, tmp_path / "out")])[0]["fingerprint"]
    whole = time.monotonic() - began
    chance = random.Random(0)
    for number in range(50):
        if number % 2:  # half of them with something to do
            shutil.rmtree(cache_folder, ignore_errors=True)
        child = started(path, tmp_path / "out")
        time.sleep(chance.uniform(0.05, whole))
        child.kill()
        child.communicate()
        assert child.returncode in (0, -signal.SIGKILL)
        assert packager.verify(tmp_path / "out/net-1.0.0", parity=False).fingerprint == expected
    assert answers([started(path, tmp_path / "out")])[0]["fingerprint"] == expected
    assert answers([started(path, tmp_path / "out", "--verify-cache")])[0]["fingerprint"] == expected
    assert os.listdir(tmp_path / "out") == ["net-1.0.0"]


def test_a_full_disk_under_the_cache_does_not_stop_the_build(tmp_path, golden):
    path = project(tmp_path / "project", LINEAR)
    cache = tmp_path / "small"
    cache.mkdir()
    build = f"{sys.executable} -m packager build {path} -o {tmp_path}/out"
    script = f"mount -t tmpfs -o size=16k,mode=0700 none {cache} && exec {build}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, text=True, env={**os.environ, "PACKAGER_CACHE": str(cache)},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    golden(done.stderr[done.stderr.index("note: ") :].splitlines()[0])
    assert packager.verify(tmp_path / "out/net-1.0.0", trust_program=True).ok


def test_a_cache_that_vanishes_during_a_build_is_created_again(tmp_path, cache_folder):
    path = project(tmp_path / "project", LINEAR)

    notes = []

    def listen(event):
        if isinstance(event, StageStarted) and event.stage == "trace":
            shutil.rmtree(cache_folder, ignore_errors=True)
        if isinstance(event, Note):
            notes.append(event.message)

    packager.build(path, tmp_path / "out", listener=listen)
    assert notes == []
    assert packager.build(path, tmp_path / "out").cached


def test_a_rebuild_reports_the_first_difference_of_each_file(tmp_path, golden):
    path = project(tmp_path / "project", LINEAR)
    built = packager.build(path, tmp_path / "out", archive=True)
    answer = package("verify", built.archive, "--rebuild", path, "--json")
    assert answer.returncode == 0, answer.stderr
    assert set(json.loads(answer.stdout)["rebuild"].values()) == {""}
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "description": "Another", "export": {"opset": 18}}, sort_keys=False))
    answer = package("verify", built.bundle, "--rebuild", path)
    assert answer.returncode == 1
    rows = dict(line.split("  ", 1) for line in answer.stdout.splitlines() if "  " in line)
    rows = {name: text.strip() for name, text in rows.items()}
    golden(rows["rebuilt model.ts"])
    mentions(rows["rebuilt config.json"], "description")
    assert rows["rebuilt model.onnx"] not in ("", rows["rebuilt model.ts"])
    assert answer.stdout.endswith("NOT ok\n")
    (path.parent / "model.py").write_text("1 / 0\n")
    answer = package("verify", built.bundle, "--rebuild", path)
    assert answer.returncode == 2
    mentions(answer.stderr, "error[rebuild-failed]")
    assert "ZeroDivisionError" in answer.stderr
    assert "Traceback" not in answer.stderr
    answer = package("verify", built.bundle, "--rebuild", "nope.yaml")
    assert answer.returncode == 2
    mentions(answer.stderr, "error[manifest-not-found]", "nope.yaml")


def test_a_module_that_depends_on_the_environment_is_not_repeatable(tmp_path):
    text = LINEAR.replace("import torch\n", "import os\nimport torch\n").replace(
        "self.layer = nn.Linear(4, 3)",
        "self.layer = nn.Linear(4, 3)\n        self.shift = float(os.environ.get('OMP_NUM_THREADS', '2'))",
    ).replace("self.layer(x)", "self.layer(x) + self.shift")  # fmt: skip
    path = project(tmp_path / "project", text)
    answer = package("build", path, "-o", tmp_path / "out", "--check", env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert answer.returncode == 1
    mentions(answer.stderr, "error[build-not-repeatable]")
    assert "  model.onnx: weight " in answer.stderr or "  model.onnx: node " in answer.stderr
    assert not (tmp_path / "out").exists()
