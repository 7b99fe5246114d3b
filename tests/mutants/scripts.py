"""Mutants of a TorchScript file: freezing made the weights constants of the graph, and they are changed in place."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a channel scaled by 1 %": lambda value: torch.cat([value[:1] * 1.01, value[1:]]),
    "a tensor scaled by 0.1 %": lambda value: value * 1.001,
    "zeroed": lambda value: value * 0,
    "rounded to bfloat16": lambda value: value.bfloat16().to(value.dtype),
    "one NaN": lambda value: torch.cat([value.flatten()[:1] * torch.nan, value.flatten()[1:]]).view(value.shape),
    "two channels swapped": lambda value: value[[-1, *range(1, len(value) - 1), 0][-len(value) :]],
}


def mutants(path: Path, target: Path, most: int = 2) -> Iterator[str]:
    """Write mutants of the program at `path` to `target`, one after the other; yields a description of each."""
    count = len(_constants(torch.jit.load(path)))
    for name, change in CHANGES.items():
        for number in sorted({round(one) for one in np.linspace(0, count - 1, most)}):
            program = torch.jit.load(path)
            value = _constants(program)[number]
            changed = change(value)
            if not torch.equal(changed, value):
                with torch.no_grad():
                    value.copy_(changed)
                torch.jit.save(program, target)
                yield f"{name}, at constant {number} of shape {list(value.shape)}"


def _constants(program: torch.jit.ScriptModule) -> list[torch.Tensor]:
    """Return the float constants of more than one element in the order of the graph, whose memory they share."""
    found = [
        node.t("value")
        for node in program.graph.findAllNodes("prim::Constant")
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]
    return [value for value in found if value.is_floating_point() and value.numel() > 1]
