"""Load the eager module of a small project, or see it refused."""

import sys

import pytest
import torch
from projects import project

from packager.model import loader
from packager.project import manifest


def load(path):
    """Load the module of the manifest at `path`."""
    with loader.open_model_loader(manifest.load_manifest(path)) as load_model:
        return load_model()


def refused(path, error_class):
    """Assert that loading raises this error and leaves no module of the user's; return the error."""
    modules, search_path = set(sys.modules), list(sys.path)
    with pytest.raises(error_class) as caught:
        load(path)
    assert sys.path == search_path
    assert not {name for name in set(sys.modules) - modules if name in ("model", "pieces", "arch")}
    return caught.value


def zero_project(folder, source, **sections):
    """Write a project whose checkpoint fits `projects.LINEAR` and is all zeros; its own module is not constructed."""
    state = {"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}
    return project(folder, source, state=state, **sections)
