"""Load the module of a zoo project without packager, and run it in float32 and float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.models.project import construct

Array = np.ndarray[Any, Any]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the project's manifest."""
    manifest: dict[str, Any] = yaml.safe_load((folder / "package.yaml").read_text(encoding="utf-8"))
    return manifest


def load_module(folder: Path) -> torch.nn.Module:
    """Construct the module of a project, and load its weights."""
    manifest = read_manifest(folder)
    path = folder / manifest["checkpoint"]["path"]
    if "model" not in manifest:
        return torch.jit.load(str(path)).eval()  # type: ignore[no-any-return]
    module = construct(folder, manifest["model"]["entry"].rpartition(":")[2])
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        module.load_state_dict(load_file(path))
    else:
        module.load_state_dict(torch.load(path, weights_only=True))
    return module.eval()


def run(
    module: torch.nn.Module, inputs: Mapping[str, Array], manifest: Mapping[str, Any], *, double: bool
) -> list[Array]:
    """Run the module on arrays by input name, with floats in float64 if `double`; returns the outputs in order."""
    tensors = []
    for name, array in inputs.items():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if manifest["inputs"][name]["dtype"] == "bfloat16":
            tensor = tensor.bfloat16()
        tensors.append(tensor.double() if double and tensor.is_floating_point() else tensor)
    with torch.no_grad():
        return [array.numpy() for array in flatten(module(*tensors))]


def flatten(output: object) -> list[torch.Tensor]:
    """Return the tensors of an output in order; None is left out."""
    if isinstance(output, torch.Tensor):
        return [output.detach().float() if output.dtype == torch.bfloat16 else output.detach()]
    if output is None:
        return []
    values: Sequence[object] = tuple(output.values()) if isinstance(output, Mapping) else tuple(output)  # type: ignore[arg-type]
    return [tensor for value in values for tensor in flatten(value)]
