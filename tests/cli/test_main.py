"""Exit statuses of the command `package`, and what it writes to stdout and stderr."""

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from messages import mentions
from projects import LINEAR, package, project

from packager.cli.main import cli


def test_a_bad_manifest_exits_with_2_and_stdout_has_only_its_json(tmp_path, golden):
    done = package("build", tmp_path / "package.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"code", "message", "where", "hint"}
    assert (error["code"], error["where"]) == ("manifest-not-found", None)
    mentions(error["message"], tmp_path / "package.yaml")
    assert done.stderr == f"error[{error['code']}]: {error['message']}\nhint: {error['hint']}\n"
    golden(done.stderr, "error[manifest-not-found]", tmp_path / "package.yaml", "package.yaml")
    assert os.listdir(tmp_path) == []


def test_a_bug_exits_with_3_a_traceback_and_how_to_report_it(command, monkeypatch, linear, golden):
    def bug(path, listener):
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr("packager.builder.vet.vet", bug)
    status, out, err = command("vet", linear)
    assert (status, out) == (3, "")
    assert err.startswith("Traceback (most recent call last):\n")
    golden(err[err.index("ZeroDivisionError: oh no") :], "error[bug]", "package --version")
    status, out, _ = command("vet", linear, "--json")
    assert status == 3
    assert json.loads(out)["error"]["code"] == "bug"


def test_the_traceback_of_a_bug_has_no_control_characters_of_a_file(command, monkeypatch, linear):
    def bug(path, listener):
        raise ZeroDivisionError("\x1b[2J\u202e")

    monkeypatch.setattr("packager.builder.vet.vet", bug)
    _, _, err = command("vet", linear)
    mentions(err, r"ZeroDivisionError: \x1b[2J\u202e")
    assert not {"\x1b", "\u202e"} & set(err)


def test_a_crash_in_native_code_prints_the_line_that_called_it(tmp_path):
    text = LINEAR.replace("return self.layer(x)", "import ctypes\n        return ctypes.string_at(0)")
    done = package("build", project(tmp_path, text), "-o", tmp_path / "out")
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    mentions(done.stderr, f"{tmp_path}/model.py", "13")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "Missing argument 'MANIFEST'."),
        (["bulid"], "No such command 'bulid'."),
        (["build", "a", "b"], "Got unexpected extra argument (b)"),
        (["vet", "--fast", "x"], "No such option"),
        (["run", "x"], "Missing option '--input'."),
        (["schema", "manifets"], "Invalid value for '{manifest|config|parity}': 'manifets' is not one of"),
    ],
)
def test_bad_usage_exits_with_2(command, arguments, message):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    mentions(err, "error[usage]", message)
    assert "Traceback" not in err and "Usage:" not in err
    mentions(err.splitlines()[-1], "hint", "--help")
    status, out, _ = command(*arguments, "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "usage"


def test_bad_usage_reads_like_any_other_error(command, golden):
    golden(command("verify", "x", "--no-pairty")[2], "error[usage]", "--no-pairty", "--no-parity")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full is Linux's")
@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["schema", "manifest"], ["verify", "BUNDLE", "--no-parity"],
     ["verify", "BUNDLE", "--no-parity", "--json"], ["inspect", "nowhere", "--json"]],
    ids=" ".join,
)  # fmt: skip
def test_a_result_that_cannot_be_written_is_neither_a_bug_nor_a_verdict(arguments, built, golden):
    arguments = [str(built.bundle) if argument == "BUNDLE" else argument for argument in arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "packager", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    if "nowhere" not in arguments:
        golden(done.stderr, "error[output-refused]", "No space left on device")


def test_an_interrupted_command_exits_with_130(command, monkeypatch, linear):
    def interrupt(path, listener):
        raise KeyboardInterrupt

    monkeypatch.setattr("packager.builder.vet.vet", interrupt)
    status, out, err = command("vet", linear)
    assert (status, out, err.strip()) == (130, "", "interrupted")


def test_a_command_works_with_all_streams_closed(linear):
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m packager vet {linear} >&- 2>&- <&-"])
    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["build", "--help"], ["--version"]])
def test_help_and_version_exit_with_0(command, arguments):
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out


def command_lines(command=cli, words=()):
    """Return the words of every command and group of commands, without `package`."""
    subcommands = command.commands.items() if isinstance(command, click.Group) else ()
    return [words, *(line for name, subcommand in subcommands for line in command_lines(subcommand, (*words, name)))]


@pytest.mark.parametrize("words", command_lines(), ids=lambda words: " ".join(("package", *words)))
def test_the_help_of_every_command(command, monkeypatch, words, golden):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, err = command(*words, "--help")
    assert (status, err) == (0, "")
    golden(out, " ".join(("package", *words)), "--help")
