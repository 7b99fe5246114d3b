"""Check a graph between passes: its signature against the job's, and its outputs against PyTorch's."""

from __future__ import annotations

import onnx

from packager.export.graph import io
from packager.export.graph.messages import OptimizeJob
from packager.parity.numerics.verdict import ParityResult
from packager.runtime.check import check_onnx

_LARGE_BYTES = 1 << 26
"""The weights that a larger graph transposes are transposed beforehand: onnxruntime holds all of them while it runs."""


def find_signature_error(model: onnx.ModelProto, job: OptimizeJob) -> str:
    """Say in which way a graph's inputs, outputs or dynamic dims differ from the job's; empty if they do not.

    Run it before `clean.clean_graph`, which names the dims.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    names = [value.name for value in inputs]
    if names != list(job.inputs):
        unused = [name for name in job.inputs if name not in names]
        return f"the graph does not use {', '.join(unused)}" if unused else "the order of the graph's inputs differs"
    outputs = [value.name for value in model.graph.output]
    if outputs != list(job.outputs):
        return f"the graph's outputs are {', '.join(outputs)}"
    for value in inputs:
        for size, dim in zip(job.inputs[value.name], value.type.tensor_type.shape.dim, strict=True):
            if isinstance(size, str) and dim.HasField("dim_value"):
                return f"the dim {size} of {value.name} became {dim.dim_value}"
    return ""


def check_graph(model: onnx.ModelProto, job: OptimizeJob) -> ParityResult | None:
    """Run a graph on the reference cases of the job and compare its outputs; return None if there are no cases."""
    if not job.reference_cases:
        return None
    # Beside the weights that it refers to, so that onnxruntime maps them and nothing is copied.
    path = job.exported.path.with_name("candidate.onnx")
    if io.count_model_bytes(model) > _LARGE_BYTES:
        candidate = onnx.ModelProto()
        candidate.CopyFrom(model)
        io.transpose_weights(candidate, path.parent, path.with_name("candidate.weights"))
        model = candidate
    path.write_bytes(model.SerializeToString())
    return check_onnx(path, job.reference_cases, job.providers, optimize=not job.probe_only)


def get_max_abs(parity: ParityResult | None) -> float | None:
    """Return the largest absolute error over all outputs, or None if none was compared."""
    return max((errors.max_abs for errors in parity.outputs.values()), default=None) if parity else None
