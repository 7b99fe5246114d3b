"""What tests of the gate share."""

from contextlib import ExitStack

import pytest
from projects import FLOATS, project

from packager.model import loader
from packager.parity.cases import sample_grid
from packager.project import manifest


@pytest.fixture
def opened(tmp_path):
    """What opens a project: text of its module and settings → (project, source, grid)."""
    with ExitStack() as stack:

        def open_project(text, inputs=FLOATS, **sections):
            loaded = manifest.load_manifest(project(tmp_path, text, inputs=inputs, **sections))
            return loaded, stack.enter_context(loader.open_model_loader(loaded))(), sample_grid.build_grid(loaded)

        yield open_project
