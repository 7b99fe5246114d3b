"""Modules that only wrap another one, such as `DataParallel` and a compiled module.

A wrapper computes what the module inside it computes, and puts an attribute name (`module.`, `_orig_mod.`) before
every key of its state dict. Checkpoints are saved without these prefixes, and exporters see only what is inside.
"""

from __future__ import annotations

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel


def wrapped_attribute(module: torch.nn.Module) -> str | None:
    """Return the attribute under which a wrapper keeps the module it wraps; None for a module that is no wrapper."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "module"
    is_compiled = type(module).__name__ == "OptimizedModule"  # by name: importing torch._dynamo takes seconds
    return "_orig_mod" if is_compiled and "_orig_mod" in module._modules else None
