"""A small net whose inputs and outputs are a batch: two inputs, and an output of each rank and kind."""

SCORES = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask):
        y = self.layer(x * mask.float())
        return {"classes": y, "score": y.sum(-1), "sign": y > 0}
"""

SCORES_INPUTS = {
    "x": {"dtype": "float32", "shape": ["batch", 4]},
    "mask": {"dtype": "int64", "shape": ["batch", 4], "range": [0, 2]},
}
