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
from pathlib import Path

import onnx
import onnxruntime

from packager.jobs import GraphFacts, Optimized, OptimizeJob, Stage
from packager.parity.gate import Expectation, Judgement, judge
from packager.runtime.onnx_backend import OnnxBackend

EXTERNAL_DATA_BYTES = 1 << 30
"""Weights beyond this go into a file beside the model, which a loader can map (onnxruntime#23775)."""

# onnxsim makes a three-dimensional MatMul + Add into Reshape + Gemm + Reshape: more nodes, and no
# pattern that onnxruntime's fusions know (288 against 354 nodes on MiniLM).
_SKIPPED_OPTIMIZERS = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]
# Each of the fusions starts from one of these.
_FUSIBLE = frozenset({"Softmax", "LayerNormalization", "ReduceMean", "Erf", "Tanh", "Gelu", "SkipLayerNormalization"})
_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


Pass = Callable[[onnx.ModelProto, OptimizeJob], onnx.ModelProto]


def optimize(job: OptimizeJob, began: Callable[[str], None]) -> Optimized:
    """Run the passes and write the result to `job.target`; `began` hears of each pass as it starts."""
    began("clean")
    model = onnx.load(os.fspath(job.raw))
    refused = _baked(model, job)
    if refused:
        return Optimized((), None, refused)
    _clean(model, job)
    if job.expectations is not None:
        judgement = _prove(model, job)
        if not judgement.passed:
            return Optimized((), None, f"the exported graph is not proven: {judgement.reason}")
    stages = []
    for name, apply in _passes(job):
        began(name)
        model, stage = _attempt(name, apply, model, job)
        stages.append(stage)
    began("save")
    external = _save(model, job.target)
    return Optimized(tuple(stages), _facts(model, external))


def _passes(job: OptimizeJob) -> Iterator[tuple[str, Pass]]:
    if job.simplify:
        yield "simplify", _simplify
    if job.level == "extended":
        yield "fuse", _fuse
    if job.level != "none":
        yield "optimize", _optimize


def _attempt(name: str, apply: Pass, model: onnx.ModelProto, job: OptimizeJob) -> tuple[onnx.ModelProto, Stage]:
    before, before_bytes = count_nodes(model.graph), model.ByteSize()

    def stage(kept: bool, verdict: str, reason: str, nodes: int = before, size: int = before_bytes) -> Stage:
        return Stage(name, kept, verdict, reason, before, nodes, before_bytes, size)

    if name in job.skip:
        return model, stage(False, "not-checked", job.skip[name])
    try:
        found = apply(model, job)
    except Exception as error:  # noqa: BLE001 (a pass is foreign code; what it raises is recorded and the pass dropped)
        return model, stage(False, "not-checked", f"failed: {type(error).__name__}: {str(error)[:200]}")
    _clean(found, job)
    nodes, size = count_nodes(found.graph), found.ByteSize()
    broken = _baked(found, job)
    if broken:
        return model, stage(False, "fail", broken, nodes, size)
    if (nodes, size) >= (before, before_bytes):
        return model, stage(False, "not-checked", "makes nothing better", nodes, size)
    if job.expectations is not None:
        judgement = _prove(found, job)
        if not judgement.passed:
            return model, stage(False, "fail", judgement.reason, nodes, size)
    return found, stage(True, "pass", "", nodes, size)


def _prove(model: onnx.ModelProto, job: OptimizeJob) -> Judgement:
    candidate = job.target.with_name(job.target.name + ".candidate")
    external = _save(model, candidate)
    try:
        return judge_file(candidate, job.expectations or (), job.providers)
    finally:
        candidate.unlink()
        if external:
            candidate.with_name(candidate.name + ".data").unlink()


def judge_file(path: Path, expectations: Sequence[Expectation], providers: Sequence[str]) -> Judgement:
    """Run a model file on every case, under the options that the loader uses; one that does not run fails."""
    try:
        backend = OnnxBackend(path, providers=providers, threads=None)
        return judge(backend.run, expectations)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: not proven)
        return Judgement(False, f"onnxruntime: {str(error).strip().splitlines()[0][:300]}", {}, None)


# -- the passes -----------------------------------------------------------------------------


def _simplify(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    import onnxsim

    simplified, _ = onnxsim.simplify(model, skipped_optimizers=_SKIPPED_OPTIMIZERS, certify=False)
    found: onnx.ModelProto = simplified
    return found


def _fuse(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    from onnxruntime.transformers import optimizer

    if not any(node.op_type in _FUSIBLE for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # The BERT patterns are the general ones (attention, normalization, Gelu); zero heads: found in the graph.
    fused = optimizer.optimize_model(copy, model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
    found: onnx.ModelProto = fused.model
    if _contrib_nodes(found.graph) <= _contrib_nodes(model.graph):
        return model
    return found


def _optimize(model: onnx.ModelProto, job: OptimizeJob) -> onnx.ModelProto:
    source = job.target.with_name(job.target.name + ".unoptimized")
    target = job.target.with_name(job.target.name + ".optimized")
    external = _save(model, source)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[job.level]
    options.optimized_model_filepath = os.fspath(target)
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")  # the session is not run
    if external:
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", target.name + ".data"
        )
    try:
        onnxruntime.InferenceSession(os.fspath(source), options, providers=["CPUExecutionProvider"])
        return onnx.load(os.fspath(target))
    finally:
        for one in (source, target):
            one.unlink(missing_ok=True)
            one.with_name(one.name + ".data").unlink(missing_ok=True)


# -- the graph ------------------------------------------------------------------------------


def _baked(model: onnx.ModelProto, job: OptimizeJob) -> str:
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
            if isinstance(wanted, str) and not found.dim_param:
                return f"the dim {wanted} of {value.name} became {found.dim_value}"
    return ""


def _clean(model: onnx.ModelProto, job: OptimizeJob) -> None:
    """Take out what says where and how the graph was made, and name the outputs' dims."""
    model.doc_string = ""
    model.producer_name, model.producer_version = "packager", ""
    model.domain, model.model_version = "", 0
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _clean_nodes(function.node)
    _clean_graph(model.graph)
    model.graph.name = "model"
    for values, shapes in ((model.graph.input, job.inputs), (model.graph.output, job.outputs)):
        for value in values:
            _name_dims(value, shapes.get(value.name, ()))


def _clean_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # inferred again by whoever loads it; exporters' guesses have been wrong
    del graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for constant in graph.initializer:
        constant.doc_string = ""
        del constant.metadata_props[:]
    _clean_nodes(graph.node)


def _clean_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _clean_graph(attribute.g)
            for graph in attribute.graphs:
                _clean_graph(graph)


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


def _contrib_nodes(graph: onnx.GraphProto) -> int:
    return sum(node.domain == "com.microsoft" for node in graph.node)


def _save(model: onnx.ModelProto, path: Path) -> bool:
    """Write the model; with weights beyond `EXTERNAL_DATA_BYTES`, into `path`.data. Returns whether so."""
    external = sum(len(one.raw_data) for one in model.graph.initializer) > EXTERNAL_DATA_BYTES
    if external:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, os.fspath(path), save_as_external_data=True, location=path.name + ".data")
    else:
        path.write_bytes(model.SerializeToString())
    return external


def _facts(model: onnx.ModelProto, external: bool) -> GraphFacts:
    versions = {one.domain: one.version for one in model.opset_import}
    used = {node.domain for node in model.graph.node}
    return GraphFacts(
        opset=versions.get("", versions.get("ai.onnx", 0)),
        ir_version=model.ir_version,
        domains={domain or "ai.onnx": version for domain, version in sorted(versions.items()) if domain in used},
        nodes=count_nodes(model.graph),
        external_data=external,
    )
