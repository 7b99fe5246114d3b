"""ResNet-50 as transformers builds it, with the logits as its one output."""

import torch
from transformers import ResNetConfig, ResNetForImageClassification


class ResNet50(torch.nn.Module):
    """Images [batch, 3, 224, 224] → logits [batch, labels]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNetForImageClassification(ResNetConfig())

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values).logits
