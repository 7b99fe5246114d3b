"""Optimize a graph with onnxruntime's own graph optimizer, and save what it makes.

Requires: references to weights start in the folder of the exported graph, and the job's level is basic or extended.
Ensures: the graph computes the same values up to rounding on any CPU; its large weights refer to files in that folder.
Returns a new model and leaves the given one as it is.

`extended` is the highest level whose graph may be saved: beyond it, a graph contains memory layouts for the CPU that
it was optimized on.
"""

from __future__ import annotations

import os

import onnx

from packager.common.ort import onnxruntime
from packager.export.graph import io
from packager.export.graph.messages import OptimizeJob

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def optimize_graph(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    """Return the optimized model. Raises what onnxruntime raises for a graph that it cannot load."""
    source = job.exported.path.with_name("unoptimized.onnx")  # beside the weights that it refers to
    target = job.exported.path.with_name("optimized.onnx")
    source.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[job.level]
    options.optimized_model_filepath = os.fspath(target)
    options.log_severity_level = 3
    for key, value in (
        ("session.disable_prepacking", "1"),  # the session is never run
        ("session.optimized_model_external_initializers_file_name", "optimized.weights"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(io.INLINE_BYTES)),
    ):
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(os.fspath(source), options, providers=["CPUExecutionProvider"])
    return onnx.load(os.fspath(target), load_external_data=False)
