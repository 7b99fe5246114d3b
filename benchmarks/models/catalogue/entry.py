"""The form of a catalogue entry: everything that a user of packager writes for one model, as text.

No library is imported here. The source text is written to `model.py`, and runs in the processes that need the module.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

Range = tuple[float, float]
IMAGE: Range = (0.0, 1.0)
PREAMBLE = "import torch\nfrom torch import nn\n"


@dataclass(frozen=True)
class Input:
    """One input: dtype, sizes or names of dims, and the range low ≤ x < high of its values."""

    dtype: str
    shape: tuple[int | str, ...]
    range: Range | None = None


@dataclass(frozen=True)
class Dim:
    """The limits of a named dim; without `max` there is no upper limit."""

    min: int = 1
    max: int | None = None


@dataclass(frozen=True)
class ZooModel:
    """A model of a library, and the project that packages it.

    `source` is the text of `model.py`; its `build` or `Model`, named by `entry`, gives the module. Its weights are the
    ones that the constructor draws with seed 0, or loads from the package (`pretrained`). With `live_zeros`,
    parameters that the constructor leaves at zero get small values, as training would give them: modules whose last
    layer starts at zero compute nothing otherwise. With `torchscript` the checkpoint is the ScriptModule itself.
    """

    name: str
    library: str
    source: str
    inputs: Mapping[str, Input]
    dims: Mapping[str, Dim] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    entry: str = "Model"
    pretrained: bool = False
    live_zeros: bool = False
    torchscript: bool = False
    safetensors: bool = False
    expected_refusal: str | None = None  # an error code, where no artifact can hold what the module does


def floats(*shape: int | str, range: Range | None = None) -> Input:
    """Return a float32 input."""
    return Input("float32", shape, range)


def image(*shape: int | str) -> Input:
    """Return a float32 input of pixels in [0, 1); `(3, 224, 224)` gets the dim `batch` in front."""
    return Input("float32", ("batch", *shape), IMAGE)


def ids(vocabulary: int, *shape: int | str, low: int = 0) -> Input:
    """Return an int64 input of indices into a table."""
    return Input("int64", shape, (low, vocabulary))


def mask(*shape: int | str) -> Input:
    """Return an int64 input of zeros and ones."""
    return Input("int64", shape, (0, 2))


def module(imports: str, make: str, signature: str, call: str) -> str:
    """Return the text of a `model.py` with a thin wrapper: `self.net` is `make`, and forward returns `call`."""
    return (
        f"{PREAMBLE}{imports}\n\n\nclass Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.net = {make}\n\n    def forward(self, {signature}):\n        return {call}\n"
    )


def function(imports: str, make: str) -> str:
    """Return the text of a `model.py` whose `build` returns the library's own module."""
    return f"{PREAMBLE}{imports}\n\n\ndef build():\n    return {make}\n"


def text(source: str) -> str:
    """Return a longer `model.py`, dedented, with torch imported."""
    return PREAMBLE + textwrap.dedent(source)
