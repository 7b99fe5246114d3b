"""A Hugging Face folder without an entry: written by transformers, built, and compared with transformers' own model."""

import json
import sys

import numpy as np
import pytest
import torch
from loading import load
from messages import mentions
from projects import manifest as write

import packager
from packager import checkpoint
from packager.builder.vet import vet
from packager.errors import (
    EntryNeeded,
    ManifestInvalid,
    ModelConstructionFailed,
    StateDoesNotFit,
    TransformersMissing,
    render_error,
)
from packager.project import manifest

transformers = pytest.importorskip("transformers")

TOKENS = {
    "input_ids": {"dtype": "int64", "shape": ["batch", "length"], "range": [0, 40]},
    "attention_mask": {"dtype": "int64", "shape": ["batch", "length"], "range": [1, 2]},
}
SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A small classifier, its folder, and a manifest without an entry."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=3)).eval()
    model.save_pretrained(tmp_path / "bert")
    return model, tmp_path / "bert", entryless(tmp_path)


def entryless(folder, **settings):
    dims = {"batch": {"max": 3}, "length": {"max": 12}}
    sections = {"model": {}, "inputs": TOKENS, "dims": dims, "checkpoint": {"path": "bert"}}
    return write(folder, **{**sections, **settings})


def test_a_folder_that_transformers_wrote_is_built_without_an_entry(saved, tmp_path):
    model, _, path = saved
    result = packager.build(path, tmp_path / "dist")
    assert result.parity == {"onnx": "pass", "torchscript": "pass"}
    ids = np.arange(10).reshape(2, 5)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.detach().numpy()
    assert np.allclose(packager.load(result.bundle).run(inputs)["logits"], expected, atol=1e-5)
    assert packager.load(result.bundle).config["source"]["architecture"] == type(model).__name__
    assert packager.build(path, tmp_path / "dist").cached
    folder = saved[1]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert not packager.build(path, tmp_path / "dist").cached


def test_the_module_is_float32_in_eval_mode_whatever_was_saved(saved):
    model, folder, path = saved
    model.half().save_pretrained(folder)
    module = load(path).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert not module.training


def test_sharded_folders_and_those_with_pickles_are_read_too(saved):
    model, folder, path = saved
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    assert (folder / "model.safetensors.index.json").exists()
    for pickled in (False, True):
        if pickled:
            for file in folder.glob("model*"):
                file.unlink()
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        state = load(path).module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_that_the_file_has_once_are_tied(tmp_path):
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    model.save_pretrained(tmp_path / "bert")
    assert "cls.predictions.decoder.weight" not in checkpoint.read(tmp_path / "bert").state
    module = load(entryless(tmp_path)).module
    assert module.cls.predictions.decoder.weight is module.bert.embeddings.word_embeddings.weight


def test_a_head_that_is_not_in_the_file_is_refused_or_reported(saved, tmp_path, golden):
    _, folder, path = saved
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(StateDoesNotFit) as caught:
        vet(path)
    mentions(caught.value.why, "(2)", "classifier.bias")
    report = vet(entryless(tmp_path, checkpoint={"path": "bert", "allow_missing": ["classifier.*"]}))
    (note,) = report.notes
    golden(note, "classifier.bias", "classifier.weight")


def test_shapes_that_differ_are_a_table(saved):
    _, folder, path = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 41}))
    with pytest.raises(StateDoesNotFit) as caught:
        load(path)
    assert "bert.embeddings.word_embeddings.weight  [41, 16]            [40, 16]" in caught.value.why


def test_code_that_a_folder_brings_is_not_run(saved, tmp_path):
    _, folder, path = saved
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Net"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n")
    with pytest.raises(ModelConstructionFailed):
        load(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_that_a_folder_names_is_not_fetched(saved, name):
    _, folder, path = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: "somebody/kernel"}))
    assert load(path).module.config._attn_implementation == "eager"


def test_nothing_is_fetched_while_the_module_is_made(saved, monkeypatch):
    import huggingface_hub

    offline = []
    construct = transformers.BertModel.__init__

    def recording(self, *arguments, **settings):
        offline.append(huggingface_hub.is_offline_mode())
        construct(self, *arguments, **settings)

    monkeypatch.setattr(transformers.BertModel, "__init__", recording)
    load(saved[2])
    assert offline == [True]
    assert not huggingface_hub.is_offline_mode()


def test_a_folder_with_quantized_weights_is_refused(saved, golden):
    _, folder, path = saved
    config = json.loads((folder / "config.json").read_text())
    quantized = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantized}))
    with pytest.raises(ModelConstructionFailed) as caught:
        load(path)
    golden(caught.value.why, "ValueError", "config.json")


def test_an_architecture_that_is_not_a_model_is_not_called(saved):
    _, folder, path = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["pipeline", "AutoConfig"]}))
    with pytest.raises(StateDoesNotFit):  # of the base model
        load(path)


def test_without_transformers_the_error_says_what_to_install(saved, monkeypatch, golden):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TransformersMissing) as caught:
        load(saved[2])
    golden(render_error(caught.value), "error[transformers-missing]", "model.entry", f"{saved[2]}:6: checkpoint.path")


def test_a_checkpoint_that_does_not_name_its_module_needs_an_entry(tmp_path, golden):
    torch.save({"w": torch.zeros(1)}, tmp_path / "best.pt")
    path = entryless(tmp_path, checkpoint={"path": "best.pt"})
    with pytest.raises(EntryNeeded) as caught:
        vet(path)
    golden(
        render_error(caught.value),
        "error[entry-needed]",
        "model.entry",
        "best.pt",
        f"{path}:4: model",
        "model.py:Net",
        ".pt2",
    )


def test_kwargs_without_an_entry_are_refused(tmp_path, golden):
    with pytest.raises(ManifestInvalid) as caught:
        manifest.load_manifest(entryless(tmp_path, model={"kwargs": {"width": 4}}))
    golden(caught.value.problems[0].message, "kwargs")


def test_a_config_of_too_many_values_is_refused_before_transformers_reads_it(saved, monkeypatch):
    _, folder, path = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": dict.fromkeys(range(200_000), "a")}))
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)
    with pytest.raises(ModelConstructionFailed) as caught:
        load(path)
    assert "values" in caught.value.why
