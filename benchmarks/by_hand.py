"""Take the steps of packager with the libraries directly: export, onnxsim, trace and freeze, optimize, compare."""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import onnxsim  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def main(name: str, out: str) -> None:
    """Package the ResNet-50 in the working directory, and compare one batch."""
    sys.path.insert(0, ".")
    target = Path(out)
    target.mkdir(exist_ok=True)
    from model import ResNet50 as Module  # type: ignore[import-not-found]

    state = load_file("pretrained/model.safetensors")
    module = Module()
    module.net.load_state_dict(state)
    module.eval()
    names, inputs = ["pixel_values"], (torch.rand(2, 3, 224, 224),)
    export(module, names, inputs, {"pixel_values": {0: "batch"}}, target)


def export(module: torch.nn.Module, names: list[str], inputs: tuple, axes: dict, target: Path) -> None:
    """Take every step, one after the other, and write the artifacts to `target`."""
    with torch.no_grad():
        expected = module(*inputs).numpy()
        torch.onnx.export(
            module, inputs, target / "raw.onnx", dynamo=False, input_names=names, output_names=["output"],
            dynamic_axes=axes, opset_version=20,
        )  # fmt: skip
        frozen = torch.jit.freeze(torch.jit.trace(module, inputs))
        torch.jit.save(frozen, target / "model.ts")
    simplified, _ = onnxsim.simplify(onnx.load(target / "raw.onnx"))
    onnx.save(simplified, target / "simplified.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target / "model.onnx")
    onnxruntime.InferenceSession(str(target / "simplified.onnx"), options)
    session = onnxruntime.InferenceSession(str(target / "model.onnx"))
    actual = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(torch.jit.load(target / "model.ts")(*inputs).numpy(), expected, rtol=1e-3, atol=1e-4)


def minilm(out: str) -> None:
    """Package the MiniLM in the working directory, and compare one batch."""
    sys.path.insert(0, ".")
    target = Path(out)
    target.mkdir(exist_ok=True)
    from model import SentenceEncoder  # type: ignore[import-not-found]

    module = SentenceEncoder()
    state = {name: one for name, one in load_file("pretrained/model.safetensors").items() if "position_ids" not in name}
    module.bert.load_state_dict(state)
    module.eval()
    ids = torch.randint(0, 30522, (2, 16))
    axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    export(module, list(axes), (ids, torch.ones_like(ids)), axes, target)


if __name__ == "__main__":
    minilm(sys.argv[2]) if sys.argv[1] == "minilm" else main(*sys.argv[1:])
