"""Modules that read the version they were saved by, as torchvision's MNASNet does."""

import copy
import runpy

import pytest
import safetensors.torch
import torch
from loading import load
from projects import project

from packager import checkpoint
from packager.errors import StateDoesNotFit

VERSIONED = """
import torch
from torch import nn


class Layer(nn.Linear):
    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        version = local_metadata.get("version")
        if version not in (1, 2):
            raise ValueError(f"version should be 1 or 2, not {version}")
        if version == 1:  # which had the sign the other way
            state_dict[prefix + "weight"] = -state_dict[prefix + "weight"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Layer(4, 3), nn.ReLU(), Layer(3, 3))

    def forward(self, x):
        return self.body(x)
"""
WRAPPED = (
    VERSIONED.replace("class Net(", "class Inner(")
    + """

class Net(nn.Module):
    _version = 3

    def __init__(self):
        super().__init__()
        self.net = Inner()

    def forward(self, x):
        return self.net(x)
"""
)


@pytest.fixture
def path(tmp_path):
    return project(tmp_path, VERSIONED)


def net(path, name="Net"):
    return runpy.run_path(str(path.parent / "model.py"))[name]()


def weights(path, version):
    """A state dict as version 1 or 2 of the module saved it; None: as a plain dict, which has no version."""
    torch.manual_seed(1)
    state = net(path).state_dict()
    if version is None:
        return dict(state)
    for metadata in state._metadata.values():
        metadata["version"] = min(version, metadata["version"])
    return state


def under(prefix, state):
    """The state dict of a wrapper that has the module as its attribute."""
    wrapped = type(state)((f"{prefix}.{name}", tensor) for name, tensor in state.items())
    wrapped._metadata = {f"{prefix}.{at}".rstrip("."): metadata for at, metadata in state._metadata.items()}
    wrapped._metadata[""] = {"version": 1}
    return wrapped


def loaded_state(path):
    return load(path).module.state_dict()


def as_torch_loads(path, state):
    module = net(path)
    module.load_state_dict(copy.deepcopy(state))
    return module.state_dict()


def same(state, other):
    return list(state) == list(other) and all(torch.equal(tensor, other[name]) for name, tensor in state.items())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}], ids=["bare", "key"])
def test_the_version_in_the_file_reaches_the_module(path, version, wrap):
    state = weights(path, version)
    torch.save(wrap(state), path.parent / "best.pt")
    assert same(loaded_state(path), as_torch_loads(path, state))
    assert torch.equal(loaded_state(path)["body.0.weight"], state["body.0.weight"] * (-1 if version == 1 else 1))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("prefix", ["module", "_orig_mod", "module._orig_mod", "model"])
def test_the_version_is_found_under_a_wrappers_prefix(path, version, prefix):
    state = weights(path, version)
    torch.save(under(prefix, state), path.parent / "best.pt")
    assert same(loaded_state(path), as_torch_loads(path, state))


@pytest.mark.parametrize("version", [1, 2])
def test_the_version_is_found_where_a_part_was_wrapped(path, version):
    state = weights(path, version)
    body = type(state)((name.replace("body.", "body.module."), tensor) for name, tensor in state.items())
    body._metadata = {at.replace("body", "body.module"): metadata for at, metadata in state._metadata.items()}
    body._metadata["body"] = {"version": 1}
    torch.save(body, path.parent / "best.pt")
    assert same(loaded_state(path), as_torch_loads(path, state))


@pytest.mark.parametrize("version", [1, 2])
def test_the_version_is_found_where_the_module_wraps_what_was_trained(path, version):
    state = weights(path, version)
    expected = as_torch_loads(path, state)
    torch.save(state, path.parent / "best.pt")
    (path.parent / "model.py").write_text(WRAPPED)
    assert same(loaded_state(path), {f"net.{name}": tensor for name, tensor in expected.items()})


def test_averaged_weights_without_a_version_have_that_of_the_models_own(path):
    state = weights(path, 1)
    torch.save({"model": state, "ema": {"shadow": dict(state)}}, path.parent / "best.pt")
    path.write_text(path.read_text().replace("path: best.pt", "path: best.pt\n  weights: ema"))
    assert same(loaded_state(path), as_torch_loads(path, state))


def test_a_file_without_a_version_counts_as_saved_by_the_module_as_it_is(path):
    state = weights(path, None)
    expected = as_torch_loads(path, weights(path, 2))
    torch.save(state, path.parent / "best.pt")
    assert same(loaded_state(path), expected)
    safetensors.torch.save_file(state, path.parent / "best.safetensors")
    path.write_text(path.read_text().replace("best.pt", "best.safetensors"))
    assert same(loaded_state(path), expected)


def test_what_read_returns_loads_into_the_module_as_torch_would_load_it(path):
    state = weights(path, 1)
    torch.save({"model": state}, path.parent / "best.pt")
    module = net(path)
    module.load_state_dict(checkpoint.read(path.parent / "best.pt").state)
    assert same(module.state_dict(), as_torch_loads(path, state))


@pytest.mark.parametrize("metadata", [["no mapping"], {"": 7, 3: {}}, {"body.0": {"version": "two"}}])
def test_metadata_that_torch_does_not_write_is_not_a_bug(path, metadata):
    state = weights(path, 2)
    state._metadata = metadata
    torch.save(state, path.parent / "best.pt")
    if "body.0" in metadata:
        with pytest.raises(StateDoesNotFit, match="checkpoint does not match"):
            load(path)
    else:
        assert same(loaded_state(path), as_torch_loads(path, weights(path, 2)))


def test_an_error_in_the_modules_loading_code_names_the_users_line(path):
    state = weights(path, 2)
    state._metadata["body.2"]["version"] = 5
    torch.save(state, path.parent / "best.pt")
    with pytest.raises(StateDoesNotFit) as caught:
        load(path)
    assert "model.py:12 in _load_from_state_dict" in str(caught.value.why)
    assert "version should be 1 or 2, not 5" in str(caught.value.why)


def test_an_error_in_a_hook_names_the_users_line(tmp_path):
    text = (
        VERSIONED.replace(
            "nn.ReLU(), Layer(3, 3))\n",
            "nn.ReLU(), Layer(3, 3))\n        self.register_load_state_dict_post_hook(check)\n",
        )
        + "\n\ndef check(module, keys):\n    raise SystemExit('no')\n"
    )
    state = {"body.0.weight": torch.ones(3, 4), "body.0.bias": torch.ones(3)}
    state |= {"body.2.weight": torch.ones(3, 3), "body.2.bias": torch.ones(3)}
    with pytest.raises(StateDoesNotFit) as caught:
        load(project(tmp_path, text, state=state))
    assert "in check" in str(caught.value.why)
