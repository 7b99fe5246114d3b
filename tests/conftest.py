"""Define the fixtures and settings that all tests share.

Property tests draw the same examples every time; `pytest --hypothesis-profile=explore` looks for new ones.
"""

import gc
import itertools
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import forked
import messages
import projects
import pytest
import traces
from hypothesis import HealthCheck, settings

import packager
from packager.bundle import archive
from packager.export.passes import worker
from packager.runtime import replay

settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no reason to fail
)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("steady")

# Like the command: torch's threads share the cores with the worker of the ONNX passes, so they must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Else each of the processes that tests start would compile packager, and every run all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

gc.disable()  # while the tests and all their libraries are imported


def pytest_addoption(parser):
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/goldens with the current messages")


def pytest_configure(config):
    if config.getoption("--update-goldens") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--update-goldens needs a single process: leave out -n")


@pytest.fixture
def golden(request, tmp_path_factory):
    """Compare a message with the test's section of tests/goldens/MODULE.txt: `golden(text, *facts, **values)`."""
    folders = {re.escape(str(tmp_path_factory.getbasetemp())) + r"/[^/\s'\"]+": "<temporary>"}
    if "tmp_path" in request.fixturenames:
        folders = {re.escape(str(request.getfixturevalue("tmp_path"))): "<folder>", **folders}
    path = messages.GOLDENS / request.path.relative_to(messages.GOLDENS.parent).with_suffix(".txt")
    test = re.sub(r"-?facts\d+", "", request.node.name)  # a column of facts does not identify the case
    return messages.Golden(path, test, folders, update=request.config.getoption("--update-goldens"))


@pytest.fixture
def error_golden(request):
    """Compare a text with tests/goldens/errors/NAME.txt: `error_golden(name, text)`."""
    update = request.config.getoption("--update-goldens")
    return lambda name, text: messages.check_file(messages.GOLDENS / "errors" / f"{name}.txt", text, update=update)


def pytest_collection_finish():
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Freeze the objects of earlier tests: a build collects garbage often, and would visit all of them each time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_folders(tmp_path_factory):
    """Yield the paths of one cache per test, and keep the user's own cache out of all tests."""
    folder = tmp_path_factory.getbasetemp()
    os.environ["PACKAGER_CACHE"] = str(folder / "cache")
    return (folder / f"cache-{number}" for number in itertools.count())  # mktemp would list all folders every time


@pytest.fixture(autouse=True)
def cache_folder(_cache_folders, monkeypatch):
    """Give each test a build cache that is empty at first, and return its folder."""
    folder = next(_cache_folders)
    folder.mkdir()
    monkeypatch.setenv("PACKAGER_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_traces(request, tmp_path_factory):
    """Check that no bundle that a test built in its folder has a trace of the machine."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None:
        assert traces.find_traces_below(folder, folder, tmp_path_factory.getbasetemp()) == []


@pytest.fixture(autouse=True)
def _forked(request, monkeypatch):
    """Let fast tests fork the processes of builds and of `verify`: see forked.py. Those of tests/runtime are real."""
    if sys.platform == "linux" and request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(worker, "OnnxWorker", forked.ForkedWorker)
        if "runtime" not in request.path.parts:
            monkeypatch.setattr(replay, "_start", forked.start_replay)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Return the manifest of a small project that is never changed."""
    return projects.digits(tmp_path_factory.mktemp("project") / "digits")


@pytest.fixture(scope="session")
def built(digits, tmp_path_factory):
    """Return the result of building that project. Tests that change the bundle use a copy: see `bundle`."""
    return packager.build(digits, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="session")
def archived(built, tmp_path_factory):
    """Return the archive of the built bundle."""
    target = tmp_path_factory.mktemp("archived") / f"{built.bundle.name}.zip"
    archive.write_archive(built.bundle, target)
    return target


@pytest.fixture
def bundle(built, tmp_path):
    """Return a copy of the built bundle, which a test may change."""
    return Path(shutil.copytree(built.bundle, tmp_path / "copy" / built.bundle.name))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Return the folder for temporary files of this process; check that it is empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert os.listdir(folder) == []
