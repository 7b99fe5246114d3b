"""The exported graph → the graph that ships: passes in order, each recorded. Needs onnx, not torch.

    clean      no paths, source lines or stack traces; outputs' shapes named as the manifest names them
    simplify   onnxsim: constants folded, redundant nodes gone
    fuse       onnxruntime.transformers: attention, layer normalization, Gelu as single operators
    optimize   onnxruntime's graph optimization at the level asked, saved

A pass is kept where it makes something better, judged by what is the same on every machine: fewer
nodes, or as many nodes and fewer bytes. It is dropped, and recorded as dropped, where it fails,
gives a graph that does not load, makes nothing better, or breaks parity. `extended` is the highest
level that may be saved: beyond it a graph holds layouts for the CPU it was optimized on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import onnxruntime

from packager.common import process_memory
from packager.common.sanitize import sanitize_message
from packager.export.graph import io
from packager.export.graph.messages import (
    NO_IMPROVEMENT,
    GraphSize,
    GraphSummary,
    OptimizeJob,
    OptimizeResult,
    StageRecord,
)
from packager.parity.diagnosis import localize
from packager.parity.diagnosis.onnx_activations import GraphModel
from packager.parity.numerics.verdict import ParityResult
from packager.runtime.check import check_onnx

# onnxsim makes a three-dimensional MatMul + Add into Reshape + Gemm + Reshape: more nodes, and no
# pattern that onnxruntime's fusions know (288 against 354 nodes on MiniLM).
_SKIPPED_OPTIMIZERS = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]
# Each of the fusions starts from one of these.
_FUSION_ANCHORS = frozenset(
    {"Softmax", "LayerNormalization", "ReduceMean", "Erf", "Tanh", "Gelu", "SkipLayerNormalization"}
)
_ORT_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


GraphPass = Callable[[onnx.ModelProto, OptimizeJob], onnx.ModelProto]


def run_passes(job: OptimizeJob, on_pass_start: Callable[[str], None]) -> OptimizeResult:
    """Run the passes and write the result to `job.target`; `began` hears of each pass as it starts."""
    on_pass_start("clean")
    model = io.load_graph(job.exported)
    refused = _find_signature_error(model, job)
    if refused:
        return OptimizeResult(GraphSize(0, 0), (), None, refused)
    _clean(model, job)
    before = GraphSize(count_nodes(model.graph), io.count_model_bytes(model))
    judgement = _check_graph(model, job)
    if judgement is not None and not judgement.passed:
        what = "is not proven" if judgement.loaded else "does not load"
        refused = f"the exported graph {what}: {judgement.reason}"
        return OptimizeResult(before, (), None, refused, failed_parity=judgement.loaded)
    stages = []
    passes = list(_iter_passes(job))
    for name, apply in passes:
        on_pass_start(name)
        # What comes of the last one ships, and is judged on all cases from the staged bundle: not here as well.
        prove = not (job.probe_only and name == passes[-1][0])
        model, stage = _try_pass(name, apply, model, job, prove=prove)
        stages.append(stage)
        process_memory.release_memory()
    on_pass_start("save")
    external = io.write_graph(model, job.exported.path.parent, job.output_path)
    return OptimizeResult(before, tuple(stages), _summarize(model, external), max_abs=_get_max_abs(judgement))


def _iter_passes(job: OptimizeJob) -> Iterator[tuple[str, GraphPass]]:
    if job.simplify:
        yield "simplify", _simplify
    if job.level == "extended":
        yield "fuse", _fuse
    if job.level != "none":
        yield "optimize", _optimize


def _try_pass(
    name: str, apply: GraphPass, model: onnx.ModelProto, job: OptimizeJob, *, prove: bool
) -> tuple[onnx.ModelProto, StageRecord]:
    before, before_bytes = count_nodes(model.graph), io.count_model_bytes(model)

    def stage(
        kept: bool,
        verdict: str,
        reason: str,
        nodes: int = before,
        size: int = before_bytes,
        judgement: ParityResult | None = None,
    ) -> StageRecord:
        return StageRecord(name, kept, verdict, reason, before, nodes, before_bytes, size, _get_max_abs(judgement))

    if name in job.skipped_passes:
        return model, stage(False, "not-checked", job.skipped_passes[name])
    try:
        found = apply(model, job)
    except Exception as error:  # noqa: BLE001 (a pass is foreign code; what it raises is recorded and the pass dropped)
        why = f"failed: {type(error).__name__}: {sanitize_message(str(error), job.exported.path.parent)}"
        return model, stage(False, "not-checked", why)
    broken = _find_signature_error(found, job)  # before the dims get their names
    _clean(found, job)
    nodes, size = count_nodes(found.graph), io.count_model_bytes(found)
    if broken:
        return model, stage(False, "fail", broken, nodes, size)
    if (nodes, size) >= (before, before_bytes):
        return model, stage(False, "not-checked", NO_IMPROVEMENT, nodes, size)
    judgement = _check_graph(found, job) if prove else None
    if judgement is not None and not judgement.passed:
        graph = GraphModel(model, job.exported.path.parent, job.providers)
        reason = f"{judgement.reason}; {localize.describe_broken_pass(graph, found, job.reference_cases)}"
        return model, stage(False, "fail", reason, nodes, size, judgement)
    return found, stage(True, "pass", "", nodes, size, judgement)


def _check_graph(model: onnx.ModelProto, job: OptimizeJob) -> ParityResult | None:
    """The graph as it is now on the cases of the job; None where there are none."""
    if not job.reference_cases:
        return None
    # Beside the weights that it refers to, which onnxruntime maps: nothing is copied for it.
    candidate = job.exported.path.with_name("candidate.onnx")
    candidate.write_bytes(model.SerializeToString())
    return check_onnx(candidate, job.reference_cases, job.providers, optimize=not job.probe_only)


def _get_max_abs(judgement: ParityResult | None) -> float | None:
    return None if judgement is None else max((one.max_abs for one in judgement.outputs.values()), default=None)


# -- the passes -----------------------------------------------------------------------------


def _simplify(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    """Onnxsim on the graph with its large weights out of sight, as inputs: it would copy them back and forth.

    What it folds is shapes and small constants; what needs large weights (batch normalization into
    a convolution) onnxruntime does afterwards, on weights that it maps.
    """
    import onnxsim

    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    large = [one for one in model.graph.initializer if one.external_data]
    _retain(slim.graph.initializer, lambda one: not one.external_data)
    slim.graph.input.extend(onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in large)
    simplified, _ = onnxsim.simplify(slim, skipped_optimizers=_SKIPPED_OPTIMIZERS, certify=False)
    found: onnx.ModelProto = simplified
    hidden = {one.name for one in large}
    _retain(found.graph.input, lambda one: one.name not in hidden)
    used = _collect_read_names(found.graph)
    found.graph.initializer.extend(one for one in large if one.name in used)
    return found


def _fuse(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    if not any(node.op_type in _FUSION_ANCHORS for node in model.graph.node):
        return model
    from onnxruntime.transformers import optimizer  # and with it sympy, where there is something to fuse

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rename_tanh_gelus(copy)
    folder = job.exported.path.parent
    onnx.load_external_data_for_model(copy, os.fspath(folder))
    # The BERT patterns are the general ones (attention, normalization, Gelu); zero heads: found in the graph.
    fused = optimizer.optimize_model(copy, model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
    found: onnx.ModelProto = fused.model
    if _count_contrib_nodes(found.graph) <= _count_contrib_nodes(model.graph):
        return model
    io.externalize_weights(found, folder / "fused.weights")
    return found


def _rename_tanh_gelus(model: onnx.ModelProto) -> None:
    """Gelu(approximate="tanh") → FastGelu: the fusion of a bias into Gelu does not look at the attribute.

    It makes BiasGelu of both, which is the exact one (onnxruntime 1.31, fusion_biasgelu.py).
    """
    found = [node for node in model.graph.node if node.op_type == "Gelu" and node.domain == "" and _is_tanh(node)]
    for node in found:
        node.op_type, node.domain = "FastGelu", "com.microsoft"
        del node.attribute[:]
    if found and all(one.domain != "com.microsoft" for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _is_tanh(node: onnx.NodeProto) -> bool:
    return any(one.name == "approximate" and one.s == b"tanh" for one in node.attribute)


def _optimize(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    source = job.exported.path.with_name("unoptimized.onnx")  # beside the weights that it refers to
    target = job.exported.path.with_name("optimized.onnx")
    source.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _ORT_LEVELS[job.level]
    options.optimized_model_filepath = os.fspath(target)
    options.log_severity_level = 3
    for key, value in (
        ("session.disable_prepacking", "1"),  # the session is not run
        ("session.optimized_model_external_initializers_file_name", "optimized.weights"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(io.INLINE_BYTES)),
    ):
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(os.fspath(source), options, providers=["CPUExecutionProvider"])
    return onnx.load(os.fspath(target), load_external_data=False)


# -- the graph ------------------------------------------------------------------------------


def _find_signature_error(model: onnx.ModelProto, job: OptimizeJob) -> str:
    """Why the exported graph has not the signature asked for; empty where it has."""
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    if [one.name for one in inputs] != list(job.inputs):
        gone = [name for name in job.inputs if name not in {one.name for one in inputs}]
        return f"the graph does not use {', '.join(gone)}" if gone else "the graph's inputs are in another order"
    if [one.name for one in model.graph.output] != list(job.outputs):
        return f"the graph's outputs are {', '.join(one.name for one in model.graph.output)}"
    for value in inputs:
        for wanted, found in zip(job.inputs[value.name], value.type.tensor_type.shape.dim, strict=True):
            if isinstance(wanted, str) and found.HasField("dim_value"):
                return f"the dim {wanted} of {value.name} became {found.dim_value}"
    return ""


def _clean(model: onnx.ModelProto, job: OptimizeJob) -> None:
    """Take out what says where and how the graph was made, and name the outputs' dims."""
    io.strip_metadata(model)
    model.graph.name = "model"
    for values, shapes in ((model.graph.input, job.inputs), (model.graph.output, job.outputs)):
        for value in values:
            _name_dims(value, shapes.get(value.name, ()))


def _name_dims(value: onnx.ValueInfoProto, shape: Sequence[str | int | None]) -> None:
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return
    for found, wanted in zip(dims, shape, strict=True):
        if isinstance(wanted, int):
            found.dim_value = wanted
        elif isinstance(wanted, str):
            found.dim_param = wanted


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes of a graph, those inside its subgraphs included; constants count as the weights they are."""
    total = 0
    for node in graph.node:
        total += node.op_type != "Constant"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                total += count_nodes(attribute.g)
            total += sum(count_nodes(one) for one in attribute.graphs)
    return total


def _count_contrib_nodes(graph: onnx.GraphProto) -> int:
    return sum(node.domain == "com.microsoft" for node in graph.node)


def _collect_read_names(graph: onnx.GraphProto) -> set[str]:
    """Every value that a node of the graph, or of a subgraph, reads."""
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                used |= _collect_read_names(inner)
    return used


def _retain(values: Any, wanted: Callable[[Any], bool]) -> None:
    """Keep the members of a repeated field that are wanted."""
    kept = [one for one in values if wanted(one)]
    del values[:]
    values.extend(kept)


def _summarize(model: onnx.ModelProto, external: bool) -> GraphSummary:
    versions = {one.domain: one.version for one in model.opset_import}
    used = {node.domain for node in model.graph.node}
    return GraphSummary(
        opset=versions.get("", versions.get("ai.onnx", 0)),
        ir_version=model.ir_version,
        domains={domain or "ai.onnx": version for domain, version in sorted(versions.items()) if domain in used},
        nodes=count_nodes(model.graph),
        external_data=external,
    )
