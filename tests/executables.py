"""Executables for tests: any archive behind the runner, whether it is a bundle or not, and what they answer."""

import json
import subprocess

import onnxruntime

from packager.bundle import archive
from packager.bundle.executable_layout import MACHINES, build_front
from packager.standalone.library import read_library
from packager.standalone.runners import find_host_target


def put_behind_runner(runner, content, path):
    """Write an executable of these two, whatever the archive's bytes are; returns its path."""
    target = find_host_target(path)
    library = read_library(onnxruntime.__version__, target, None)

    front = build_front(
        runner, library.content, library.notices, archive_size=len(content), machine=MACHINES[target],
        onnxruntime=library.version,
    )  # fmt: skip
    path.write_bytes(front + content)
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
