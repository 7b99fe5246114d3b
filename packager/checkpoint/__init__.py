"""Files that training left behind → a state dict, and what else lay in them.

Reading has these steps, one module each: `locate` says which files a checkpoint is, without a tensor library,
`files` opens them without running anything they hold (`dcp` those of torch.distributed), `select` finds the
state dict in what was read, `about` describes what lay beside it, `match` fits its keys and shapes to a module.
Weights are mapped, not copied, where the format allows it.

Importing this package imports none of them: `locate` is asked before torch is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.common.lazy_import import import_attribute

if TYPE_CHECKING:
    from packager.checkpoint.key_matching import Fit, fit
    from packager.checkpoint.metadata import About
    from packager.checkpoint.state_dict import Checkpoint, read
    from packager.checkpoint.training.huggingface_export import export_huggingface
    from packager.checkpoint.training.manager import CheckpointManager
    from packager.checkpoint.training.retention import Retention

__all__ = ["About", "Checkpoint", "CheckpointManager", "Fit", "Retention", "export_huggingface", "fit", "read"]

_EXPORTS = {
    "About": "packager.checkpoint.metadata",
    "Checkpoint": "packager.checkpoint.state_dict",
    "CheckpointManager": "packager.checkpoint.training.manager",
    "Retention": "packager.checkpoint.training.retention",
    "export_huggingface": "packager.checkpoint.training.huggingface_export",
    "Fit": "packager.checkpoint.key_matching",
    "fit": "packager.checkpoint.key_matching",
    "read": "packager.checkpoint.state_dict",
}


def __getattr__(name: str) -> Any:
    return import_attribute(name, _EXPORTS, globals())
