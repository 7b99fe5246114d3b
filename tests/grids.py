"""Projects that consist of a manifest alone, and their grids of test cases: no module, no checkpoint, no torch."""

from pathlib import Path

from packager.parity.cases import sample_grid
from packager.project.manifest import Manifest, Project
from packager.project.yaml_source import YamlDocument


def declared(inputs, dims=None, *, folder=Path(), **parity):
    """Return a project with these inputs, each a dict or the shape of a float32."""
    specs = {
        name: spec if isinstance(spec, dict) else {"dtype": "float32", "shape": spec} for name, spec in inputs.items()
    }
    manifest = Manifest.model_validate(
        {
            "schema": 1,
            "name": "n",
            "version": "1.0.0",
            "model": {"entry": "model.py:Net"},
            "checkpoint": {"path": "best.pt"},
            "inputs": specs,
            "dims": dims or {},
            "parity": parity,
        }
    )
    return Project(folder / "package.yaml", manifest, "0" * 64, YamlDocument({}, {}))


def grid(inputs, dims=None, **parity):
    """Return the grid of a project with these inputs."""
    return sample_grid.build_grid(declared(inputs, dims, **parity))


def sizes_of(built, dim):
    """Return the sizes that a dim has in the test cases of a grid."""
    return {case.sizes[dim] for case in built.cases}
