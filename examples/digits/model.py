"""A small convolutional network for 8 × 8 images of handwritten digits."""

import torch
from torch import nn


class DigitsCNN(nn.Module):
    """Images [batch, 1, 8, 8] in [0, 1] → logits [batch, classes]."""

    def __init__(self, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Sequential(nn.Dropout(0.25), nn.Linear(2 * width * 4 * 4, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image).flatten(1))
