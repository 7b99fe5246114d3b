"""The digests of the tools that made a bundle."""

import hashlib
from pathlib import Path

import numpy
import pytest

from packager.builder import toolchain
from packager.builder.incremental import keys
from packager.common import installed_distributions

ROOT = Path(numpy.__file__).parent.parent
CONTENT = "Zk7tU4GYBKQ-vXBzvQBVrVu9Xv1v3vWJzDyoPfEFJpM"


@pytest.mark.parametrize("tool", ["onnxscript", "onnxsim"])
def test_the_digest_of_a_tool_covers_its_files_as_they_are_on_disk(tool):
    paths = [
        line.rpartition(",")[0].rpartition(",")[0]
        for line in installed_distributions.read_record(tool).splitlines()
        if "sha256=" in line
    ]
    paths = sorted((path for path in paths if ".dist-info/" not in path and not path.startswith("..")), key=str.encode)
    lines = [f"{hashlib.sha256((ROOT / path).read_bytes()).hexdigest()}  {path}\n" for path in paths]
    assert len(lines) > 3
    assert toolchain.digest_toolchain()[tool] == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_every_tool_has_a_digest():
    digests = toolchain.digest_toolchain()
    assert set(digests) == set(keys.TOOLCHAIN)
    assert len(set(digests.values())) == len(digests)


def test_what_an_installer_writes_is_not_part_of_the_digest(monkeypatch):
    wheel = f"tool/__init__.py,sha256={CONTENT},10\n"
    written = (
        f"../../../bin/tool,sha256={CONTENT},200\n"
        f"tool-1.0.dist-info/RECORD,,\n"
        f"tool-1.0.dist-info/INSTALLER,sha256={CONTENT},4\n"
        f"_tool.pth,sha256={CONTENT},30\n"
        f"tool/__pycache__/__init__.cpython-311.pyc,,\n"
    )
    digests = []
    for record in (wheel, wheel + written, written, ""):
        monkeypatch.setattr(installed_distributions, "read_record", lambda name, record=record: record)
        digests.append(toolchain.digest_toolchain().get("torch"))
    assert digests[0] is not None and digests[0] == digests[1]
    assert digests[2:] == [None, None]


def test_a_tool_that_is_not_installed_has_no_digest(monkeypatch):
    monkeypatch.setattr(keys, "TOOLCHAIN", ("packager", "not-installed"))
    assert set(toolchain.digest_toolchain()) == {"packager"}
    assert toolchain.collect_toolchain_versions()["not-installed"] == ""
