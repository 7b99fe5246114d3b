"""Load a serialized module: a TorchScript archive or an exported program (.pt2), which brings its own forward().

Such a file is a program, and reading it runs some of it. It is therefore read only if the manifest trusts it, and it
replaces an entry: it cannot be the checkpoint of one.
"""

from __future__ import annotations

from typing import Any

import torch

from packager.checkpoint.key_matching import Fit
from packager.checkpoint.locate import LocatedCheckpoint, detect_serialized_module
from packager.errors import CheckpointUnreadable


class SerializedModule(torch.nn.Module):
    """A plain module around a loaded program, since neither kind of program supports all that a module does.

    The attribute `inner` is part of the node names in an ONNX file.
    """

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> SerializedModule:
        """Set the wrapper's mode alone: that of the program was fixed when it was saved or loaded."""
        self.training = mode
        return self

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Call the program."""
        return self.inner(*inputs)


def load_serialized(located: LocatedCheckpoint, where: str) -> tuple[torch.nn.Module, Fit]:
    """Load the program with its own weights, on the CPU. Raises `CheckpointUnreadable`, with `where` as its place."""
    path, kind = str(located.head), detect_serialized_module(located)
    try:
        if kind == "TorchScript":
            inner = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        else:
            inner = torch.export.load(path).module()
    except Exception as error:  # noqa: BLE001 (torch raises a dozen unrelated classes for damaged bytes)
        message = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointUnreadable(path, where, f"as {kind}: {message}") from None
    module = SerializedModule(inner)
    return module, Fit(module.state_dict(), "", (), ())
