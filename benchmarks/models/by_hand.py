"""Take the steps of packager with the libraries directly, on any project of the zoo.

    python -m benchmarks.models.by_hand FOLDER OUT

The steps: export with torch.onnx's TorchScript exporter, onnxsim, onnxruntime's extended optimization; trace, freeze,
save; one comparison. Each step that fails is named in the JSON object that is printed, and those that do not need its
result are taken all the same.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import onnxsim  # noqa: E402
import torch  # noqa: E402

from benchmarks.models import eager  # noqa: E402

EXAMPLE_SIZE = 16  # of a named dim other than the batch, if its limits allow it
EXAMPLE_BATCH = 2


def main(folder: Path, out: Path) -> None:
    """Take every step, and print the outcome of each: "ok", or the reason why it failed."""
    out.mkdir(parents=True, exist_ok=True)
    manifest = eager.read_manifest(folder)
    module = eager.load_module(folder)
    inputs = example(manifest)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in eager.flatten(module(*inputs))]
    outcomes = {}
    for name, step in (
        ("export", lambda: export(module, inputs, manifest, out)),
        ("simplify", lambda: simplify(out)),
        ("optimize", lambda: optimize(out)),
        ("trace", lambda: trace(module, inputs, out)),
        ("compare onnx", lambda: compare_onnx(manifest, inputs, expected, out)),
        ("compare torchscript", lambda: compare_torchscript(inputs, expected, out)),
    ):
        try:
            step()
            outcomes[name] = "ok"
        except Exception as error:  # noqa: BLE001 (the outcome of the step)
            outcomes[name] = f"{type(error).__name__}: {error}"[:600]
    print(json.dumps(outcomes))


def example(manifest: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Return one random input for each of the manifest's, of usual sizes."""
    torch.manual_seed(2)
    tensors = []
    for spec in manifest["inputs"].values():
        shape = [example_size(dim, manifest.get("dims", {}).get(dim, {})) for dim in spec["shape"]]
        dtype = getattr(torch, spec["dtype"])
        low, high = spec.get("range") or (0, 2)
        if dtype == torch.bool or not dtype.is_floating_point:
            tensors.append(torch.randint(int(low), int(high), shape).to(dtype))
        elif spec.get("range"):
            tensors.append((low + (high - low) * torch.rand(shape)).to(dtype))
        else:
            tensors.append(torch.randn(shape).to(dtype))
    return tuple(tensors)


def example_size(dim: int | str, limits: dict[str, int]) -> int:
    """Return a usual size of a dim."""
    if isinstance(dim, int):
        return dim
    usual = EXAMPLE_BATCH if dim == "batch" else EXAMPLE_SIZE
    return min(max(usual, limits.get("min", 1)), limits.get("max") or usual * 1_000_000)


def export(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], manifest: dict[str, Any], out: Path) -> None:
    """Write raw.onnx."""
    axes = {
        name: {axis: dim for axis, dim in enumerate(spec["shape"]) if isinstance(dim, str)}
        for name, spec in manifest["inputs"].items()
    }
    with torch.no_grad():
        torch.onnx.export(
            module, inputs, out / "raw.onnx", dynamo=False, input_names=list(axes), dynamic_axes=axes, opset_version=20
        )


def simplify(out: Path) -> None:
    """Write simplified.onnx."""
    simplified, _ = onnxsim.simplify(onnx.load(out / "raw.onnx"))
    onnx.save(simplified, out / "simplified.onnx")


def optimize(out: Path) -> None:
    """Write model.onnx."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out / "model.onnx")
    onnxruntime.InferenceSession(str(out / "simplified.onnx"), options)


def trace(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out: Path) -> None:
    """Write model.ts."""
    with torch.no_grad():
        traced = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.trace(module, inputs)
        torch.jit.save(torch.jit.freeze(traced), out / "model.ts")


def compare_onnx(
    manifest: dict[str, Any], inputs: tuple[torch.Tensor, ...], expected: list[np.ndarray[Any, Any]], out: Path
) -> None:
    """Compare model.onnx with the eager outputs."""
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    names = {spec.name for spec in session.get_inputs()}
    feed = {name: tensor.numpy() for name, tensor in zip(manifest["inputs"], inputs, strict=True) if name in names}
    for actual, wanted in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-4)


def compare_torchscript(inputs: tuple[torch.Tensor, ...], expected: list[np.ndarray[Any, Any]], out: Path) -> None:
    """Compare model.ts with the eager outputs."""
    with torch.no_grad():
        outputs = eager.flatten(torch.jit.load(out / "model.ts")(*inputs))
    for actual, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(actual.numpy(), wanted, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
