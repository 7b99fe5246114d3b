"""Executables to test: of the runner that is installed, or of the one that PACKAGER_TEST_RUNNER names."""

import hashlib
import os
from pathlib import Path

import pytest

from packager.errors import RunnerUnavailable
from packager.standalone import assemble, runners, verify_file


@pytest.fixture(scope="session")
def runner():
    """Let packager know the runner to test, and return its bytes; skip the test if there is none."""
    given = os.environ.get("PACKAGER_TEST_RUNNER") or os.environ.get("PACKAGER_RUNNER")
    target = runners.find_host_target(Path())
    with pytest.MonkeyPatch.context() as patch:
        if given is not None:
            content = Path(given).read_bytes()
            digests = {**runners.read_digests(), target: [hashlib.sha256(content).hexdigest()]}
            for module in (runners, verify_file):
                patch.setattr(module, "read_digests", lambda: digests)
            patch.setattr(assemble, "read_runner", lambda _: content)
        try:
            content = assemble.read_runner(target)
        except RunnerUnavailable as error:
            pytest.skip(str(error.why))
        yield content


@pytest.fixture(scope="session")
def executable(built, runner, tmp_path_factory):
    """Return the executable of the built bundle, which no test changes."""
    target = tmp_path_factory.mktemp("executable") / "digits-cnn"
    assemble.make_standalone(built.bundle, target)
    return target
