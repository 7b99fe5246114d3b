"""Run the passes over an exported graph, in order, and write the graph that ships. Needs onnx, not torch.

    clean      strip metadata, name the dims
    simplify   onnxsim: fold constants, drop redundant nodes
    fuse       onnxruntime.transformers: attention, layer normalization, Gelu as single operators
    optimize   onnxruntime's graph optimization at the level asked for

Each of the last three is recorded, and kept only if it improves the graph by a measure that is the same on every
machine: fewer nodes, or as many nodes and fewer bytes. It is dropped if it raises, yields a graph that does not load
or has a different signature, improves nothing, or breaks parity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import onnx

from packager.common import process_memory
from packager.common.sanitize import sanitize_message
from packager.export.graph import io, walk
from packager.export.graph.messages import (
    NO_IMPROVEMENT,
    SESSION_STEP,
    GraphSize,
    GraphSummary,
    OptimizeJob,
    OptimizeResult,
    StageRecord,
)
from packager.export.passes import check, clean, fuse, optimize, simplify
from packager.parity.diagnosis import localize
from packager.parity.diagnosis.onnx_activations import GraphModel
from packager.runtime.check import open_onnx_session

GraphPass = Callable[[onnx.ModelProto, OptimizeJob], onnx.ModelProto]
"""Take a model and leave it as it is; return an equivalent one, or the same if there is nothing to do."""

PASSES: Mapping[str, GraphPass] = {
    "simplify": simplify.simplify_graph,
    "fuse": fuse.fuse_operators,
    "optimize": optimize.optimize_graph,
}


def run_passes(
    job: OptimizeJob, on_pass_start: Callable[[str], None], passes: Mapping[str, GraphPass] = PASSES
) -> OptimizeResult:
    """Run those of the passes that the job asks for, and write the result to its `output_path`.

    `on_pass_start` is called with the name of each step as it begins: clean, the passes, save, and onnxruntime, which
    opens a graph in float16 here before the build does. Raises OSError, and what onnx raises for a file that it cannot
    read.
    """
    on_pass_start("clean")
    model = io.load_graph(job.exported)
    signature_error = check.find_signature_error(model, job)
    if signature_error:
        return OptimizeResult(GraphSize(0, 0), (), None, signature_error)
    clean.clean_graph(model, job)
    before = _measure_size(model)
    parity = check.check_graph(model, job)
    if parity is not None and not parity.passed:
        failure = "is not proven" if parity.loaded else "does not load"
        reason = f"the exported graph {failure}: {parity.reason}"
        return OptimizeResult(before, (), None, reason, failed_parity=parity.loaded, failed_cases=parity.failed_cases)
    records = []
    names = [name for name in passes if _is_requested(name, job)]
    for name in names:
        on_pass_start(name)
        # The graph that the last pass yields is the one that ships, and that is checked on all cases later.
        unchecked = job.probe_only and name == names[-1]
        model, record = _try_pass(name, passes[name], model, replace(job, reference_cases=()) if unchecked else job)
        records.append(record)
        process_memory.release_memory()
    on_pass_start("save")
    external = io.write_graph(model, job.exported.path.parent, job.output_path)
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        on_pass_start(SESSION_STEP)  # 1.31 crashes on some of them, which must not end the build
        open_onnx_session(job.output_path, job.providers)
    return OptimizeResult(before, tuple(records), _summarize(model, external), max_abs=check.get_max_abs(parity))


def _is_requested(name: str, job: OptimizeJob) -> bool:
    return {"simplify": job.simplify, "fuse": job.level == "extended", "optimize": job.level != "none"}[name]


def _try_pass(
    name: str, apply: GraphPass, model: onnx.ModelProto, job: OptimizeJob
) -> tuple[onnx.ModelProto, StageRecord]:
    """Apply one pass and decide whether to keep it; return the graph to go on with, and the record of the pass."""
    before, folder = _measure_size(model), job.exported.path.parent
    record = StageRecord(name, False, "not-checked", "", before.nodes, before.nodes, before.bytes, before.bytes, None)
    if name in job.skipped_passes:
        return model, replace(record, reason=job.skipped_passes[name])
    try:
        candidate = apply(model, job)
    except Exception as error:  # noqa: BLE001 (a pass is foreign code; what it raises is recorded and the pass dropped)
        reason = f"failed: {type(error).__name__}: {sanitize_message(str(error), folder)}"
        return model, replace(record, reason=reason)
    signature_error = check.find_signature_error(candidate, job)  # before the dims get their names
    clean.clean_graph(candidate, job)
    after = _measure_size(candidate)
    record = replace(record, nodes_after=after.nodes, bytes_after=after.bytes)
    if signature_error:
        return model, replace(record, verdict="fail", reason=signature_error)
    if (after.nodes, after.bytes) >= (before.nodes, before.bytes):
        return model, replace(record, reason=NO_IMPROVEMENT)
    parity = check.check_graph(candidate, job)
    record = replace(record, max_abs=check.get_max_abs(parity))
    if parity is not None and not parity.passed:
        fault = localize.describe_broken_pass(GraphModel(model, folder, job.providers), candidate, job.reference_cases)
        return model, replace(record, verdict="fail", reason=f"{parity.reason}; {fault}")
    return candidate, replace(record, kept=True, verdict="pass")


def _measure_size(model: onnx.ModelProto) -> GraphSize:
    return GraphSize(walk.count_nodes(model.graph), io.count_model_bytes(model))


def _summarize(model: onnx.ModelProto, external: bool) -> GraphSummary:
    versions = {opset.domain: opset.version for opset in model.opset_import}
    domains = {node.domain for node in model.graph.node}
    return GraphSummary(
        opset=versions.get("", versions.get("ai.onnx", 0)),
        ir_version=model.ir_version,
        domains={domain or "ai.onnx": version for domain, version in sorted(versions.items()) if domain in domains},
        nodes=walk.count_nodes(model.graph),
        external_data=external,
    )
