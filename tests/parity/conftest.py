"""What tests of the gate share."""

from contextlib import ExitStack

import pytest
from projects import FLOATS, project

from packager import manifest, samples, source


@pytest.fixture
def opened(tmp_path):
    """What opens a project: text of its module and settings → (project, source, grid)."""
    with ExitStack() as stack:

        def open_project(text, inputs=FLOATS, **sections):
            loaded = manifest.load(project(tmp_path, text, inputs=inputs, **sections))
            return loaded, stack.enter_context(source.opened(loaded))(), samples.grid(loaded)

        yield open_project
