"""Hold the artifacts of a project against its eager module, on inputs that the build never saw.

    python -m benchmarks.models.compare FOLDER BUNDLE BY_HAND

Prints one JSON object: for each artifact that exists, its outcome and largest error over all cases.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402

from benchmarks.models import eager, rule, unseen  # noqa: E402

Array = np.ndarray[Any, Any]
Artifact = Callable[[Mapping[str, Array]], list[Array]]
THREADS = 2


@dataclass(frozen=True)
class Case:
    """One unseen input, with the eager module's outputs in float32 and, where it has them, in float64."""

    description: str
    inputs: Mapping[str, Array]
    expected: list[Array]
    exact: list[Array] | None


def main(folder: Path, bundle: Path, by_hand: Path) -> None:
    """Compare every artifact on every case, and print the outcomes."""
    torch.set_num_threads(THREADS)
    manifest = eager.read_manifest(folder)
    cases, problems = build_cases(folder, manifest, built_sizes(bundle))
    result: dict[str, object] = {"cases": [case.description for case in cases], "eager_problems": problems}
    for name, load in artifacts(manifest, bundle, by_hand).items():
        result[name] = judge(load, cases)
    print(json.dumps(result))


def built_sizes(bundle: Path) -> list[dict[str, int]]:
    """Return the sizes of every case of the build."""
    record = bundle / "evidence" / "parity.json"
    return [case["sizes"] for case in json.loads(record.read_text())["cases"]] if record.exists() else []


def build_cases(folder: Path, manifest: Mapping[str, Any], built: list[dict[str, int]]) -> tuple[list[Case], list[str]]:
    """Draw the inputs and run the eager module on them; the strings say where it raised."""
    names = sorted({dim for spec in manifest["inputs"].values() for dim in spec["shape"] if isinstance(dim, str)})
    limits = {name: manifest.get("dims", {}).get(name, {}) for name in names}
    choices = unseen.choose_sizes({name: (dim.get("min", 1), dim.get("max")) for name, dim in limits.items()}, built)
    module, double = eager.load_module(folder), eager.load_module(folder).double()
    cases, problems = [], []
    for kind, sizes in zip(unseen.KINDS, choices, strict=True):
        inputs = {
            name: unseen.draw(
                kind, name, spec["dtype"], [sizes.get(dim, dim) for dim in spec["shape"]], spec.get("range")
            )
            for name, spec in manifest["inputs"].items()
        }
        description = f"{kind} {sizes}"
        try:
            expected = eager.run(module, inputs, manifest, double=False)
        except Exception as error:  # noqa: BLE001 (the module's own refusal of a case)
            problems.append(f"{description}: {type(error).__name__}: {error}"[:300])
            continue
        try:
            exact = eager.run(double, inputs, manifest, double=True)
        except Exception as error:  # noqa: BLE001 (many modules are written for float32)
            exact = None
            problems.append(f"{description}, float64: {type(error).__name__}: {error}"[:300])
        cases.append(Case(description, inputs, expected, exact))
    return cases, problems


def artifacts(manifest: Mapping[str, Any], bundle: Path, by_hand: Path) -> dict[str, Callable[[], Artifact]]:
    """Return the loader of each artifact that exists, by the name of its field in the result."""
    loaders: dict[str, Callable[[], Artifact]] = {}
    if (bundle / "model.onnx").exists():
        loaders["onnx"] = lambda: _bundle(bundle)
    if (bundle / "model.ts").exists():
        loaders["fallback"] = lambda: _torchscript(bundle / "model.ts", manifest)
    for name in ("model.onnx", "simplified.onnx", "raw.onnx"):
        if (by_hand / name).exists():
            loaders["by_hand_onnx"] = lambda path=by_hand / name: _onnx(path)  # type: ignore[misc]
            break
    if (by_hand / "model.ts").exists():
        loaders["by_hand_torchscript"] = lambda: _torchscript(by_hand / "model.ts", manifest)
    return loaders


def judge(load: Callable[[], Artifact], cases: list[Case]) -> dict[str, object]:
    """Compare one artifact on every case; returns its outcome, and the case where it is worst."""
    worst, where, largest = rule.Comparison(0.0, 0.0), "", 0.0
    try:
        artifact = load()
    except Exception as error:  # noqa: BLE001 (an artifact that does not load is wrong)
        return {"outcome": "wrong", "reason": f"does not load: {type(error).__name__}: {error}"[:1000]}
    for case in cases:
        try:
            comparison = rule.compare(artifact(case.inputs), case.expected, case.exact)
        except Exception as error:  # noqa: BLE001 (an artifact that does not run is wrong)
            comparison = rule.Comparison(math.inf, math.inf, f"{type(error).__name__}: {error}"[:500])
        largest = max(largest, comparison.error)
        if comparison.of_limit >= worst.of_limit:
            worst, where = comparison, case.description
    return {
        "outcome": "right" if cases and worst.right else "wrong" if cases else "not compared",
        "error": largest if math.isfinite(largest) else "Infinity",
        "of_limit": worst.of_limit if math.isfinite(worst.of_limit) else "Infinity",
        "reason": worst.reason,
        "case": where,
    }


def _bundle(bundle: Path) -> Artifact:
    import packager

    loaded = packager.load(bundle, fallback=False, threads=THREADS)
    return lambda inputs: list(loaded.run(inputs).values())


def _onnx(path: Path) -> Artifact:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {spec.name for spec in session.get_inputs()}
    return lambda inputs: session.run(None, {name: array for name, array in inputs.items() if name in names})


def _torchscript(path: Path, manifest: Mapping[str, Any]) -> Artifact:
    module = torch.jit.load(str(path))
    return lambda inputs: eager.run(module, inputs, manifest, double=False)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
