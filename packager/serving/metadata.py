"""What a server says about itself and its models: metadata, configuration and statistics, as Triton has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from packager.common.installed_distributions import tool_version
from packager.serving.models import Model
from packager.serving.settings import Settings
from packager.serving.signature import TensorSpec

_EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


def describe_server(settings: Settings) -> dict[str, object]:
    """Return the server's metadata; its version names packager, whatever the server is called."""
    extensions = [*_EXTENSIONS, *(["system_shared_memory"] if settings.shared_memory else [])]
    return {"name": settings.server_name, "version": f"packager {tool_version('packager')}", "extensions": extensions}


def describe_model(model: Model, versions: Sequence[Model]) -> dict[str, object]:
    """Return the metadata of a model: its versions, lowest first, and its tensors with -1 for dynamic dims."""
    return {
        "name": model.name,
        "versions": [other.version for other in versions],
        "platform": model.platform,
        "inputs": [_describe_tensor(spec) for spec in model.signature.inputs.values()],
        "outputs": [_describe_tensor(spec) for spec in model.signature.outputs.values()],
    }


def _describe_tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.describe_shape()}


def describe_configuration(model: Model) -> dict[str, object]:
    """Return the model's configuration as Triton has it; dims lack the batch where requests can be joined."""
    batch_dim = model.signature.batch_dim
    largest = 0 if batch_dim is None else model.signature.dims[batch_dim].largest or 2**31 - 1
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": "onnxruntime" if model.platform == "onnxruntime_onnx" else "pytorch",
        "max_batch_size": largest,
        "input": [_configure_tensor(spec, has_batch=largest > 0) for spec in model.signature.inputs.values()],
        "output": [_configure_tensor(spec, has_batch=largest > 0) for spec in model.signature.outputs.values()],
    }


def _configure_tensor(spec: TensorSpec, *, has_batch: bool) -> dict[str, object]:
    datatype = {"BYTES": "STRING"}.get(spec.datatype, spec.datatype)
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": spec.describe_shape()[has_batch:]}


def describe_statistics(model: Model) -> Mapping[str, object]:
    """Return the statistics of a model, with durations in nanoseconds."""
    counts = model.statistics
    failed = counts.failures + counts.rejected + counts.timed_out + counts.invalid
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counts.last_inference // 1_000_000,
        "inference_count": counts.inferences,
        "execution_count": counts.executions,
        "inference_stats": {
            "success": _duration(counts.success, counts.success_ns),
            "fail": _duration(failed, counts.fail_ns),
            "queue": _duration(counts.success, counts.queue),
            "compute_input": _duration(counts.success, counts.compute_input),
            "compute_infer": _duration(counts.success, counts.compute_infer),
            "compute_output": _duration(counts.success, counts.compute_output),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(runs, joining),
                "compute_infer": _duration(runs, running),
                "compute_output": _duration(runs, splitting),
            }
            for size, (runs, joining, running, splitting) in sorted(counts.runs_by_size.items())
        ],
        "memory_usage": [],
    }


def _duration(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}
