"""A TorchScript archive or an exported program (.pt2) → the module: a file that holds its own forward().

Such a file is a program, and reading it is running some of it. So it is read only where the manifest says that
it is trusted; and it takes the place of an entry, never that of a checkpoint for one.
"""

from __future__ import annotations

from typing import Any

import torch

from packager.checkpoint.key_matching import Fit
from packager.checkpoint.locate import LocatedCheckpoint, detect_serialized_module
from packager.errors import CheckpointUnreadable


class SerializedModule(torch.nn.Module):
    """What was loaded, in a plain module: neither kind has all that a module can be asked for."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> SerializedModule:
        """The mode is what it was when the program was saved, or set where it was loaded."""
        self.training = mode
        return self

    def forward(self, *inputs: torch.Tensor) -> Any:
        """As the program has it."""
        return self.inner(*inputs)


def load_serialized(located: LocatedCheckpoint, where: str) -> tuple[torch.nn.Module, Fit]:
    """The module, with its own weights. Raises `CheckpointUnreadable`."""
    path = str(located.head)
    try:
        if detect_serialized_module(located) == "TorchScript":
            inner = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        else:
            inner = torch.export.load(path).module()
    except Exception as error:  # noqa: BLE001 (torch raises a dozen unrelated classes for damaged bytes)
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointUnreadable(path, where, f"as {detect_serialized_module(located)}: {text}") from None
    module = SerializedModule(inner)
    return module, Fit(module.state_dict(), "", (), ())
