"""A run that was interrupted and resumed is, to the bit, the run that was not."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from packager.checkpoint.ranks import RankGroup
from packager.checkpoint.state_tree import encode_tree
from packager.checkpoint.training.loop_state import TrainingLoop, capture_state
from packager.checkpoint.training.manager import CheckpointManager
from packager.errors import TrainingStateDiffers

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}
SCHEDULES = {
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=20),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7),
    "milestones": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 9]),
    "in turn": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)],
        milestones=[4],
    ),
}
STEPS, BATCHES = 12, 5  # in all, and in an epoch


class Run:
    """A training loop with everything that has a state: dropout, batch norm, EMA, augmentation, shuffled data."""

    def __init__(self, optimizer, schedule, seed):
        torch.manual_seed(0)
        images, labels = torch.randn(20, 6), torch.randint(0, 3, (20,))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = SCHEDULES[schedule](self.optimizer)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        self.order, self.noise = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        self.loader = DataLoader(TensorDataset(images, labels), 4, shuffle=True, generator=self.order)
        self.step, self.done, self.losses = 0, 0, []

    def parts(self):
        named = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.schedule, "ema": self.average}
        return {**named, "scaler": self.scaler, "generators": {"order": self.order, "noise": self.noise}}

    def train(self, until, save=lambda run: None):
        while self.step < until:
            self.epoch_start = self.order.get_state()  # the order of this epoch is drawn from it
            for batch, (image, label) in enumerate(self.loader):
                if batch < self.done:
                    continue
                self.train_on(image, label)
                self.step, self.done = self.step + 1, batch + 1
                save(self)
                if self.step == until:
                    return self
            self.done = 0
        return self

    def train_on(self, image, label):
        self.optimizer.zero_grad()
        image = image + self.noise.normal() + random.random() + np.random.rand()
        loss = nn.functional.cross_entropy(self.model(image.float()), label)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.losses.append(loss.item())

    def resume(self, manager):
        restored = manager.restore(**self.parts())
        self.step, self.done = restored.step, restored.extra["batch"]
        self.order.set_state(restored.extra["epoch_start"])  # draws the same order again; `done` batches are skipped
        return self


def saving(manager, **settings):
    def save(run):
        manager.save(
            step=run.step, **run.parts(), extra={"batch": run.done, "epoch_start": run.epoch_start}, **settings
        )

    return save


def same(run, other):
    return all(
        torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
        for left, right in zip(flat(run), flat(other), strict=True)
    )


def flat(run):
    tree = capture_state(TrainingLoop(**run.parts()), None, RankGroup())
    return [tensor.reshape(-1) for tensor in encode_tree(tree).tensors.values()]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumed_after_an_interruption_anywhere_is_the_run_that_was_not(optimizer, schedule, tmp_path):
    with CheckpointManager(tmp_path / "whole") as manager:
        whole = Run(optimizer, schedule, 1).train(STEPS, saving(manager, blocking=False))
    for stop in range(1, STEPS):
        manager = CheckpointManager(tmp_path / f"{stop}")
        first = Run(optimizer, schedule, 1).train(stop, saving(manager) if stop == 1 else lambda run: None)
        saving(manager, blocking=stop % 2 == 0)(first)
        manager.close()
        second = Run(optimizer, schedule, 999).resume(CheckpointManager(tmp_path / f"{stop}")).train(STEPS)
        assert first.losses + second.losses == whole.losses, stop
        assert same(second, whole), stop
        assert encode_tree(second.schedule.state_dict()).document == encode_tree(whole.schedule.state_dict()).document


def test_saving_changes_nothing_about_the_run_that_is_saved(tmp_path):
    with CheckpointManager(tmp_path) as manager:
        saved = Run("adamw", "cosine", 1).train(STEPS, saving(manager, blocking=False))
    assert saved.losses == Run("adamw", "cosine", 1).train(STEPS).losses


def test_without_the_generators_the_resumed_run_differs(tmp_path):
    whole = Run("sgd", "cosine", 1).train(STEPS)
    manager = CheckpointManager(tmp_path)
    first = Run("sgd", "cosine", 1).train(6, saving(manager))
    second = Run("sgd", "cosine", 999)
    manager.restore(model=second.model, optimizer=second.optimizer, scheduler=second.schedule, random=False)
    assert first.losses + second.train(STEPS - 6).losses != whole.losses


# -- what does not fit ------------------------------------------------------------------------


def test_everything_that_differs_is_listed_and_nothing_is_changed(tmp_path, golden):
    manager = CheckpointManager(tmp_path)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    path = manager.save(step=3, model=model, optimizer=torch.optim.Adam(model.parameters()))
    other = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 4).half(), nn.PReLU())
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(TrainingStateDiffers) as caught:
        manager.restore(
            model=other,
            optimizer=optimizer,
            scheduler=schedule,
            ema=AveragedModel(other),
            generators={"data": torch.Generator()},
        )
    golden(
        caught.value,
        path,
        *("2.weight", "0.bias", "1.weight", "float32[3, 2]", "float16[4, 2]", "1.bias", "float32[3]", "float16[4]"),
        *("ema", "optimizer", "Adam", "SGD", "scheduler", "generators", "data"),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("groups", "difference"),
    [
        (lambda model: [*model.parameters()], "optimizer: saved with 2 parameter groups, here 1"),
        (
            lambda model: [{"params": [model.weight, model.bias]}, {"params": [torch.zeros(1)]}],
            "optimizer: group 0: saved with 1 parameters, here 2",
        ),
        (
            lambda model: [{"params": [("bias", model.bias)]}, {"params": [("weight", model.weight)]}],
            "optimizer: group 0: saved for None, here ['bias']",
        ),
    ],
)
def test_different_parameter_groups_are_refused(groups, difference, tmp_path):
    manager, model = CheckpointManager(tmp_path), nn.Linear(2, 2)
    manager.save(step=0, model=model, optimizer=torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}]))
    with pytest.raises(TrainingStateDiffers) as caught:
        manager.restore(model=model, optimizer=torch.optim.SGD(groups(model)))
    assert caught.value.why.splitlines()[0] == difference
