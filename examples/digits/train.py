"""Train the digits network and save a checkpoint, as any training script would. Takes seconds."""

from pathlib import Path

import torch
from data import split
from model import DigitsCNN
from torch import nn

EPOCHS = 15


def main() -> None:
    """Train on three quarters of the digits and write runs/best.pt."""
    torch.manual_seed(0)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(one) for one in split())
    model = DigitsCNN(classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    best = 0.0
    target = Path(__file__).parent / "runs" / "best.pt"
    target.parent.mkdir(exist_ok=True)
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(train_images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.inference_mode():
            accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
        if accuracy > best:
            best = accuracy
            state = {"epoch": epoch, "accuracy": accuracy, "model_state_dict": model.state_dict()}
            torch.save({**state, "optimizer_state_dict": optimizer.state_dict()}, target)
    print(f"trained {EPOCHS} epochs, best accuracy {best:.1%}, saved {target.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
