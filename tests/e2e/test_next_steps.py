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


def test_a_model_beside_the_shown_manifest_is_packaged_by_the_shown_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = re.search(r"(?ms)^    schema: 1$.*?(?=\n\n)", TEXT).group()
    (tmp_path / "package.yaml").write_text(textwrap.dedent(manifest))
    (tmp_path / "model.py").write_text(MODEL)
    torch.save(torch.nn.Linear(16, 2).state_dict(), tmp_path / "best.pt")
    commands = re.findall(r"^    package ([^#\n]+)", TEXT, re.MULTILINE)
    assert [one.split()[0] for one in commands] == ["vet", "build", "verify"]
    for one in commands:
        done = CliRunner().invoke(cli, one.split())
        assert done.exit_code == 0, done.output


def test_the_files_it_names_are_there():
    paths = re.findall(r"[\w/]+\.md", TEXT)
    assert paths and all((ROOT / path).is_file() for path in paths)
