"""The folder for the Hugging Face Hub. optimum loads one in test_servers.py."""

import json

import pytest
import yaml
from projects import reseal

from packager.bundle.fingerprint import list_files
from packager.deployment.exporter import RECORD, export_bundle
from packager.errors import DeploymentUnsupported, PackagerError

BERT = '{"model_type": "bert", "architectures": ["BertForSequenceClassification"]}'


def with_assets(bundle, assets, **fields):
    """Add assets to a bundle, by their paths in assets/, and change fields of config.json."""
    for path, text in assets.items():
        (bundle / "assets" / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle / "assets" / path).write_text(text)
    config = json.loads((bundle / "config.json").read_text())
    config |= {"assets": sorted({*config["assets"], *assets}), **fields}
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    return bundle


def read_card(folder):
    """Return the metadata and the text of the model card."""
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_folder_of_the_config_becomes_the_root(bundle, tmp_path):
    assets = {"model/config.json": BERT, "model/tokenizer.json": "{}", "model/more/vocab.txt": "a"}
    export_bundle(with_assets(bundle, assets), "huggingface", tmp_path / "out")
    assert set(list_files(tmp_path / "out")) == {
        "README.md", "config.json", "tokenizer.json", "more/vocab.txt", "labels.txt", "onnx/model.onnx", RECORD,
    }  # fmt: skip
    assert (tmp_path / "out/config.json").read_text() == BERT


@pytest.mark.parametrize("config", [None, "[]", "{}", '{"model_type": 3}', "not JSON", "[" * 100_000])
def test_without_the_config_of_transformers_the_error_says_what_to_add(bundle, tmp_path, config, golden):
    if config is not None:
        with_assets(bundle, {"config.json": config})
    with pytest.raises(DeploymentUnsupported) as caught:
        export_bundle(bundle, "huggingface", tmp_path / "out")
    if config is None:
        golden(str(caught.value), "config.json", "model_type", "assets")
    assert "config.json" in caught.value.why and "assets" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_config_of_something_else_is_passed_over(bundle, tmp_path):
    export_bundle(
        with_assets(bundle, {"config.json": "{}", "bert/config.json": BERT, "bert/x": "x"}), "triton", tmp_path / "t"
    )
    with pytest.raises(DeploymentUnsupported) as caught:  # both would be config.json
        export_bundle(bundle, "huggingface", tmp_path / "out")
    assert "assets/config.json" in caught.value.why and "assets/bert/config.json" in caught.value.why


def test_an_asset_never_takes_the_place_of_the_model(bundle, tmp_path):
    with_assets(bundle, {"config.json": BERT, "onnx/model.onnx": "mine"})
    with pytest.raises(DeploymentUnsupported) as caught:
        export_bundle(bundle, "huggingface", tmp_path / "out")
    assert "onnx/model.onnx" in caught.value.why


@pytest.mark.parametrize("names", [["hub/a", "a/b"], ["hub/Readme.md", "x"], ["hub/onnx", "x"]])
def test_assets_that_cannot_all_be_files_of_one_folder_are_refused(bundle, tmp_path, names):
    with_assets(bundle, {"hub/config.json": BERT, **dict.fromkeys(names, "text")})
    with pytest.raises(DeploymentUnsupported):
        export_bundle(bundle, "huggingface", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{}", "[", '{"backends": {}}'])
def test_evidence_that_is_malformed_is_no_bug_of_ours(bundle, tmp_path, content):
    with_assets(bundle, {"config.json": BERT})
    for path in ("parity.json", "build.json"):
        (bundle / "evidence" / path).write_text(content)
    reseal(bundle, documents=False)
    for target in ("huggingface", "docker", "triton"):
        with pytest.raises(PackagerError):
            export_bundle(bundle, target, tmp_path / "out")


@pytest.mark.parametrize("name", [RECORD, f"hub/{RECORD}"])
def test_an_asset_never_takes_the_place_of_the_record(bundle, tmp_path, name):
    with_assets(bundle, {f"{name.rpartition('/')[0] or '.'}/config.json".removeprefix("./"): BERT, name: "{}"})
    with pytest.raises(DeploymentUnsupported) as caught:
        export_bundle(bundle, "huggingface", tmp_path / "out")
    assert RECORD in caught.value.why


def test_the_card_has_the_signature_the_fingerprint_and_the_errors(bundle, tmp_path):
    with_assets(bundle, {"config.json": BERT}, description="Digits,\nby hand", license="Apache-2.0")
    result = export_bundle(bundle, "huggingface", tmp_path / "out")
    metadata, text = read_card(tmp_path / "out")
    assert metadata == {"tags": ["onnx", "onnxruntime", "torch-packager"], "license": "apache-2.0"}
    errors = json.loads((bundle / "evidence/parity.json").read_text())["backends"]["onnx"]["outputs"]["logits"]
    assert "\nDigits, by hand\n" in text and f"`{result.fingerprint}`" in text
    assert "\n| input | `image` | float32 | [batch, 1, 8, 8] |\n| output | `logits` | float32 | [batch, 10] |\n" in text
    assert f"\n| `logits` | {errors['max_abs']:.3g} | {errors['of_limit'] * 100:.2g} % |\n" in text


@pytest.mark.parametrize(
    ("license_name", "expected"),
    [
        (None, {}),
        ("MIT", {"license": "mit"}),
        ("MIT OR Apache-2.0", {"license": "other", "license_name": "MIT OR Apache-2.0"}),
        ("mine: yes\n---", {"license": "other", "license_name": "mine: yes\n---"}),
    ],
)
def test_the_license_is_one_of_the_hub_or_other(bundle, tmp_path, license_name, expected):
    with_assets(bundle, {"config.json": BERT}, license=license_name)
    export_bundle(bundle, "huggingface", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    metadata = yaml.safe_load(text.removeprefix("---\n").split("\n---\n", 1)[0])
    assert metadata == {"tags": ["onnx", "onnxruntime", "torch-packager"], **expected}


def test_a_card_among_the_assets_is_kept(bundle, tmp_path):
    with_assets(bundle, {"config.json": BERT, "README.md": "# Mine\n"})
    export_bundle(bundle, "huggingface", tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(
    ("architectures", "outputs", "model_class"),
    [
        (["BertForSequenceClassification"], ["logits"], "ORTModelForSequenceClassification"),
        (["BertForSequenceClassification"], ["scores"], "ORTModelForCustomTasks"),
        (["BertForQuestionAnswering"], ["start_logits", "end_logits"], "ORTModelForQuestionAnswering"),
        (["BertForQuestionAnswering"], ["logits"], "ORTModelForCustomTasks"),
        (["BertModel"], ["last_hidden_state"], "ORTModelForFeatureExtraction"),
        (None, ["embedding"], "ORTModelForCustomTasks"),
        ("BertForMaskedLM", ["logits"], "ORTModelForCustomTasks"),
    ],
)
def test_the_card_names_the_class_that_fits_the_outputs(bundle, tmp_path, architectures, outputs, model_class):
    tensors = [{"name": name, "dtype": "float32", "shape": ["batch", 10]} for name in outputs]
    with_assets(
        bundle, {"config.json": json.dumps({"model_type": "bert", "architectures": architectures})}, outputs=tensors
    )
    export_bundle(bundle, "huggingface", tmp_path / "out")
    assert f"from optimum.onnxruntime import {model_class}\n" in (tmp_path / "out/README.md").read_text()
