"""`packager.build` and `vet` leave the process that they run in as it was."""

import logging
import os
import random
import warnings

import numpy as np
import pytest
import torch
from projects import LINEAR, project

import packager
from packager.builder.vet import vet
from packager.common.progress import StageFinished
from packager.errors import ForwardFailed

MEDDLING = """
import logging, os, random, sys, warnings
import numpy

os.environ["SET_BY_THE_MODEL"] = "1"
os.environ["CHANGED_BY_THE_MODEL"] = "1"
os.environ.pop("REMOVED_BY_THE_MODEL", None)
random.seed(7)
numpy.random.seed(7)
logging.disable(logging.INFO)
warnings.simplefilter("ignore")
"""
MEDDLING_WITH_TORCH = """
torch.manual_seed(7)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
"""
MODEL = MEDDLING + LINEAR.replace("from torch import nn\n", f"from torch import nn\n{MEDDLING_WITH_TORCH}").replace(
    "nn.Linear(4, 3)", "nn.Linear(4, 3, dtype=torch.float32)"
)


class Interrupted(Exception):
    """Raised by a listener."""


def host_state():
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "torch random": torch.random.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy random": [str(part) for part in np.random.get_state()],
        "logging.disable": logging.root.manager.disable,
        "warnings": list(warnings.filters),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
    }


@pytest.fixture
def host(monkeypatch):
    """The state of a host that has changed every setting."""
    monkeypatch.setenv("CHANGED_BY_THE_MODEL", "0")
    monkeypatch.setenv("REMOVED_BY_THE_MODEL", "0")
    monkeypatch.delenv("SET_BY_THE_MODEL", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    logging.disable(logging.DEBUG)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="the host's own")
        yield host_state()
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.fixture(params=[LINEAR, MODEL], ids=["plain", "meddling"])
def written(request, tmp_path):
    state = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}
    return project(tmp_path / "project", request.param, state=state)


def changed(before):
    now = host_state()
    return [name for name in before if before[name] != now[name]]


def test_a_build_leaves_the_host_as_it_was(written, tmp_path, host):
    assert packager.verify(packager.build(written, tmp_path / "out").bundle).ok
    assert changed(host) == []


def test_vetting_leaves_the_host_as_it_was(written, host):
    vet(written)
    assert changed(host) == []


def test_a_build_that_fails_leaves_the_host_as_it_was(written, tmp_path, host):
    model = written.parent / "model.py"
    model.write_text(model.read_text().replace("return self.layer(x)", "raise ValueError('never')"))
    with pytest.raises(ForwardFailed):
        packager.build(written, tmp_path / "out")
    assert changed(host) == []


@pytest.mark.parametrize("stage", ["source", "export", "reference"])
def test_a_build_that_is_interrupted_leaves_the_host_as_it_was(written, tmp_path, host, stage):
    def interrupt(event):
        if isinstance(event, StageFinished) and event.stage == stage:
            raise Interrupted

    with pytest.raises(Interrupted):
        packager.build(written, tmp_path / "out", listener=interrupt)
    assert changed(host) == []
