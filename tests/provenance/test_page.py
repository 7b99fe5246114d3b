"""The commands of docs/provenance.md do what the page says."""

import re
import shutil
import subprocess
import sys

import pytest
from projects import ROOT

PAGE = (ROOT / "docs/provenance.md").read_text(encoding="utf-8")


def block(language, word):
    """Return the block of code in a language that has a word in it."""
    (text,) = [
        text for text in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if word in text
    ]
    return text


def test_the_libraries_find_the_documents_valid(built):
    done = subprocess.run(
        [sys.executable, "-c", block("python", "JsonStrictValidator")], cwd=built.bundle, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "valid\n"), done.stderr


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_digests_in_the_documents_are_those_of_the_files(built):
    done = subprocess.run(["sh", "-ec", block("sh", "jq")], cwd=built.bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *files, verdict = done.stdout.splitlines()
    assert len(files) == 8 + 5 + 3 and all(line.endswith(": OK") for line in files)
    assert verdict == "true"
