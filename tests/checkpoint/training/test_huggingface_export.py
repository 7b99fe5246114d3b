"""An export for Hugging Face is loaded by transformers itself."""

import os

import pytest
import torch

from packager.checkpoint.training.huggingface_export import export_huggingface
from packager.errors import HuggingFaceExportRefused, render_error

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    config = transformers.BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    return transformers.BertModel(config).eval()


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "vocabulary"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return transformers.BertTokenizer(str(tmp_path / "vocab.txt"))


def test_transformers_loads_the_same_model_and_tokenizer_from_the_folder(model, tokenizer, tmp_path):
    folder = export_huggingface(torch.nn.DataParallel(model), tmp_path / "out", tokenizer)
    loaded = transformers.AutoModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = words(["a small vocabulary"], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], tokenizer(["a small vocabulary"], return_tensors="pt")["input_ids"])
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    assert (folder / "model.safetensors").is_file()
    assert sorted(os.listdir(tmp_path)) == ["out", "vocab.txt"]


def test_an_earlier_export_is_replaced(model, tokenizer, tmp_path):
    export_huggingface(model, tmp_path / "out", tokenizer)
    export_huggingface(model, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_a_folder_of_something_else_is_refused(model, tmp_path, golden):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HuggingFaceExportRefused) as caught:
        export_huggingface(model, tmp_path)
    golden(render_error(caught.value), "error[huggingface-export]", tmp_path)


def test_a_module_that_cannot_save_itself_is_refused(tmp_path, golden):
    with pytest.raises(HuggingFaceExportRefused) as caught:
        export_huggingface(torch.nn.Linear(1, 1), tmp_path / "out")
    golden(caught.value.why, "save_pretrained")
    assert os.listdir(tmp_path) == []
