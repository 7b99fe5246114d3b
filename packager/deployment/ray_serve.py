"""An application of Ray Serve: app.py, requirements.txt, and the bundle as it is in bundle/."""

from __future__ import annotations

from packager.deployment.python_service import get_array_dtypes, get_load_options, render_array_function
from packager.deployment.render import render_template
from packager.deployment.requirements import describe_other_providers, format_requirements
from packager.deployment.source import BundleSource, Deployment

_REQUIREMENT = "ray[serve]>=2.40,<3"


def write_ray_serve(source: BundleSource) -> Deployment:
    """Return the files of a Ray Serve application. Raises `DeploymentUnsupported` as `get_array_dtypes` does."""
    dtypes = get_array_dtypes(source, "ray-serve")
    app = render_template(
        "ray_app.py.tmpl",
        title=source.title,
        name=source.name,
        fingerprint=source.fingerprint,
        options=get_load_options(source),
        arrays=render_array_function(dtypes),
    )
    requirements = format_requirements(source, others=[_REQUIREMENT])
    return Deployment(
        {"app.py": app, "requirements.txt": requirements, **source.list_all("bundle")}, describe_other_providers(source)
    )
