"""Measure a MiniLM prediction with one engine, and print a JSON list: milliseconds at each of the three shapes."""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

warnings.filterwarnings("ignore")
THREADS = 2
SHAPES = ((1, 16), (1, 128), (8, 128))
PLAIN = Path("torch-export.onnx")


def main(engine: str, bundle: str) -> None:
    """Measure one engine, or export the plain torch.export graph if `engine` is `prepare`."""
    sys.path.insert(0, ".")
    if engine == "prepare":
        prepare()
        return
    run = (
        onnx(PLAIN if engine == "torch-export" else Path(bundle) / "model.onnx")
        if engine in ("shipped", "torch-export")
        else torch_engine(engine, bundle)
    )
    generator = np.random.default_rng(0)
    print(json.dumps([measure(run, generator.integers(0, 30522, shape)) for shape in SHAPES]))


def measure(run: Callable, ids: np.ndarray) -> float:
    """Return the median milliseconds of the predictions of one second (ten at least), after five to warm up."""
    mask = np.ones_like(ids)
    for _ in range(5):
        run(ids, mask)
    found = []
    began = time.perf_counter()
    while time.perf_counter() - began < 1.0 or len(found) < 10:
        start = time.perf_counter()
        run(ids, mask)
        found.append(time.perf_counter() - start)
    return statistics.median(found) * 1000


def onnx(path: Path) -> Callable:
    """Return a function that runs a model file with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})


def torch_engine(engine: str, bundle: str) -> Callable:
    """Return a function that runs the eager module, or the TorchScript of the bundle."""
    import torch

    torch.set_num_threads(THREADS)
    module = torch.jit.load(f"{bundle}/model.ts") if engine == "torchscript" else eager()

    def run(ids: np.ndarray, mask: np.ndarray) -> None:
        with torch.inference_mode():
            module(torch.from_numpy(ids), torch.from_numpy(mask))

    return run


def eager():
    """Return the module of the example with its weights."""
    from model import SentenceEncoder  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    module = SentenceEncoder()
    state = load_file("pretrained/model.safetensors")
    module.bert.load_state_dict({name: one for name, one in state.items() if "position_ids" not in name})
    return module.eval()


def prepare() -> None:
    """Save the graph that torch.onnx.export(dynamo=True) gives for the module."""
    import torch

    ids = torch.randint(0, 30522, (2, 16))
    batch, sequence = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("sequence", min=1, max=256)
    shapes = {0: batch, 1: sequence}
    torch.onnx.export(
        eager(), (ids, torch.ones_like(ids)), PLAIN, dynamo=True, dynamic_shapes=(shapes, shapes), opset_version=20,
        input_names=["input_ids", "attention_mask"], external_data=False, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
