"""Clean a graph: remove what tells where and how it was made, and name its dims as the manifest does.

Requires: the graph has the inputs and outputs of the job (`check.find_signature_error`).
Ensures: the same nodes and weights compute the same values; no doc string, metadata, inferred shape, path or source
line is left; the dims of inputs and outputs are the job's. Changes the model in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from packager.export.graph import io
from packager.export.graph.messages import OptimizeJob


def clean_graph(model: onnx.ModelProto, job: OptimizeJob) -> None:
    """Strip the metadata of a model in place, and give its inputs and outputs the dims of the job."""
    io.strip_metadata(model)
    model.graph.name = "model"
    for values, shapes in ((model.graph.input, job.inputs), (model.graph.output, job.outputs)):
        for value in values:
            _set_dims(value, shapes.get(value.name, ()))


def _set_dims(value: onnx.ValueInfoProto, shape: Sequence[str | int | None]) -> None:
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif isinstance(size, str):
            dim.dim_param = size
