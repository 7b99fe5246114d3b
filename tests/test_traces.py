"""The search for traces of the machine in bundles finds them."""

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
    """Seal a bundle as a build does, and not as a test that tampers with one (`reseal`)."""
    text = format_sums({path: regular_file_digest(bundle / path) for path in list_files(bundle)})
    (bundle / layout.SUMS).write_text(text)
    (bundle / layout.FINGERPRINT).write_text(compute_fingerprint(text) + "\n")


@pytest.fixture
def copied(built, tmp_path):
    """Yield a copy of a bundle, which is deleted before the test's folder is searched."""
    folder = tmp_path / "copied"
    yield Path(shutil.copytree(built.bundle, folder / "net"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("path", ["README.md", "model.onnx", "evidence/parity.json", "assets/labels.txt"])
@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_in_any_file_is_found(copied, tmp_path, path, trace):
    with (copied / path).open("ab") as stream:
        stream.write(b"x" + (TRACES[trace] or f"{tmp_path}/y").encode() + b"\xff")
    assert {trace.partition(": ")[0] for trace in traces.find_traces(copied, tmp_path)} == {path}


def test_a_built_bundle_contains_no_trace(built):
    assert traces.find_traces(built.bundle, built.bundle.parent) == []


def test_names_are_matched_as_words_and_short_ones_not_in_binary_files():
    assert traces.identifying_names("forge.example.org", "ann") == ["ann", "forge", "forge.example.org"]
    assert traces.identifying_names("localhost", "root") == traces.identifying_names("vm", "me") == []
    assert traces.contains_name(b"built by ann.", "ann")
    assert traces.contains_name(b"\0\xffbuilt-on:buildbox7\0", "buildbox7")
    assert not traces.contains_name(b"an annotated banner, anna_ann", "ann")
    assert not traces.contains_name(b"\0\xff\0ann\0", "ann")


@pytest.mark.skipif(
    not traces.identifying_names(socket.gethostname(), getpass.getuser()), reason="its names identify nobody"
)
def test_the_names_of_this_machine_and_user_are_found(copied):
    name = traces.identifying_names(socket.gethostname(), getpass.getuser())[0]
    (copied / "README.md").write_text(f"built by {name}\n")
    assert traces.find_traces(copied) == [f"README.md: {name}"]


def test_only_bundles_that_a_build_sealed_are_searched(copied):
    below = copied.parent
    assert traces.find_bundles(below) == [copied]
    with (copied / "README.md").open("a") as stream:
        stream.write("made in /tmp/somewhere\n")
    assert traces.find_traces_below(below) == []  # it is broken
    seal(copied)
    assert traces.find_traces_below(below) == ["net/README.md: /tmp/"]
    assert traces.find_traces_below(below) == ["net/README.md: /tmp/"]
    reseal(copied)
    assert traces.find_traces_below(below) == []
