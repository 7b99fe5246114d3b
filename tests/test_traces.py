"""What looks for traces of the machine in bundles finds them."""

import getpass
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import traces
from projects import ROOT, reseal

from packager.bundle import layout
from packager.bundle.fingerprint import compute_fingerprint, format_sums, list_files, regular_file_digest

TRACES = {
    "the user's folder": f"{os.path.expanduser('~')}/model.py",
    "the working directory": f"{os.getcwd()}/model.py",
    "the interpreter": f"{sys.prefix}/lib/python3",
    "a package": "lib/site-packages/torch",
    "a temporary folder": "/tmp/x",
    "the checkout": f"{ROOT}/packager",
    "today": time.strftime("%Y-%m-%dT%H:%M"),
    "a folder of the test": "",
}


def seal(bundle):
    """As a build seals a bundle, and not as a test does that tampers with one."""
    text = format_sums({path: regular_file_digest(bundle / path) for path in list_files(bundle)})
    (bundle / layout.SUMS).write_text(text)
    (bundle / layout.FINGERPRINT).write_text(compute_fingerprint(text) + "\n")


@pytest.fixture
def copied(built, tmp_path):
    """A bundle and the folder it lies in, which is gone before the test's folder is looked through."""
    folder = tmp_path / "copied"
    yield Path(shutil.copytree(built.bundle, folder / "net"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("path", ["README.md", "model.onnx", "evidence/parity.json", "assets/labels.txt"])
@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_in_any_file_is_found(copied, tmp_path, path, trace):
    with (copied / path).open("ab") as stream:
        stream.write(b"x" + (TRACES[trace] or f"{tmp_path}/y").encode() + b"\xff")
    assert traces.found_in(copied, tmp_path)
    assert {one.partition(": ")[0] for one in traces.found_in(copied, tmp_path)} == {path}


def test_what_a_build_gave_holds_none(built):
    assert traces.found_in(built.bundle, built.bundle.parent) == []


def test_names_are_looked_for_as_words_and_not_among_weights_where_they_are_short():
    assert traces.names("forge.example.org", "ann") == ["ann", "forge", "forge.example.org"]
    assert traces.names("localhost", "root") == traces.names("vm", "me") == []
    assert traces._says(b"built by ann.", "ann")
    assert traces._says(b"\0\xffbuilt-on:buildbox7\0", "buildbox7")
    assert not traces._says(b"an annotated banner, anna_ann", "ann")
    assert not traces._says(b"\0\xff\0ann\0", "ann")


@pytest.mark.skipif(not traces.names(socket.gethostname(), getpass.getuser()), reason="its names say nothing")
def test_the_names_of_this_machine_and_this_user_are_found(copied):
    name = traces.names(socket.gethostname(), getpass.getuser())[0]
    (copied / "README.md").write_text(f"built by {name}\n")
    assert traces.found_in(copied) == [f"README.md: {name}"]


def test_bundles_that_were_built_are_looked_through_and_those_that_a_test_made_are_not(copied):
    below = copied.parent
    assert traces.bundles_below(below) == [copied]
    with (copied / "README.md").open("a") as stream:
        stream.write("made in /tmp/somewhere\n")
    assert traces.found_below(below) == []  # it is broken
    seal(copied)
    assert traces.found_below(below) == ["net/README.md: /tmp/"]
    assert traces.found_below(below) == ["net/README.md: /tmp/"]
    reseal(copied)
    assert traces.found_below(below) == []
