"""Executables for tests: any archive behind the runner, whether it is a bundle or not, and what they answer."""

import functools
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from packager.bundle import archive
from packager.bundle.executable_layout import MACHINES, Part, Trailer, place_archive, place_library
from packager.errors import LibraryUnavailable, RunnerUnavailable, StandaloneUnsupported
from packager.standalone.library import read_library
from packager.standalone.runners import find_host_target, read_runner


@functools.cache
def _read_parts():
    """Return target, runner and library for this machine; skip the test where there are none."""
    import onnxruntime

    try:
        target = find_host_target(Path())
        runner = os.environ.get("PACKAGER_TEST_RUNNER")  # one that was just compiled
        content = Path(runner).read_bytes() if runner else read_runner(target)
        return target, content, read_library(onnxruntime.__version__, target, None)
    except (LibraryUnavailable, RunnerUnavailable, StandaloneUnsupported) as error:
        pytest.skip(str(error.why))


def put_behind_runner(content, path):
    """Write an executable with these bytes as its archive; returns its path."""
    target, runner, library = _read_parts()

    def describe(offset, part):
        return Part(offset, len(part), hashlib.sha256(part).digest())

    library_part = describe(place_library(len(runner)), library.content)
    notices_part = describe(library_part.end, library.notices)
    trailer = Trailer(
        runner=describe(0, runner), library=library_part, notices=notices_part,
        archive_offset=place_archive(notices_part.end), archive_size=len(content), machine=MACHINES[target],
        onnxruntime=library.version,
    )  # fmt: skip
    with path.open("wb") as stream:
        for offset, part in (
            (0, runner),
            (library_part.offset, library.content),
            (notices_part.offset, library.notices),
            (trailer.offset, trailer.encode()),
            (trailer.archive_offset, content),
        ):
            stream.seek(offset)
            stream.write(part)
    path.chmod(0o755)
    return path


def write_both(folder, target):
    """Write the archive of a folder, and an executable with it; returns the two paths. The folder may be damaged."""
    archived = target.with_suffix(".zip")
    archive.write_archive(folder, archived)
    return archived, put_behind_runner(archived.read_bytes(), target.with_suffix(".exe"))


def call(executable, *arguments, **options):
    """Run an executable with arguments; returns what `subprocess.run` does."""
    return subprocess.run([executable, *map(str, arguments)], capture_output=True, text=True, **options)


def ask(executable, *arguments):
    """Run an executable with `--json`; returns the exit status and the object on stdout."""
    answer = call(executable, *arguments, "--json")
    assert answer.stdout, answer.stderr
    return answer.returncode, json.loads(answer.stdout)
