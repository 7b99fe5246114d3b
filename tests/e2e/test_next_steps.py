"""examples/next.txt, which `make demo` ends with: the manifest in it builds, by the commands in it."""

import re
import textwrap

import torch
from click.testing import CliRunner
from projects import ROOT

from packager.cli.main import cli

TEXT = (ROOT / "examples/next.txt").read_text(encoding="utf-8")
MODEL = """
from torch import nn


class MyModel(nn.Linear):
    def __init__(self):
        super().__init__(16, 2)
"""


def test_the_shown_commands_package_a_model_with_the_shown_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = re.search(r"(?ms)^    schema: 1$.*?(?=\n\n)", TEXT).group()
    (tmp_path / "package.yaml").write_text(textwrap.dedent(manifest))
    (tmp_path / "model.py").write_text(MODEL)
    torch.save(torch.nn.Linear(16, 2).state_dict(), tmp_path / "best.pt")
    commands = re.findall(r"^    package ([^#\n]+)", TEXT, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["vet", "build", "verify"]
    for command in commands:
        done = CliRunner().invoke(cli, command.split())
        assert done.exit_code == 0, done.output


def test_the_named_files_exist():
    paths = re.findall(r"[\w/]+\.md", TEXT)
    assert paths and all((ROOT / path).is_file() for path in paths)
