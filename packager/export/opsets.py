"""Check `export.opset` before anything is exported: the runtime must load it, and the exporter must write it."""

from __future__ import annotations

import onnx
from torch.onnx import _constants as torch_limits

from packager.common.ort import onnxruntime
from packager.errors import ManifestInvalid, Problem
from packager.project.manifest import Project

_LEAST_OPSET, _IR_VERSION = 13, 10


def check_opset(project: Project) -> None:
    """Refuse an opset that does not exist, or is beyond onnxruntime or the exporter. Raises `ManifestInvalid`."""
    export = project.manifest.export
    limit = torch_limits.ONNX_MAX_OPSET
    if not _is_supported(export.opset):
        problem = f"onnxruntime {onnxruntime.__version__} has no ONNX opset {export.opset}"
        largest = next(opset for opset in range(onnx.defs.onnx_opset_version(), 0, -1) if _is_supported(opset))
        hint = f"use one of {_LEAST_OPSET} to {largest}"
    elif export.exporter == "torchscript" and export.opset > limit:
        problem = f"the TorchScript exporter cannot write ONNX opset {export.opset}"
        hint = f"use one of {_LEAST_OPSET} to {limit}, or export.exporter: torch-export"
    else:
        return
    raise ManifestInvalid(str(project.path), [Problem(problem, project.field_location("export", "opset"), hint)])


def _is_supported(opset: int) -> bool:
    """Tell whether onnxruntime loads a graph of this opset: the latest one of onnx may not be released yet."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "opset", [value], [output])
    model = onnx.helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", opset)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: does not load)
        return False
    return True
