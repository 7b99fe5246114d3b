"""Files that training left behind → a state dict.

Reading has three steps, one module each: `files` opens a file without running anything it holds,
`select` finds the state dict in what was read, `match` fits its keys and shapes to a module.
Weights are mapped, not copied, where the format allows it.
"""

from packager.checkpoint.match import Fit, fit
from packager.checkpoint.select import Checkpoint, read

__all__ = ["Checkpoint", "Fit", "fit", "read"]
