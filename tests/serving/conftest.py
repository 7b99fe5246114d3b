"""Bundles to serve, and real servers on loopback for them."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from projects import FLOATS, LINEAR, project

import packager
from packager.serving import Settings
from packager.serving import app as make_app
from packager.serving.server import Server, bind

SIMPLE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1, dtype=torch.int32))

    def forward(self, INPUT0, INPUT1):
        return {"OUTPUT0": INPUT0 * self.one + INPUT1, "OUTPUT1": INPUT0 * self.one - INPUT1}
"""

TOKENS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 6)

    def forward(self, ids, scale):
        return self.table(ids).mean(1) / scale
"""

CENTERED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0, keepdim=True)
"""

SIXTEEN = {"dtype": "int32", "shape": ["batch", 16], "range": [-1000, 1000]}
TOKEN_INPUTS = {
    "ids": {"dtype": "int64", "shape": ["batch", "sequence"], "range": [0, 50]},
    "scale": {"dtype": "float32", "shape": ["batch", 1], "range": [1, 2]},
}


def build(folder, source, *, inputs, version="1.0.0", **sections):
    sections = {"torchscript": {"method": "none"}, "parity": {"effort": "quick"}, **sections}
    path = project(folder, source, inputs=inputs, version=version, **sections)
    return packager.build(path, folder / "out").bundle


@pytest.fixture(scope="session")
def simple(tmp_path_factory):
    """Return the bundle that the examples of Triton's clients need."""
    return build(
        tmp_path_factory.mktemp("simple"), SIMPLE, inputs={"INPUT0": SIXTEEN, "INPUT1": SIXTEEN}, name="simple",
        outputs=["OUTPUT0", "OUTPUT1"], dims={"batch": {"min": 1, "max": 8}},
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """Return a bundle with two dynamic dims, an index that may be outside its table, and a division by an input."""
    dims = {"batch": {"min": 1, "max": 8}, "sequence": {"min": 1, "max": 12}}
    return build(
        tmp_path_factory.mktemp("tokens"), TOKENS, inputs=TOKEN_INPUTS, name="tokens", outputs=["mean"], dims=dims
    )


@pytest.fixture(scope="session")
def centered(tmp_path_factory):
    """Return a bundle in which every row of a batch depends on the others."""
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 4]}}
    return build(tmp_path_factory.mktemp("centered"), CENTERED, inputs=inputs, name="centered", outputs=["y"])


@pytest.fixture(scope="session")
def linear_bundle(tmp_path_factory):
    """Return a function that builds a version of a linear layer, once."""
    bundles = {}

    def build_version(version):
        if version not in bundles:
            folder = tmp_path_factory.mktemp("linear")
            bundles[version] = build(folder, LINEAR, inputs=FLOATS, version=version, outputs=["y"])
        return bundles[version]

    return build_version


class Running:
    """A server that runs, and a client for it."""

    def __init__(self, app, server, port, thread):
        self.app, self.server, self.port, self.thread = app, server, port, thread
        self.url = f"127.0.0.1:{port}"

    def ask(self, method, path, body=None, headers=()):
        """Send one request; returns the status, the headers in lower case and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, body = self.ask("GET", path)
        return status, json.loads(body) if body else None

    def infer(self, model, inputs, **fields):
        """Send an infer request in JSON; returns the status and the JSON of the answer."""
        body = json.dumps({"inputs": [json_tensor(name, array) for name, array in inputs.items()], **fields})
        status, _, body = self.ask("POST", f"/v2/models/{model}/infer", body)
        return status, json.loads(body)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


DATATYPES = {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}


def json_tensor(name, array):
    array = np.asarray(array)
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)], "data": array.tolist()}


@pytest.fixture(scope="session")
def json_arrays():
    """Return a function: the outputs of an answer in JSON, as arrays by name."""
    return lambda answer: {
        output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer["outputs"]
    }


@contextmanager
def running(app, **options):
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(app, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    server_ = Running(app, server, port, thread)
    try:
        yield server_
    finally:
        if thread.is_alive():
            server_.stop()


@pytest.fixture
def serve():
    """Start servers for bundles: `serve(*bundles, **settings)`; they stop when the test ends."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(*bundles, **settings):
            return stack.enter_context(running(make_app(*bundles, settings=Settings(**settings))))

        yield start


@pytest.fixture(scope="module")
def served(simple, tokens):
    """Return a server with the models `simple` and `tokens` that the tests of a module share."""
    with running(make_app(simple, tokens)) as server:
        yield server
