"""Simplify a graph with onnxsim: fold constants and shape computations, drop redundant nodes.

Requires: every large weight is an initializer that refers to a file (`io.load_graph`).
Ensures: the graph computes the same values; large weights still refer to their files, those that no node reads are
gone. Returns a new model and leaves the given one as it is.

onnxsim would copy large weights back and forth, so they are hidden from it as inputs. It folds shapes and small
constants; what needs large weights (batch normalization into a convolution), onnxruntime does afterwards, on weights
that it maps.
"""

from __future__ import annotations

import onnx

from packager.export.graph import io, walk
from packager.export.graph.messages import OptimizeJob

# onnxsim turns a three-dimensional MatMul + Add into Reshape + Gemm + Reshape: more nodes, in a pattern that
# onnxruntime's fusions do not match (288 against 354 nodes on MiniLM).
_SKIPPED_OPTIMIZERS = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]


def simplify_graph(model: onnx.ModelProto, _job: OptimizeJob) -> onnx.ModelProto:
    """Return the simplified model. Raises whatever onnxsim raises."""
    import onnxsim

    hidden = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
    visible = io.copy_without_external(model)
    visible.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims) for name, tensor in hidden.items()
    )
    simplified: onnx.ModelProto = onnxsim.simplify(visible, skipped_optimizers=_SKIPPED_OPTIMIZERS, certify=False)[0]
    inputs = [value for value in simplified.graph.input if value.name not in hidden]
    del simplified.graph.input[:]
    simplified.graph.input.extend(inputs)
    reads = set(walk.list_graph_reads(simplified.graph))
    simplified.graph.initializer.extend(tensor for name, tensor in hidden.items() if name in reads)
    return simplified
