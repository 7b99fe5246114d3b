"""The native programs: their sources, their bytes, and the wheel that carries them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from userlands import ROOT, need

RUNNER = ROOT / "runner"
ZIG = ROOT / ".venv/zig/bin/python-zig"


def test_the_wheel_has_the_version_of_packager():
    versions = [
        tomllib.loads((ROOT / path).read_text())["project"]["version"]
        for path in ("pyproject.toml", "runner/package/pyproject.toml")
    ]
    assert versions[0] == versions[1]
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["standalone"]
    assert extra == [f"torch-packager-runners=={versions[0]}"]
    assert f'"{versions[0]}"' in (RUNNER / "source/version.hpp").read_text()


def test_every_licence_is_named():
    components = re.findall(r'^    "(\w+)": "', (RUNNER / "embed_licenses.py").read_text(), re.MULTILINE)
    assert sorted(components) == sorted(path.stem for path in (RUNNER / "licenses").iterdir())


def test_a_record_replaces_the_newest_digest_or_keeps_it(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("build_of_runners", RUNNER / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    monkeypatch.setattr(build, "RECORD", tmp_path / "runners.json")

    def settle(digest, **options):
        build.settle({"linux-x64": digest}, **{"record": True, "keep": False, **options})
        return json.loads(build.RECORD.read_text())["linux-x64"]

    assert settle("a") == ["a"]
    assert settle("b") == ["b"]
    assert settle("c", keep=True) == ["c", "b"]
    assert settle("c", keep=True) == ["c", "b"]
    assert settle("d") == ["d", "b"]
    assert settle("d", record=False) == ["d", "b"]
    with pytest.raises(SystemExit, match=r"linux-x64: not the bytes that runners\.json knows"):
        settle("b", record=False)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_runner_that_is_built_again_elsewhere_is_the_same_file(tmp_path):
    need(ZIG.exists(), "needs zig: make runners")
    recorded = json.loads((ROOT / "packager/standalone/runners.json").read_text())
    elsewhere = tmp_path / "a different folder/runner"
    shutil.copytree(RUNNER, elsewhere, ignore=shutil.ignore_patterns("work", "dist", "fuzz", "linux-*"))
    shutil.copytree(RUNNER / "work/third_party", elsewhere / "work/third_party")
    (tmp_path / "a different folder/packager/standalone").mkdir(parents=True)
    (tmp_path / "a different folder/packager/standalone/runners.json").write_text(json.dumps(recorded))
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "cache"), "TZ": "Asia/Tokyo"}
    command = [sys.executable, elsewhere / "build.py", "--target", "linux-x64", "--zig", ZIG, "--jobs", "1"]
    subprocess.run(command, env=environment, check=True)  # fails if the digest is not the recorded one
    runner = elsewhere / "package/torch_packager_runners/linux-x64"
    assert runner.stat().st_size < 1_200_000
    assert str(tmp_path).encode() not in runner.read_bytes()
    assert str(Path.home()).encode() not in runner.read_bytes()
