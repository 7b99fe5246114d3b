"""The models of benchmarks/models/mutated.py as architectures: models of public libraries that nobody here wrote."""

import importlib.metadata

from architectures import Architecture

from benchmarks.models.catalogue import ZooModel, all_models
from benchmarks.models.mutated import MUTATED, limits
from benchmarks.models.project import manifest


def architecture(model: ZooModel) -> Architecture:
    """Return a model of the catalogue as an architecture; its dims get the limits of `mutated.limits`."""
    return Architecture(
        name=model.name,
        entry=model.entry,
        source=model.source,
        inputs=manifest(model)["inputs"],
        outputs=model.outputs or (),
        dims=limits(model),
        pretrained=model.pretrained,
    )


def libraries_missing(names: tuple[str, ...]) -> list[str]:
    """Return the libraries of these models that are not installed."""
    missing = []
    for library in dict.fromkeys(model.library for model in all_models() if model.name in names):
        try:
            importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            missing.append(library)
    return missing


ARCHITECTURES = tuple(architecture(model) for name in MUTATED for model in all_models() if model.name == name)
"""The models in the order in which they were drawn."""
