"""Keep the published JSON Schemas in step with the models."""

import json
import math

import jsonschema
import pytest
from projects import ROOT

from packager.bundle import records
from packager.cli import schemas
from packager.project import yaml_source

NAMES = ["manifest", "config", "parity"]
DIGEST = "0" * 64


def problems(name, value):
    """Return the JSON path of every problem that the published schema has with a value."""
    validator = jsonschema.Draft202012Validator(json.loads(published(name).read_text(encoding="utf-8")))
    return [error.json_path for error in validator.iter_errors(value)]


def published(name):
    return ROOT / "schemas" / f"{name}.schema.json"


@pytest.fixture
def digits():
    """Return the manifest of the first example, as data."""
    return yaml_source.parse_yaml((ROOT / "examples/digits/package.yaml").read_text(encoding="utf-8")).data


@pytest.mark.parametrize("name", NAMES)
def test_a_published_schema_is_the_one_that_the_models_generate(name):
    assert published(name).read_bytes() == schemas.render_schema(name).encode()


def test_every_schema_is_published_and_no_other_file():
    assert sorted(path.name for path in (ROOT / "schemas").iterdir()) == sorted(f"{name}.schema.json" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_draft_2020_12(name):
    schema = schemas.generate_schema(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.SchemaError):
        jsonschema.Draft202012Validator.check_schema({**schema, "type": 7})


# -- the manifest ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/package.yaml")), ids=lambda path: path.parent.name)
def test_every_example_is_valid_and_points_its_editor_at_the_schema(path):
    text = path.read_text(encoding="utf-8")
    assert problems("manifest", yaml_source.parse_yaml(text).data) == []
    pointer = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / pointer).resolve() == published("manifest")


def test_a_misspelt_field_is_not_valid(digits):
    assert problems("manifest", {**digits, "verison": "1.0.0"}) == ["$"]
    digits["inputs"]["image"]["shpae"] = [1]
    assert problems("manifest", digits) == ["$.inputs.image"]


@pytest.mark.parametrize("field", ["schema", "name", "version", "checkpoint", "inputs"])
def test_a_missing_field_is_not_valid(digits, field):
    del digits[field]
    assert problems("manifest", digits) == ["$"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 2),
        ("name", "Digits CNN"),
        ("version", "1.0"),
        ("version", 1.0),
        ("inputs", {}),
        ("inputs", {"x": {"dtype": "float33", "shape": []}}),
        ("inputs", {"x": {"dtype": "float32", "shape": [-1]}}),
        ("inputs", {"1x": {"dtype": "float32", "shape": []}}),
        ("outputs", []),
        ("dims", {"batch": {"min": -1}}),
        ("export", {"exporter": "dynamo"}),
        ("parity", {"tolerance": "tight"}),
        ("parity", {"tolerance": {"atol": 1}}),
    ],
)
def test_a_value_that_the_manifest_refuses_is_invalid_in_the_schema(digits, field, value):
    assert problems("manifest", {**digits, field: value})


@pytest.mark.parametrize("name", NAMES)
def test_every_object_of_a_schema_is_closed(name):
    schema = schemas.generate_schema(name)
    objects = [schema, *schema["$defs"].values()]
    assert [item["title"] for item in objects if "properties" in item and item["additionalProperties"]] == []


def test_every_field_of_the_manifest_has_a_description():
    schema = schemas.generate_schema("manifest")
    bare = [
        f"{model}.{name}"
        for model, definition in {"Manifest": schema, **schema["$defs"]}.items()
        for name, field in definition.get("properties", {}).items()
        if "description" not in field and "$ref" not in field
    ]
    assert bare == []


# -- records --------------------------------------------------------------------------------


def config():
    artifact = records.OnnxArtifact(
        path="model.onnx", sha256=DIGEST, opset=20, ir_version=10, domains={"": 20}, nodes=12
    )
    return records.BundleConfig(
        schema_=1,
        name="n",
        version="1.0.0",
        description="",
        license=None,
        authors=[],
        inputs=[records.InputRecord(name="x", dtype="float32", shape=["batch", 3, None])],
        outputs=[],
        dims={"batch": records.DimRecord(min=1, max=None)},
        artifacts=records.Artifacts(onnx=artifact, torchscript=None),
        providers=["CPUExecutionProvider"],
        assets=[],
        source=records.SourceRecord(
            manifest_sha256=DIGEST,
            checkpoint_sha256=DIGEST,
            code_sha256=DIGEST,
            architecture="Net",
            parameters=12,
            toolchain={"torch": "2.9"},
        ),
        parity=records.ParityVerdicts(onnx="pass", torchscript="not-checked"),
        metadata={"accuracy": 0.99, "classes": ["a", None]},
    )


def parity(value):
    """Return a record in which every measurement is `value`."""
    errors = records.OutputErrorsRecord(
        max_abs=value, max_rel=value, rms=value, cosine=value, mismatched_nonfinite=0, of_limit=value,
        of_limit_float64=value,
    )  # fmt: skip
    worst = records.WorstElementRecord(
        case="000", output="y", index=[0, 1], expected=value, actual=value, of_limit=value
    )
    agreement = records.AgreementRecord(rule="top-5", compared=9, agreed=8, ties=1)
    backend = records.BackendVerdict(
        verdict="pass", reason="", outputs={"y": errors}, decisions={"y": agreement}, worst=worst
    )  # fmt: skip
    silent = {"layer.weight": records.UnexercisedChannelsRecord(count=1, of=3, first=[2])}
    return records.ParityRecord(
        schema_=1,
        verdict="pass",
        reference="",
        cases=[],
        not_checked=[],
        tolerance={},
        decisions={"y": records.DecisionRecord(rule="top-5", axis=-1, tie=0.25)},
        coverage=records.CoverageRecord(measured="gradients", channels=3, exercised=2, silent=silent, still={"y": 1}),
        backends={"onnx": backend},
        stages=[],
    )


def test_a_record_is_valid_in_its_published_schema():
    assert problems("config", json.loads(config().to_bytes())) == []
    assert problems("config", {**json.loads(config().to_bytes()), "more": 1}) == ["$"]


@pytest.mark.parametrize("value", [0.5, 7.0, math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_valid_in_the_schema(value):
    written = parity(value).to_bytes()
    assert problems("parity", json.loads(written, parse_constant=pytest.fail)) == []
    assert repr(records.ParityRecord.model_validate_json(written)) == repr(parity(value))


def test_a_measurement_is_a_number_and_not_arbitrary_text():
    written = json.loads(parity(0.5).to_bytes())
    written["backends"]["onnx"]["outputs"]["y"]["max_abs"] = "small"
    assert problems("parity", written) == ["$.backends.onnx.outputs.y.max_abs"]


def test_the_decision_of_a_record_has_a_known_rule():
    written = json.loads(parity(0.5).to_bytes())
    written["decisions"]["y"]["rule"] = "the best"
    assert problems("parity", written) == ["$.decisions.y.rule"]
    with pytest.raises(ValueError, match="String should match pattern"):
        records.ParityRecord.model_validate(written)


def test_a_record_has_the_same_bytes_on_every_machine():
    text = config().to_bytes()
    assert text.startswith(b'{\n  "schema": 1,\n  "name": "n",\n') and text.endswith(b"}\n")
    assert b"\r" not in text and text == records.BundleConfig.model_validate_json(text).to_bytes()
