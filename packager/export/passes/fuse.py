"""Fuse attention, layer normalization and Gelu into single operators with onnxruntime.transformers.

Requires: references to weights start in the folder of the exported graph.
Ensures: the graph computes the same values up to rounding, with more operators of the domain com.microsoft than
before; the large weights that a fusion made refer to the file fused.weights. If nothing was fused, returns the given
model itself, which is never changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import onnx

from packager.export.graph import io
from packager.export.graph.messages import OptimizeJob

_CONTRIB_DOMAIN = "com.microsoft"
# Each of the fusions starts from one of these.
_ANCHORS = frozenset({"Softmax", "LayerNormalization", "ReduceMean", "Erf", "Tanh", "Gelu", "SkipLayerNormalization"})


def fuse_operators(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    """Return the fused model, or the given one if nothing can be fused. Raises whatever onnxruntime raises."""
    if not any(node.op_type in _ANCHORS for node in model.graph.node):
        return model
    from packager.common.ort import onnxruntime  # noqa: F401  # before the next import: without telemetry
    from onnxruntime.transformers import optimizer  # isort: skip  # imports sympy, which few graphs need

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rename_tanh_gelus(copy)
    folder = job.exported.path.parent
    # Otherwise the first fusion puts them into the graph, which every inference of shapes then copies several times.
    io.transpose_weights(copy, folder, folder / "transposed.weights")
    with _working_directory(folder):  # where onnx looks for the few weights whose values a fusion reads
        # The BERT patterns are the general ones (attention, normalization, Gelu); zero heads: read from the graph.
        optimized = optimizer.optimize_model(copy, model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
    fused: onnx.ModelProto = optimized.model
    if _count_contrib_nodes(fused) <= _count_contrib_nodes(model):
        return model
    io.externalize_weights(fused, folder / "fused.weights")
    return fused


@contextlib.contextmanager
def _working_directory(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _rename_tanh_gelus(model: onnx.ModelProto) -> None:
    """Turn Gelu(approximate="tanh") into FastGelu: the fusion of a bias into Gelu does not look at the attribute.

    It makes BiasGelu, which is the exact one, of both (onnxruntime 1.31, fusion_biasgelu.py).
    """
    gelus = [node for node in model.graph.node if node.op_type == "Gelu" and node.domain == "" and _is_tanh(node)]
    for node in gelus:
        node.op_type, node.domain = "FastGelu", _CONTRIB_DOMAIN
        del node.attribute[:]
    if gelus and all(opset.domain != _CONTRIB_DOMAIN for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_CONTRIB_DOMAIN, 1))


def _is_tanh(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "approximate" and attribute.s == b"tanh" for attribute in node.attribute)


def _count_contrib_nodes(model: onnx.ModelProto) -> int:
    return sum(node.domain == _CONTRIB_DOMAIN for node in model.graph.node)
