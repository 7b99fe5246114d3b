"""An InferenceService of KServe, `serving.kserve.io/v1beta1`, with what it refers to.

By default KServe's Triton runtime serves a model repository, which is written beside inferenceservice.yaml and has to
be uploaded to `storageUri`. With an image, a container runs `package serve`, and the context to build it is written.
"""

from __future__ import annotations

from typing import Any

from packager.deployment.docker import PORT, write_docker
from packager.deployment.names import make_resource_name
from packager.deployment.render import dump_yaml
from packager.deployment.source import BundleSource, Deployment
from packager.deployment.triton import write_triton
from packager.errors import DeploymentUnsupported

_REPOSITORY, _IMAGE = "model-repository", "image"


def write_kserve(source: BundleSource, storage_uri: str | None, image: str | None) -> Deployment:
    """Return inferenceservice.yaml and a model repository, or with `image` the context of that image.

    `storage_uri` is where the repository will be. By default it is a placeholder, `s3://BUCKET/NAME-VERSION`.
    Raises `DeploymentUnsupported` for a bundle without an ONNX model.
    """
    if source.config["artifacts"]["onnx"] is None:
        raise DeploymentUnsupported(
            source.title, "kserve", "it has no ONNX model", "export it for bentoml or ray-serve"
        )
    if image is not None:
        folder, content = _IMAGE, write_docker(source)
        predictor, step = _make_container_predictor(image), f"build and push {image} from {_IMAGE}/"
    else:
        uri = storage_uri or f"s3://BUCKET/{source.title}"
        folder, content = _REPOSITORY, write_triton(source)
        predictor, step = _make_model_predictor(uri), f"upload the content of {_REPOSITORY}/ to {uri}"
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": make_resource_name(source.name),
            "annotations": {"torch-packager/bundle": source.title, "torch-packager/fingerprint": source.fingerprint},
        },
        "spec": {"predictor": predictor},
    }
    files = {f"{folder}/{path}": file for path, file in content.files.items()}
    manifest = dump_yaml(document, [f"First {step}."])
    return Deployment({"inferenceservice.yaml": manifest, **files}, (f"first {step}", *content.notes))


def _make_model_predictor(storage_uri: str) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "onnx", "version": "1"},
        "protocolVersion": "v2",
        "runtime": "kserve-tritonserver",
        "storageUri": storage_uri,
    }
    return {"model": model}


def _make_container_predictor(image: str) -> dict[str, Any]:
    container = {
        "name": "kserve-container",
        "image": image,
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": PORT}},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": PORT}},
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}},
    }
    return {"containers": [container]}
