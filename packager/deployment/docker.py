"""The context of a container image that runs `package serve`: Dockerfile, requirements.txt, and the bundle as it is.

The image is built with the Python and the libraries that parity was proven with, verifies the bundle once more while it
is built, and runs as a user without rights.
"""

from __future__ import annotations

import json

from packager.deployment.render import render_template
from packager.deployment.requirements import describe_other_providers, format_requirements
from packager.deployment.source import BundleSource, Deployment
from packager.errors import DeploymentUnsupported

PORT = 8000
_CPU = "CPUExecutionProvider"


def write_docker(source: BundleSource) -> Deployment:
    """Return the files of an image's context.

    Raises `DeploymentUnsupported` for a bundle without an ONNX model, or that was not built for the CPU.
    """
    if source.config["artifacts"]["onnx"] is None:
        why = "it has no ONNX model, and its fallback needs torch, which the image lacks"
        raise DeploymentUnsupported(source.title, "docker", why, "export it for bentoml or ray-serve")
    if _CPU not in source.config["providers"]:
        why = f"it was built for {', '.join(source.config['providers'])}, and the image runs on the CPU"
        raise DeploymentUnsupported(source.title, "docker", why)
    labels = {
        "org.opencontainers.image.title": source.name,
        "org.opencontainers.image.version": source.version,
        "torch-packager.fingerprint": source.fingerprint,
    }
    dockerfile = render_template(
        "Dockerfile.tmpl",
        title=source.title,
        name=source.name,
        tag=source.version.replace("+", "-"),
        fingerprint=source.fingerprint,
        python=source.get_python(),
        labels=" \\\n      ".join(f"{key}={json.dumps(value)}" for key, value in labels.items()),
        port=str(PORT),
    )
    files = {
        "Dockerfile": dockerfile,
        ".dockerignore": b"*\n!requirements.txt\n!*.whl\n!bundle/\n",
        "requirements.txt": format_requirements(source, extra="serve"),
    }
    return Deployment({**files, **source.list_all("bundle")}, describe_other_providers(source))
