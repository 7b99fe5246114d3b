"""The executable's server, and `package serve` beside it: the tests of tests/serving run against both."""

import contextlib
import json
import re
import signal
import subprocess

import pytest
from serving_modules import load_module

from packager.standalone.assemble import make_standalone

serving = load_module("conftest")
simple, tokens, linear_bundle = serving.simple, serving.tokens, serving.linear_bundle
json_arrays = serving.json_arrays

SLOW = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1024, 1024) / 32)

    def forward(self, x):
        for _ in range(24):
            x = torch.tanh(x @ self.weight)
        return x.mean(1)
"""


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """Return a bundle of which 1,024 rows take about a second."""
    inputs = {"x": {"dtype": "float32", "shape": ["rows", 1024], "range": [-1, 1]}}
    dims = {"rows": {"min": 1, "max": 4096}}
    return serving.build(
        tmp_path_factory.mktemp("slow"), SLOW, inputs=inputs, name="slow", outputs=["y"], dims=dims,
        parity={"effort": "quick", "tolerance": {"atol": 1e-3, "rtol": 1e-2}},
    )  # fmt: skip


@pytest.fixture(scope="session")
def executable_of(runner, tmp_path_factory):
    """Return a function that makes the executable of a bundle, once."""
    made = {}

    def make(bundle):
        if bundle not in made:
            made[bundle] = tmp_path_factory.mktemp("executable") / bundle.name
            make_standalone(bundle, made[bundle])
        return made[bundle]

    return make


OPTIONS = {"time_limit": "--time-limit", "max_queue": "--queue", "instances": "--threads"}


def translate(settings):
    """Return the options of the executable for settings of `package serve`."""
    settings = dict(settings)
    arguments = []
    if "max_request_bytes" in settings:
        arguments += ["--request-limit", repr(settings.pop("max_request_bytes") / (1 << 20))]
    for name, value in settings.items():
        arguments += [OPTIONS[name], str(value)]
    return arguments


class Executable(serving.Running):
    """An executable that serves, and a client for it."""

    def __init__(self, path, *arguments):
        command = [path, "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        address = self.process.stdout.readline()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)\n", address)
        if match is None:
            raise AssertionError(address + self.process.stderr.read())
        self.port = int(match[1])
        self.url = f"127.0.0.1:{self.port}"

    def stop(self):
        """End the server; returns what it logged."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=40)
        assert self.process.returncode == 0, errors
        return errors


class Several(serving.Running):
    """Executables of several models, each of which answers for its own; the first answers everything else."""

    def __init__(self, servers):
        self.servers = servers
        self.port, self.url = servers[0].port, servers[0].url

    def ask(self, method, path, body=None, headers=()):
        named = [server for server in self.servers if f"/models/{server.model}" in path]
        return (named or self.servers)[0].ask(method, path, body, headers)


@contextlib.contextmanager
def serving_executable(path, *arguments):
    server = Executable(path, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.fixture
def serve(executable_of):
    """Start executables: `serve(bundle, **settings)`; they stop when the test ends."""
    with contextlib.ExitStack() as stack:

        def start(bundle, **settings):
            return stack.enter_context(serving_executable(executable_of(bundle), *translate(settings)))

        yield start


@pytest.fixture(scope="module")
def served(executable_of, simple, tokens):
    """Return the executables of the models `simple` and `tokens`, which the tests of a module share."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving_executable(executable_of(bundle))) for bundle in (simple, tokens)]
        for server in servers:
            server.model = json.loads(server.ask("POST", "/v2/repository/index")[2])[0]["name"]
        yield Several(servers)
        for server in servers:
            assert server.stop() == ""


@pytest.fixture(scope="module")
def reference(simple, tokens):
    """Return `package serve` for the same models."""
    with serving.running(serving.make_app(simple, tokens)) as server:
        yield server


@pytest.fixture
def serve_reference():
    """Start `package serve`: `serve_reference(bundle, **settings)`; they stop when the test ends."""
    with contextlib.ExitStack() as stack:

        def start(bundle, **settings):
            app = serving.make_app(bundle, settings=serving.Settings(**settings))
            return stack.enter_context(serving.running(app))

        yield start


DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16")

EVERY_DTYPE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def forward(self, a_bool, a_uint8, a_int8, a_int16, a_int32, a_int64, a_float16, a_float32, a_float64, a_bfloat16):
        return {
            "b_bool": ~a_bool, "b_uint8": a_uint8.flip(1), "b_int8": a_int8.flip(1), "b_int16": a_int16.flip(1),
            "b_int32": a_int32.flip(1), "b_int64": a_int64.flip(1), "b_float16": a_float16.flip(1),
            "b_float32": a_float32.flip(1) * self.one, "b_float64": a_float64.flip(1),
            "b_bfloat16": a_bfloat16.float().flip(1),
        }
"""


@pytest.fixture(scope="session")
def every_dtype(tmp_path_factory):
    """Return a bundle with an input and an output of every dtype; each output is its input backwards."""
    inputs = {f"a_{dtype}": {"dtype": dtype, "shape": ["batch", "n"]} for dtype in DTYPES}
    for tensor in inputs.values():
        if "int" in tensor["dtype"]:
            tensor["range"] = [0, 100]
    outputs = [f"b_{dtype}" for dtype in DTYPES]
    return serving.build(tmp_path_factory.mktemp("dtypes"), EVERY_DTYPE, inputs=inputs, name="dtypes", outputs=outputs)


@pytest.fixture(scope="session")
def both(executable_of):
    """Return a function: a context with the executable's server of a bundle, and `package serve` for the same."""

    @contextlib.contextmanager
    def start(bundle):
        app = serving.make_app(bundle)
        with serving_executable(executable_of(bundle)) as server, serving.running(app) as reference:
            yield server, reference

    return start
