"""Run the command in this process."""

import pytest
from projects import LINEAR, project

from packager.cli.main import _run_command, cli


@pytest.fixture
def command(capsys, monkeypatch):
    """Run the command: arguments → (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["package", *map(str, arguments)])
        status = _run_command(cli)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def linear(tmp_path):
    """Return the manifest of a project with one linear layer, to change at will."""
    return project(tmp_path / "project", LINEAR)
