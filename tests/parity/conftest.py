"""Fixtures that the tests of parity share."""

from contextlib import ExitStack

import pytest
from projects import FLOATS, project

from packager.model import loader
from packager.parity import reference
from packager.parity.cases import sample_grid
from packager.parity.cost import ForwardCost
from packager.project import manifest

FREE = ForwardCost(0, 0.0)


@pytest.fixture
def opened(tmp_path):
    """A function that opens a project: the text of its module and settings → (project, model, grid)."""
    with ExitStack() as stack:

        def open_project(text, inputs=FLOATS, **sections):
            loaded = manifest.load_manifest(project(tmp_path, text, inputs=inputs, **sections))
            return loaded, stack.enter_context(loader.open_model_loader(loaded))(), sample_grid.build_grid(loaded)

        yield open_project


@pytest.fixture
def measured(opened):
    """A function that measures a project: the text of its module and settings → (reference, grid, module)."""

    def measure(text, inputs=FLOATS, has_discrete_decisions=False, cost=FREE, **sections):
        loaded, model, grid = opened(text, inputs, **sections)
        noise = reference.measure_noise(loaded, model, grid, {}, cost)
        result = reference.measure_reference(
            loaded, model, grid, noise, probe=(), has_discrete_decisions=has_discrete_decisions
        )
        return result, grid, model.module

    return measure
