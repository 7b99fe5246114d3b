"""The signature of a served model: the tensors of config.json in the protocol's terms, and the dim that is the batch.

Requests are joined along the batch dim, the named dim that comes first in every input and output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packager.runtime.row_independence import find_leading_dim
from packager.serving.messages import Rejected

_DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: `datatype` as in the protocol, `wire` and `dtype` as numpy's.

    `wire` is the dtype of its bytes in a request, `dtype` the one that the bundle takes; for bfloat16, they are uint16
    and float32.
    """

    name: str
    datatype: str
    wire: np.dtype[Any]
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def describe_shape(self) -> list[int]:
        """Return the shape as the protocol has it: -1 for a dynamic dim."""
        return [dim if isinstance(dim, int) else -1 for dim in self.shape]


@dataclass(frozen=True, slots=True)
class DimLimits:
    """The sizes that a named dim may have; without `largest` there is no upper limit."""

    smallest: int
    largest: int | None


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model, by name and in order, with the limits of its named dims."""

    model: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    dims: Mapping[str, DimLimits]
    batch_dim: str | None

    def check_shape(self, spec: TensorSpec, shape: Sequence[int], sizes: dict[str, int]) -> None:
        """Check the shape of an input; `sizes` collects the named dims of one request. Raises `Rejected`, 400."""
        if len(shape) != len(spec.shape):
            raise self._unexpected_shape(spec, shape)
        for dim, size in zip(spec.shape, shape, strict=True):
            if dim.__class__ is int:
                if dim != size:
                    raise self._unexpected_shape(spec, shape)
            elif sizes.setdefault(dim, size) != size:  # type: ignore[arg-type]  # an input has no unknown dims
                message = f"{dim} is {size} in input '{spec.name}' and {sizes[str(dim)]} in a different input"
                raise Rejected(400, f"{message} for model '{self.model}'")
            else:
                limits = self.dims[dim]  # type: ignore[index]  # likewise
                if size < limits.smallest or (limits.largest is not None and size > limits.largest):
                    at_most = "" if limits.largest is None else f" and at most {limits.largest}"
                    message = f"{dim} is {size} in input '{spec.name}'"
                    message = f"{message}, and must be at least {limits.smallest}{at_most} for model '{self.model}'"
                    raise Rejected(400, message)

    def _unexpected_shape(self, spec: TensorSpec, shape: Sequence[int]) -> Rejected:
        expected, actual = (",".join(map(str, dims)) for dims in (spec.describe_shape(), shape))
        message = f"unexpected shape for input '{spec.name}' for model '{self.model}'"
        return Rejected(400, f"{message}. Expected [{expected}], got [{actual}]")


def read_signature(config: Mapping[str, Any]) -> Signature:
    """Read the signature from the content of config.json."""
    inputs = {spec.name: spec for spec in map(_read_tensor, config["inputs"])}
    outputs = {spec.name: spec for spec in map(_read_tensor, config["outputs"])}
    dims = {name: DimLimits(dim["min"], dim["max"]) for name, dim in config["dims"].items()}
    return Signature(config["name"], inputs, outputs, dims, find_leading_dim(config))


def _read_tensor(tensor: Mapping[str, Any]) -> TensorSpec:
    name, is_bfloat16 = tensor["dtype"], tensor["dtype"] == "bfloat16"
    wire = np.dtype("uint16" if is_bfloat16 else name).newbyteorder("<")
    dtype = np.dtype("float32" if is_bfloat16 else name)
    return TensorSpec(tensor["name"], _DATATYPES[name], wire, dtype, tuple(tensor["shape"]))
