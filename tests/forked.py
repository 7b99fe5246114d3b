"""Fork the processes that builds and `verify` start from ones that have imported their libraries.

Starting them takes most of the time of a small build: 0.3 s of a core for the ONNX worker, and 0.8 s for the replay of
a bundle's evidence, which imports torch. In fast tests, the builds and verifications of pytest's own process fork them:
see conftest.py. The slow tests, those of the worker and of the replay, and every command start them as users do.
"""

import atexit
import contextlib
import fcntl
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

from packager.common.paths import PACKAGE
from packager.common.process_memory import WORKER_ENVIRONMENT
from packager.export.passes.worker import OnnxWorker

_MAX_REQUEST_BYTES = 1 << 18
_MAX_DESCRIPTORS = 100
_FIRST_SAVED_DESCRIPTOR = 500  # above all that a request names
_LIBRARIES_OF_REPLAY = (
    "packager.runtime.replay_process",
    "packager.runtime.bundled_onnx",
    "packager.runtime.check",
    "packager.runtime.torchscript_backend",
    "packager.runtime.exported_program_backend",
    "torch._export.serde.serialize",
)


class ForkedWorker(OnnxWorker):
    """The ONNX worker, with a child that has imported everything when it starts."""

    def start(self):
        environment = {"ORT_DISABLE_TELEMETRY": "1", **os.environ, **WORKER_ENVIRONMENT}
        with self._starting:
            if self._cancelled:
                raise CancelledError
            template = _start_template("worker")
            self._child = template.fork(os.getcwd(), environment, stderr=self._errors.fileno())


def start_replay(request, folder):
    """Start what `packager.runtime.replay` does, for one request."""
    environment = {"ORT_DISABLE_TELEMETRY": "1", "HOME": folder, "TMPDIR": folder}
    descriptors = [location.descriptor for location in request.locations.values()]
    template = _start_template("replay")
    return template.fork(folder, environment, descriptors, buffering=0)


@functools.cache
def _start_template(kind):
    return _Template(kind)


class _Template:
    """The process that forks: it has imported what its children need, and ends with this process."""

    def __init__(self, kind):
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        path = [str(PACKAGE.parent), str(Path(__file__).parent)]
        # Without the working directory, which is a different one in every child.
        code = (
            f"import sys; sys.path[:] = [*{path!r}, *filter(None, sys.path)]; "
            f"import forked; forked.serve_template({kind!r}, {theirs.fileno()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"ORT_DISABLE_TELEMETRY": "1", **os.environ, **WORKER_ENVIRONMENT},
            )
        atexit.register(self._stop)

    def fork(self, folder, environment, descriptors=(), *, stderr=None, buffering=-1):
        """Return a new child in a folder; `descriptors` have the same numbers in it."""
        stdin, stdin_writer = os.pipe()
        stdout_reader, stdout = os.pipe()
        control, theirs = socket.socketpair()
        request = {"folder": folder, "environment": environment, "descriptors": list(descriptors)}
        with theirs, open(os.devnull, "wb") as nothing, self._lock:
            standard = [stdin, stdout, nothing.fileno() if stderr is None else stderr]
            message = json.dumps(request).encode()
            socket.send_fds(self._connection, [message], [theirs.fileno(), *standard, *descriptors])
        os.close(stdin)
        os.close(stdout)
        return _Child(control, open(stdin_writer, "wb", buffering), open(stdout_reader, "rb", buffering))

    def _stop(self):
        self._connection.close()
        self._process.wait()


class _Child:
    """What packager needs of `subprocess.Popen`, for a process that is the child of a different one."""

    def __init__(self, control, stdin, stdout):
        self.stdin, self.stdout = stdin, stdout
        self._control, self._status = control, None
        self.pid = int(control.recv(20))

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._status

    def wait(self, timeout=None):
        if self._status is None:
            if not select.select([self._control], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            self._status = os.waitstatus_to_exitcode(int(self._control.recv(20)))
            self._control.close()
        return self._status

    def kill(self):
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


# -- in the template ------------------------------------------------------------------------


def serve_template(kind, descriptor):
    """Import what the children need, then fork one for each request until the socket closes."""
    run = {"worker": _prepare_worker, "replay": _prepare_replay}[kind]()
    with socket.socket(fileno=descriptor) as connection:
        while True:
            message, descriptors, *_ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, _MAX_DESCRIPTORS)
            if not message:
                return
            if os.fork() == 0:
                connection.close()
                _guard(json.loads(message), *descriptors, run=run)
            for number in descriptors:
                os.close(number)
            with contextlib.suppress(ChildProcessError):  # so that the time of the children counts as that of the tests
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _guard(request, control, *descriptors, run):
    """Fork the child, send its id, wait until it has ended, and send its status."""
    child = os.fork()
    if child == 0:
        os.close(control)
        _become(request, descriptors)
        try:
            run()
        finally:
            os._exit(1)
    for number in descriptors:
        os.close(number)
    os.write(control, b"%-20d" % child)
    os.write(control, b"%-20d" % os.waitpid(child, 0)[1])
    os._exit(0)


def _become(request, descriptors):
    """Give this process the descriptors, the folder and the environment of a request."""
    saved = [fcntl.fcntl(number, fcntl.F_DUPFD, _FIRST_SAVED_DESCRIPTOR) for number in descriptors]
    for number in descriptors:
        os.close(number)
    for number, target in zip(saved, [0, 1, 2, *request["descriptors"]], strict=True):
        os.dup2(number, target)
        os.close(number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])


def _prepare_worker():
    from packager.export.passes import worker_process

    worker_process.import_libraries()
    return worker_process.serve


def _prepare_replay():
    for name in _LIBRARIES_OF_REPLAY:
        importlib.import_module(name)
    from packager.runtime import replay_process

    replay_process._end_with_parent = lambda parent: None  # the parent is the guard
    return replay_process.main
