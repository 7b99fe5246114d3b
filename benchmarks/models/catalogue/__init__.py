"""The catalogue: models of public libraries, chosen before any of them was built."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.models.catalogue.entry import Dim, Input, ZooModel

__all__ = ["Dim", "Input", "ZooModel", "all_models"]


def all_models() -> tuple[ZooModel, ...]:
    """Return every model, in the order of libraries and of the lists in their modules."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.endswith("_models"))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(model for module in modules for model in module.MODELS)
