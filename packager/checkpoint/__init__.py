"""Read the files that training leaves behind, and write them: `read`, `fit` and `CheckpointManager`.

Reading takes these steps, one module each:

    remote           download a checkpoint that is named by a URL
    locate           list the files that a path stands for, without a tensor library
    open_files       open them without running code from them (`dcp`: those of torch.distributed.checkpoint)
    state_dict       find the state dict among everything that was saved
    metadata         describe what was saved beside it: epoch, metrics, hyperparameters
    key_matching     fit its keys and shapes to a module

Weights are memory-mapped where the format allows it. `training` holds the other direction: saving and restoring a
training loop, in a folder that `run_folder` describes.

Importing this package imports none of them, because files are located before torch is imported.
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
