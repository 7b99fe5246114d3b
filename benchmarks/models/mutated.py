"""The ten models of the catalogue whose bundles benchmarks/parity.py breaks, and the rule that chose them.

    python -m benchmarks.models.mutated [KIND …]

draws them again, in an environment that has all libraries (environment.py), and prints why each candidate is taken or
left out. The rule was written before any of them was broken. The models of each kind in `KINDS` are shuffled with a
fixed seed; the first are taken that

- name their outputs, come from a state dict, and are not expected to be refused,
- have at most `MOST_PARAMETERS`,
- need at most `MOST_OPERATIONS` for one row at the largest sizes of `limits`: a mutant is run on about a hundred rows,
- are the first of their library in this kind,
- are packaged: without a bundle there is nothing to break. This left out x-transformers-alibi, which uses the length of
  the text as a number in Python; the program does not check it.

The weights are those of the catalogue: random, or the ones that the package ships.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

from benchmarks.models.catalogue import ZooModel, all_models, audio_models, timm_models, vision_models
from benchmarks.models.catalogue import transformers_text_models as text_models

MOST_PARAMETERS = 25_000_000
MOST_OPERATIONS = 300_000_000
SEED = 14
KINDS: Mapping[str, int] = {
    "images": 2, "text": 1, "attention": 1, "decoder steps": 1, "audio": 2, "graphs": 1, "tables": 1, "time series": 1
}  # fmt: skip
"""The kinds of models, and how many of each are drawn."""

MUTATED: tuple[str, ...] = (
    "kornia-hynet",
    "timm-efficientvit-m0",
    "transformers-lfm2",
    "x-transformers-decoder",
    "transformers-gpt2-step",
    "conformer-block",
    "torchlibrosa-logmel",
    "pyg-edgecnn",
    "rtdl-ft-transformer",
    "neuralforecast-autoformer",
)
"""The models that were drawn."""

_TABLES = ("pytorch-tabnet", "rtdl_revisiting_models", "rtdl_num_embeddings", "tabm", "tab-transformer-pytorch")
_ATTENTION = (
    "x-transformers", "performer-pytorch", "linformer", "local-attention", "perceiver-pytorch", "fair-esm",
    "vit-pytorch",
)  # fmt: skip
_SERIES = ("neuralforecast", "pytorch-tcn", "gluonts", "chronos-forecasting")


def candidates(kind: str) -> list[ZooModel]:
    """Return the models of a kind, in the order in which they are drawn."""
    steps = [model for model in text_models.MODELS if model.name.endswith("-step")]
    models = {
        "images": [*timm_models.MODELS, *vision_models.MODELS],
        "text": [model for model in text_models.MODELS if model not in steps],
        "decoder steps": steps,
        "attention": [model for model in all_models() if model.library in _ATTENTION],
        "audio": list(audio_models.MODELS),
        "graphs": [model for model in all_models() if model.library == "torch-geometric"],
        "tables": [model for model in all_models() if model.library in _TABLES],
        "time series": [model for model in all_models() if model.library in _SERIES],
    }[kind]
    return random.Random(SEED).sample(sorted(models, key=lambda model: model.name), len(models))


def limits(model: ZooModel) -> dict[str, dict[str, int]]:
    """Return the limits of every dim, in the order of the inputs; no dim goes far beyond its minimum."""
    names = dict.fromkeys(dim for spec in model.inputs.values() for dim in spec.shape if isinstance(dim, str))
    bounded = {}
    for name in names:
        least, most = (model.dims[name].min, model.dims[name].max) if name in model.dims else (1, None)
        largest = 8 if name == "batch" else max(12, 2 * least)
        bounded[name] = {"min": least, "max": largest if most is None else min(most, largest)}
    return bounded


def operations(model: ZooModel) -> tuple[int, int]:
    """Return the numbers of parameters and of operations for one row at the largest sizes (0 if not counted)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.models import unseen
    from benchmarks.models.project import construct

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.py").write_text(model.source, encoding="utf-8")
        module = construct(Path(folder), model.entry)
    sizes = {name: 1 if name == "batch" else limit["max"] for name, limit in limits(model).items()}
    tensors = [
        torch.from_numpy(unseen.draw("uniform", name, spec.dtype, [sizes.get(d, d) for d in spec.shape], spec.range))
        for name, spec in model.inputs.items()
    ]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if parameters > MOST_PARAMETERS:
        return parameters, 0
    with FlopCounterMode(display=False) as counter:
        module(*tensors)
    return parameters, counter.get_total_flops()


def reason_against(model: ZooModel, libraries: Sequence[str]) -> str:
    """Return why a candidate is left out, or an empty string."""
    if model.library in libraries:
        return "not the first of its library"
    if model.outputs is None or model.torchscript or model.expected_refusal:
        return "no names of outputs, no state dict, or expected to be refused"
    try:
        with get_context("fork").Pool(1) as process:  # libraries do not share one: several have a module named `model`
            parameters, count = process.apply(operations, (model,))
    except Exception as error:  # noqa: BLE001 (whatever the library raises)
        return f"{type(error).__name__}: {error}"[:200]
    if parameters > MOST_PARAMETERS:
        return f"{parameters / 1e6:.0f} million parameters"
    return f"{count / 1e6:.0f} million operations" if count > MOST_OPERATIONS else ""


def draw(kind: str) -> Iterator[str]:
    """Yield the names of the chosen models of a kind, and print every decision."""
    libraries: list[str] = []
    for model in candidates(kind):
        if len(libraries) == KINDS[kind]:
            return
        reason = reason_against(model, libraries)
        print(f"{kind}: {model.name}: {reason or 'taken'}", file=sys.stderr, flush=True)
        if not reason:
            libraries.append(model.library)
            yield model.name


if __name__ == "__main__":
    for chosen in sys.argv[1:] or KINDS:
        print(*draw(chosen), sep="\n")
