"""Executables for tests: any archive behind the runner, whether it is a bundle or not, and what they answer."""

import hashlib
import json
import subprocess

import onnxruntime

from packager.bundle import archive
from packager.bundle.executable_layout import MACHINES, Part, Trailer, place_archive, place_library
from packager.standalone.library import read_library
from packager.standalone.runners import find_host_target


def put_behind_runner(runner, content, path):
    """Write an executable of these two, whatever the archive's bytes are; returns its path."""
    target = find_host_target(path)
    library = read_library(onnxruntime.__version__, target, None)

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


def write_both(runner, folder, target):
    """Write the archive of a folder, and an executable with it; returns the two paths. The folder may be damaged."""
    archived = target.with_suffix(".zip")
    archive.write_archive(folder, archived)
    return archived, put_behind_runner(runner, archived.read_bytes(), target.with_suffix(".exe"))


def call(executable, *arguments, **options):
    """Run an executable with arguments; returns what `subprocess.run` does."""
    return subprocess.run([executable, *map(str, arguments)], capture_output=True, text=True, **options)


def ask(executable, *arguments):
    """Run an executable with `--json`; returns the exit status and the object on stdout."""
    answer = call(executable, *arguments, "--json")
    assert answer.stdout, answer.stderr
    return answer.returncode, json.loads(answer.stdout)
