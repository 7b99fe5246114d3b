"""The InferenceService of KServe, against the schema of its custom resource."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from packager.deployment.exporter import export_bundle
from packager.deployment.names import make_class_name, make_resource_name

SCHEMA = json.loads((Path(__file__).parent / "inferenceservice.schema.json").read_text())
KSERVE_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"  # IsvcNameFmt of pkg/apis/serving/v1beta1/inference_service_validation.go


def closed(schema):
    """Return a schema that allows no field that it does not name: Kubernetes would drop it silently."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    extra = {"additionalProperties": False} if "properties" in schema else {}
    return {**{key: closed(value) for key, value in schema.items()}, **extra}


def export(bundle, folder, **options):
    result = export_bundle(bundle, "kserve", folder, **options)
    text = (folder / "inferenceservice.yaml").read_text()
    return yaml.safe_load(text), text, result


def check_predictor(document):
    (kind, content), *others = document["spec"]["predictor"].items()
    jsonschema.Draft7Validator(closed(SCHEMA[kind])).validate(content)
    assert not others
    return content


def test_triton_serves_the_repository_at_the_storage_uri(built, tmp_path):
    document, text, result = export(built.bundle, tmp_path / "out", storage_uri="pvc://models/digits")
    assert check_predictor(document) == {
        "modelFormat": {"name": "onnx", "version": "1"},
        "protocolVersion": "v2",
        "runtime": "kserve-tritonserver",
        "storageUri": "pvc://models/digits",
    }
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert document["metadata"] == {
        "name": "digits-cnn",
        "annotations": {"torch-packager/bundle": "digits-cnn-1.0.0", "torch-packager/fingerprint": result.fingerprint},
    }
    assert text.startswith("# First upload the content of model-repository/ to pvc://models/digits.\n")
    export_bundle(built.bundle, "triton", tmp_path / "triton")
    for path in ("digits-cnn/config.pbtxt", "digits-cnn/1/model.onnx"):
        assert (tmp_path / "out/model-repository" / path).read_bytes() == (tmp_path / "triton" / path).read_bytes()


def test_without_a_storage_uri_there_is_a_placeholder(built, tmp_path):
    document, _, result = export(built.bundle, tmp_path / "out")
    assert document["spec"]["predictor"]["model"]["storageUri"] == "s3://BUCKET/digits-cnn-1.0.0"
    assert any("s3://BUCKET/digits-cnn-1.0.0" in note for note in result.notes)


def test_an_image_runs_package_serve(built, tmp_path):
    document, text, result = export(built.bundle, tmp_path / "out", image="registry.example.org/digits:1.0.0")
    (container,) = check_predictor(document)
    assert (container["name"], container["image"]) == ("kserve-container", "registry.example.org/digits:1.0.0")
    dockerfile = (tmp_path / "out/image/Dockerfile").read_text()
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in dockerfile
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["containerPort"]}
    assert container["securityContext"]["runAsNonRoot"] and re.search(r"^USER \d+:\d+$", dockerfile, re.MULTILINE)
    assert text.startswith("# First build and push registry.example.org/digits:1.0.0 from image/.\n")
    assert result.notes == ("first build and push registry.example.org/digits:1.0.0 from image/",)


def test_the_schema_notices_a_field_that_kserve_lacks():
    schema = closed(SCHEMA["model"])
    jsonschema.validate({"modelFormat": {"name": "onnx"}}, schema)
    for wrong in ({"modelFormat": {"name": "onnx"}, "storageURI": "x"}, {"modelFormat": {"kind": "onnx"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("name", "resource", "class_name"),
    [
        ("digits-cnn", "digits-cnn", "DigitsCnnService"),
        ("mini_lm.v2", "mini-lm-v2", "MiniLmV2Service"),
        ("3d-net", "model-3d-net", "Model3dNetService"),
        ("net.-_", "net", "NetService"),
        ("a" * 70, "a" * 63, f"A{'a' * 69}Service"),
        ("9", "model-9", "Model9Service"),
    ],
)
def test_the_name_of_a_bundle_becomes_one_that_kubernetes_and_python_allow(name, resource, class_name):
    assert make_resource_name(name) == resource
    assert re.fullmatch(KSERVE_NAME, resource) and len(resource) <= 63
    assert make_class_name(name) == class_name and class_name.isidentifier()
