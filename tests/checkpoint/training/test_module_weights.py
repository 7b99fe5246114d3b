"""The weights of a model are saved and restored under its own names, whatever wraps it."""

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from packager.checkpoint.training.manager import CheckpointManager
from packager.checkpoint.training.module_weights import unwrap_module

WRAPPERS = {
    "plain": lambda model: model,
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "compiled inside": lambda model: nn.Sequential(torch.compile(model[0]), *model[1:]),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_leave_no_trace_in_the_names(wrap, tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    manager = CheckpointManager(tmp_path)
    path = manager.save(step=0, model=wrap(model))
    state = safetensors.torch.load_file(path / "model.safetensors")
    assert sorted(state) == sorted(model.state_dict())
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    manager.restore(model=wrap(other))
    assert torch.equal(other[0].weight, model[0].weight)
    manager.restore(model=nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    assert unwrap_module(torch.compile(nn.DataParallel(model))) is model


def test_averaged_weights_are_saved_under_the_names_of_the_model(tmp_path):
    manager, model = CheckpointManager(tmp_path), nn.Sequential(nn.Linear(3, 2))
    average, other = AveragedModel(model), AveragedModel(nn.Sequential(nn.Linear(3, 2)))
    average.update_parameters(model)
    path = manager.save(step=0, model=average, ema=average)
    for name in ("model", "ema"):
        assert sorted(safetensors.torch.load_file(path / f"{name}.safetensors")) == ["0.bias", "0.weight"]
    manager.restore(model=average, ema=other)
    assert torch.equal(other.module[0].weight, model[0].weight) and other.n_averaged == 1


def test_a_tied_weight_is_saved_once_and_any_reader_loads_it(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    manager, model, other, third = CheckpointManager(tmp_path), Tied(), Tied(), Tied()
    path = manager.save(step=0, model=model)
    assert list(safetensors.torch.load_file(path / "model.safetensors")) == ["embed.weight"]
    manager.restore(model=other)
    safetensors.torch.load_model(third, path / "model.safetensors")
    for loaded in (other, third):
        assert torch.equal(loaded.head.weight, model.embed.weight)
        assert loaded.head.weight is loaded.embed.weight


def test_extra_state_is_saved_too(tmp_path):
    class Counting(nn.Linear):
        calls = 0

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    manager, model, other = CheckpointManager(tmp_path), Counting(2, 2), Counting(2, 2)
    model.calls = 7
    manager.save(step=0, model=model)
    manager.restore(model=other)
    assert other.calls == 7


def test_averages_that_are_not_a_module_are_restored_through_their_state_dict(tmp_path):
    class Shadow:
        def __init__(self, model):
            self.shadow = [parameter.detach().clone() for parameter in model.parameters()]

        def state_dict(self):
            return {"shadow": self.shadow, "decay": 0.99}

        def load_state_dict(self, state):
            self.shadow = state["shadow"]

    manager, model = CheckpointManager(tmp_path), nn.Linear(2, 2)
    ema, other = Shadow(model), Shadow(nn.Linear(2, 2))
    manager.save(step=0, model=model, ema=ema)
    manager.restore(model=model, ema=other)
    assert all(torch.equal(*pair) for pair in zip(ema.shadow, other.shadow, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second kind of device")
def test_a_tensor_goes_to_the_device_of_its_counterpart(tmp_path):
    manager, model = CheckpointManager(tmp_path), nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    manager.save(step=0, model=model, optimizer=optimizer)
    other = nn.Linear(2, 2, device="cuda")
    moved = torch.optim.Adam(other.parameters())
    manager.restore(model=other, optimizer=moved)
    assert torch.equal(other.weight.cpu(), model.weight)
    assert moved.state[other.weight]["exp_avg"].is_cuda
