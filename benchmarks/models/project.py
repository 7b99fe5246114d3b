"""Write the project of a catalogue entry: package.yaml, model.py and the checkpoint.

    python -m benchmarks.models.project NAME FOLDER

Exits with status 5 and the reason on stdout if the library cannot be imported, or cannot construct the module.
"""

from __future__ import annotations

import random
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.models.catalogue import ZooModel, all_models

if TYPE_CHECKING:
    import torch

CANNOT_BE_CONSTRUCTED = 5
LIVE_SCALE = 0.02  # of what takes the place of zeros


def main(name: str, folder: Path) -> int:
    """Write the project of the model called `name`; returns the exit status."""
    model = next(model for model in all_models() if model.name == name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(model.source, encoding="utf-8")
    (folder / "package.yaml").write_text(yaml.safe_dump(manifest(model), sort_keys=False), encoding="utf-8")
    try:
        module = construct(folder, model.entry)
    except Exception as error:  # noqa: BLE001 (whatever the library raises is the result)
        print(f"{type(error).__name__}: {error}"[:2000])
        return CANNOT_BE_CONSTRUCTED
    save(model, module, folder / checkpoint_name(model))
    print(sum(parameter.numel() for parameter in module.parameters()))
    return 0


def checkpoint_name(model: ZooModel) -> str:
    """Return the file name of the model's checkpoint."""
    return "weights.safetensors" if model.safetensors else "weights.pt"


def manifest(model: ZooModel) -> dict[str, Any]:
    """Return the manifest as a user would write it: whatever has a default is left out."""
    inputs = {
        name: {"dtype": spec.dtype, "shape": list(spec.shape), **({"range": list(spec.range)} if spec.range else {})}
        for name, spec in model.inputs.items()
    }
    limits = {
        name: {"min": dim.min, **({"max": dim.max} if dim.max is not None else {})} for name, dim in model.dims.items()
    }
    return {
        "schema": 1,
        "name": model.name,
        "version": "1.0.0",
        **({} if model.torchscript else {"model": {"entry": f"model.py:{model.entry}"}}),
        "checkpoint": {"path": checkpoint_name(model), **({"trust_pickle": True} if model.torchscript else {})},
        "inputs": inputs,
        **({"outputs": list(model.outputs)} if model.outputs else {}),
        **({"dims": limits} if limits else {}),
    }


def construct(folder: Path, entry: str) -> torch.nn.Module:
    """Call the entry of `folder`'s model.py with seed 0, in eval mode."""
    import numpy as np
    import torch

    sys.path.insert(0, str(folder))
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    module: torch.nn.Module = runpy.run_path(str(folder / "model.py"), run_name="model")[entry]()
    return module.eval()


def save(model: ZooModel, module: torch.nn.Module, path: Path) -> None:
    """Save the weights in the form that the model's users save them in."""
    import torch

    if model.live_zeros:
        torch.manual_seed(1)
        for parameter in module.parameters():
            if parameter.is_floating_point() and not parameter.any():
                torch.nn.init.normal_(parameter, std=LIVE_SCALE)
    if model.torchscript:
        torch.jit.save(module, str(path))
    elif model.safetensors:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    else:
        torch.save(module.state_dict(), path)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2])))
