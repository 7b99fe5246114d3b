"""Train the digits network with a CheckpointManager. Takes seconds; interrupt it, and go on with --resume.

    python examples/digits/train.py [--resume] [--epochs 15]

runs/ is the run folder: a checkpoint after each epoch, of which the best, by the accuracy of its averaged
weights, and the latest two stay.
Resumed, the run ends with the weights, to the bit, that it would have had without the interruption.
"""

import argparse
import shutil
from pathlib import Path

import torch
from data import split
from model import DigitsCNN
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from packager.checkpoint import CheckpointManager, Retention

EPOCHS = 15  # of the schedule, however many are trained now
RUNS = Path(__file__).parent / "runs"


def main() -> None:
    """Train on three quarters of the digits, into the run folder that package.yaml names."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--resume", action="store_true", help="go on where the last run ended")
    arguments.add_argument("--epochs", type=int, default=EPOCHS, help="stop after so many")
    asked = arguments.parse_args()
    if not asked.resume:
        shutil.rmtree(RUNS, ignore_errors=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is too small to share, and waiting threads would take the time of others
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(one) for one in split())
    model = DigitsCNN(classes=10)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    state = {"model": model, "optimizer": optimizer, "scheduler": schedule, "ema": average}
    keep = Retention(latest=2, metric="accuracy_ema", mode="max")
    with CheckpointManager(RUNS, keep=keep, name="digits-cnn", version="1.0.0") as manager:
        first = 0
        if manager.latest():
            first = manager.restore(**state).epoch + 1
            print(f"resumed after epoch {first - 1}")
        for epoch in range(first, min(asked.epochs, EPOCHS)):
            model.train()
            for batch in torch.randperm(len(train_images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
                optimizer.step()
                average.update_parameters(model)
            schedule.step()
            found = {"accuracy": accuracy(model, test_images, test_labels)}
            found["accuracy_ema"] = accuracy(average, test_images, test_labels)
            manager.save(step=epoch, epoch=epoch, **state, metrics=found, blocking=False)
        manager.wait()
        best = manager.best()
    averaged, plain = best.metrics["accuracy_ema"], best.metrics["accuracy"]
    print(f"best after epoch {best.epoch}: averaged weights {averaged:.1%}, those of the last step {plain:.1%}")


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that the model gets right."""
    model.eval()
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
