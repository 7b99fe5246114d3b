"""Draw docs/parity.svg: how far the ONNX graph of a bundle is from PyTorch, element by element, in noise floors.

    python benchmarks/parity_picture.py BUNDLE

For comparison, it shows the same graph with one tensor 0.1 % too large. The test cases are the bundle's own evidence.
Needs matplotlib (pip install matplotlib) and onnx.
"""

import json
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import onnx
from onnx import numpy_helper

from packager.bundle.evidence import read_reference_cases
from packager.parity.numerics.tolerances import NOISE_MULTIPLE
from packager.runtime.onnx_backend import OnnxBackend

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "packager"
import matplotlib.pyplot as plt  # noqa: E402 (after the backend is chosen)

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "parity.svg"


def in_floors(bundle, run):
    """Return the error of every float element in noise floors, as one array; the limit is NOISE_MULTIPLE of them."""
    found = []
    for case in read_reference_cases(bundle):
        actual = run(case.inputs)
        for name, expected in case.outputs.items():
            if expected.dtype.kind == "f":
                limit = case.tolerances[name].atol + case.tolerances[name].rtol * np.abs(expected.astype(np.float64))
                distance = np.abs(actual[name].astype(np.float64) - expected)
                found.append((NOISE_MULTIPLE * distance / limit).reshape(-1))
    return np.concatenate(found)


def broken(model):
    """Make the middle one of the large tensors 0.1 % too large, and return the model."""
    weights = [one for one in model.graph.initializer if one.data_type == 1 and len(one.dims) == 2]
    chosen = weights[len(weights) // 2]
    chosen.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(chosen) * 1.001).astype(np.float32), chosen.name))
    return model


def main():
    """Measure, and draw the picture."""
    bundle = Path(sys.argv[1])
    config = json.loads((bundle / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "broken.onnx"
        onnx.save(broken(onnx.load(bundle / "model.onnx")), path)
        wrong = in_floors(bundle, OnnxBackend(path, providers=["CPUExecutionProvider"], threads=None).run)
    right = in_floors(bundle, OnnxBackend(bundle / "model.onnx", providers=config["providers"], threads=None).run)
    figure, axes = plt.subplots(figsize=(8, 3.2))
    bins = np.logspace(-3, 3, 61)
    axes.hist(np.maximum(right, bins[0]), bins, color="#2a7f9e", label="what ships")
    axes.hist(np.maximum(wrong, bins[0]), bins, color="#c8553d", alpha=0.75, label="one tensor 0.1 % too large")
    axes.axvline(NOISE_MULTIPLE, color="black", linewidth=1.2)
    axes.text(NOISE_MULTIPLE * 1.1, axes.get_ylim()[1] * 0.92, f"limit: {NOISE_MULTIPLE} floors", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel("distance from PyTorch, in noise floors")
    axes.set_ylabel("elements")
    axes.set_title(f"{config['name']} {config['version']}: {len(right):,} output elements", fontsize=10)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    print(f"largest: {right.max():.2f} floors as shipped, {wrong.max():.1f} broken; {PICTURE.name} drawn")


if __name__ == "__main__":
    main()
