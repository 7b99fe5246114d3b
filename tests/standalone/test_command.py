"""`package standalone` and `package build --standalone`, as a user calls them."""

import json

import pytest
from click.testing import CliRunner
from executables import call

from packager.cli.main import cli
from packager.errors import RunnerUnavailable
from packager.standalone import runners


def invoke(*arguments):
    return CliRunner().invoke(
        cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False
    )


def test_standalone_writes_an_executable_and_says_what_it_is(bundle, built, runner, tmp_path):
    target = tmp_path / "digits-cnn"
    record = json.loads(invoke("standalone", bundle, "-o", target, "--json").stdout)
    assert record["executable"] == str(target)
    assert record["fingerprint"] == built.fingerprint
    assert record["bytes"] == target.stat().st_size
    shown = invoke("standalone", bundle, "-o", target, "--force").stdout
    assert built.fingerprint in shown
    assert f"executable   {target}" in shown
    assert json.loads(call(target, "info", "--json").stdout)["fingerprint"] == built.fingerprint


def test_build_writes_an_executable_beside_the_bundle(digits, runner, tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "read_runner", lambda _: runner)
    answer = invoke("build", digits, "-o", tmp_path, "--standalone", "--archive", "--json")
    record = json.loads(answer.stdout)
    assert record["archive"] == f"{record['bundle']}.zip"
    assert record["executable"] == f"{record['bundle']}.run"
    assert call(record["executable"], "verify").returncode == 0
    again = json.loads(invoke("build", digits, "-o", tmp_path, "--standalone", "--json").stdout)
    assert again["cached"]
    assert again["executable"] == record["executable"]


def test_build_says_before_it_starts_that_there_is_no_runner(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "_PACKAGE", "torch_packager_runners_of_nobody")
    with pytest.raises(RunnerUnavailable, match="torch-packager-runners is not installed"):
        invoke("build", digits, "-o", tmp_path, "--standalone")
    assert list(tmp_path.iterdir()) == []
