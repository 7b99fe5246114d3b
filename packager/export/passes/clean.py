"""Clean a graph: remove what tells where and how it was made, name its dims, and guard it against faulty kernels.

Requires: the graph has the inputs and outputs of the job (`check.find_signature_error`).
Ensures: the graph computes the same values; no doc string, metadata, inferred shape, path or source line is left; the
dims of inputs and outputs are the job's; onnxruntime leaves the padding of max pooling alone (`pad_fusion`), and sums
many elements one axis after the other (`large_reductions`).
Changes the model in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from packager.export.graph import io
from packager.export.graph.messages import OptimizeJob
from packager.export.passes.large_reductions import split_large_reductions
from packager.export.passes.pad_fusion import prevent_pad_fusion


def clean_graph(model: onnx.ModelProto, job: OptimizeJob) -> None:
    """Change a model in place: no metadata, the dims of the job, and nodes that onnxruntime computes as written."""
    split_large_reductions(model.graph)  # before the shapes are gone
    io.strip_metadata(model)
    model.graph.name = "model"
    for values, shapes in ((model.graph.input, job.inputs), (model.graph.output, job.outputs)):
        for value in values:
            _set_dims(value, shapes.get(value.name, ()))
    prevent_pad_fusion(model.graph)


def _set_dims(value: onnx.ValueInfoProto, shape: Sequence[str | int | None]) -> None:
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif isinstance(size, str):
            dim.dim_param = size
