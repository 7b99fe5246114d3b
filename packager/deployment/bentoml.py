"""A service of BentoML: service.py, bentofile.yaml, requirements.txt, and the bundle as it is in bundle/."""

from __future__ import annotations

from packager.deployment.names import make_class_name, make_resource_name
from packager.deployment.python_service import get_array_dtypes, get_load_options, render_array_function
from packager.deployment.render import dump_yaml, render_template
from packager.deployment.requirements import describe_other_providers, format_requirements
from packager.deployment.source import BundleSource, Deployment

_REQUIREMENT = "bentoml>=1.4,<2"


def write_bentoml(source: BundleSource) -> Deployment:
    """Return the files of a BentoML project. Raises `DeploymentUnsupported` for an input that no API can have."""
    dtypes = get_array_dtypes(source, "bentoml")
    class_name, name = make_class_name(source.name), make_resource_name(source.name)
    service = render_template(
        "bentoml_service.py.tmpl",
        title=source.title,
        name=name,
        fingerprint=source.fingerprint,
        options=get_load_options(source),
        class_name=class_name,
        parameters=", ".join(f"{name}: np.ndarray" for name in dtypes),
        inputs=", ".join(f'"{name}": {name}' for name in dtypes),
        arrays=render_array_function(dtypes),
    )
    bentofile = {
        "service": f"service:{class_name}",
        "name": name,
        "include": ["service.py", "bundle/**"],
        "python": {"requirements_txt": "./requirements.txt", "lock_packages": False},  # they are pinned already
    }
    files = {
        "service.py": service,
        "bentofile.yaml": dump_yaml(bentofile, [f"{source.title}, {source.fingerprint}"]),
        "requirements.txt": format_requirements(source, others=[_REQUIREMENT]),
    }
    return Deployment({**files, **source.list_all("bundle")}, describe_other_providers(source))
