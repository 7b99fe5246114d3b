"""A folder for the Hugging Face Hub, which optimum's ORTModel classes load.

- config.json, tokenizer.json and so on: the bundle's assets; the folder with transformers' config.json becomes the root
- onnx/model.onnx, and onnx/model.onnx_data beside it
- README.md: the model card, unless it is among the assets
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packager.bundle import layout
from packager.common.strict_json import parse_strict_json
from packager.deployment.render import dump_yaml, format_shape, render_template
from packager.deployment.source import BundleSource, Deployment, FromBundle
from packager.errors import DeploymentUnsupported

TARGET = "huggingface"
_CONFIG, _CARD = "config.json", "README.md"
_TASKS = (
    "AudioClassification", "AudioFrameClassification", "CTC", "ImageClassification", "MaskedLM", "MultipleChoice",
    "QuestionAnswering", "SemanticSegmentation", "SequenceClassification", "TokenClassification",
)  # fmt: skip
_ADD_CONFIG = (
    "add config.json, and the files of the tokenizer or processor, to `assets` in the manifest, and build it again"
)


def write_huggingface(source: BundleSource) -> Deployment:
    """Return the files of the folder.

    Raises `DeploymentUnsupported` for a bundle without an ONNX model, or without transformers' config.json.
    """
    if source.config["artifacts"]["onnx"] is None:
        raise DeploymentUnsupported(source.title, TARGET, "it has no ONNX model")
    path, config = _find_config(source)
    assets = _place_assets(source, path)
    files = {**source.list_onnx("onnx"), _CARD: _render_card(source, config)}
    for name in sorted(set(files) & set(assets) - {_CARD}):
        raise DeploymentUnsupported(source.title, TARGET, f"the asset {name} would take the place of the ONNX model")
    return Deployment({**files, **assets})


def _find_config(source: BundleSource) -> tuple[str, Mapping[str, Any]]:
    """Return the path of transformers' config.json in the bundle, and its content."""
    candidates = [path for path in source.sums if path.startswith(f"{layout.ASSETS}/")]
    candidates = [path for path in candidates if path.rpartition("/")[2] == _CONFIG]
    for path in sorted(candidates, key=lambda path: (path.count("/"), path)):
        try:
            config = parse_strict_json(source.read(path))
        except (ValueError, RecursionError):
            continue
        if isinstance(config, dict) and isinstance(config.get("model_type"), str):
            return path, config
    why = "its assets have no config.json of transformers, which optimum reads: a JSON object with `model_type`"
    raise DeploymentUnsupported(source.title, TARGET, why, _ADD_CONFIG)


def _place_assets(source: BundleSource, config: str) -> dict[str, FromBundle]:
    """Return the assets by their paths in the folder: those beside `config` are at its root."""
    folder = config.removesuffix(_CONFIG)
    files: dict[str, FromBundle] = {}
    for asset in (path for path in source.sums if path.startswith(f"{layout.ASSETS}/")):
        path = asset.removeprefix(folder) if asset.startswith(folder) else asset.removeprefix(f"{layout.ASSETS}/")
        if path in files:
            raise DeploymentUnsupported(
                source.title, TARGET, f"two assets would be {path}: {files[path].path}, {asset}"
            )
        files[path] = FromBundle(asset)
    return files


def _render_card(source: BundleSource, config: Mapping[str, Any]) -> bytes:
    """Render the model card."""
    record = source.config
    rows = [
        f"| {kind} | `{tensor['name']}` | {tensor['dtype']} | {format_shape(tensor['shape'])} |"
        for kind in ("input", "output")
        for tensor in record[f"{kind}s"]
    ]
    return render_template(
        "model_card.md.tmpl",
        metadata=dump_yaml(_make_metadata(record)).decode(),
        title=source.title,
        description=" ".join(record["description"].split()) or source.title,
        fingerprint=source.fingerprint,
        model_class=_choose_class(record, config),
        signature="\n".join(rows),
        largest_errors="\n".join(_list_errors(source)),
    )


def _make_metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the card; the hub knows licenses by their names in lower case."""
    metadata: dict[str, Any] = {"tags": ["onnx", "onnxruntime", "torch-packager"]}
    license_name = record["license"]
    if license_name and license_name.replace(".", "").replace("-", "").isalnum():
        metadata["license"] = license_name.lower()
    elif license_name:
        metadata |= {"license": "other", "license_name": license_name}
    return metadata


def _list_errors(source: BundleSource) -> list[str]:
    """Return a row of the table for each output: the largest error against PyTorch, and its share of the tolerance."""
    onnx = source.get_parity().backends["onnx"]
    return [
        f"| `{name}` | {errors.max_abs:.3g} | {errors.of_limit * 100:.2g} % |" for name, errors in onnx.outputs.items()
    ]


def _choose_class(record: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the class of optimum that loads the folder: by the architecture and outputs that it expects."""
    outputs = {tensor["name"] for tensor in record["outputs"]}
    architectures = config.get("architectures")
    for architecture in architectures if isinstance(architectures, list) else ():
        task = str(architecture).partition("For")[2]
        expected = {"start_logits", "end_logits"} if task == "QuestionAnswering" else {"logits"}
        if task in _TASKS and expected <= outputs:
            return f"ORTModelFor{task}"
    return "ORTModelForFeatureExtraction" if "last_hidden_state" in outputs else "ORTModelForCustomTasks"
