"""Files that training left behind → a state dict, and what else lay in them.

Reading has these steps, one module each: `locate` says which files a checkpoint is, without a tensor library,
`files` opens them without running anything they hold (`dcp` those of torch.distributed), `select` finds the
state dict in what was read, `about` describes what lay beside it, `match` fits its keys and shapes to a module.
Weights are mapped, not copied, where the format allows it.

Importing this package imports none of them: `locate` is asked before torch is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager import fetched

if TYPE_CHECKING:
    from packager.checkpoint.about import About
    from packager.checkpoint.huggingface import export_huggingface
    from packager.checkpoint.manager import CheckpointManager
    from packager.checkpoint.match import Fit, fit
    from packager.checkpoint.retention import Retention
    from packager.checkpoint.select import Checkpoint, read

__all__ = ["About", "Checkpoint", "CheckpointManager", "Fit", "Retention", "export_huggingface", "fit", "read"]

_HOMES = {
    "About": "packager.checkpoint.about",
    "Checkpoint": "packager.checkpoint.select",
    "CheckpointManager": "packager.checkpoint.manager",
    "Retention": "packager.checkpoint.retention",
    "export_huggingface": "packager.checkpoint.huggingface",
    "Fit": "packager.checkpoint.match",
    "fit": "packager.checkpoint.match",
    "read": "packager.checkpoint.select",
}


def __getattr__(name: str) -> Any:
    return fetched(name, _HOMES, globals())
