"""all-MiniLM-L6-v2 as sentence-transformers uses it: BERT, mean pooling over real tokens, unit length."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertModel


class SentenceEncoder(nn.Module):
    """Token ids and mask [batch, sequence] → embeddings [batch, 384] of length 1.

    The mask is made additive here, and attention is the plain ("eager") one: both are the forms
    whose graph onnxruntime runs fastest (see docs/benchmarks.md).
    """

    def __init__(self, config: str = "pretrained/config.json") -> None:
        super().__init__()
        settings = json.loads((Path(__file__).parent / config).read_text())
        self.bert = BertModel(BertConfig(**settings, attn_implementation="eager"), add_pooling_layer=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.to(self.bert.dtype)
        additive = (1.0 - mask[:, None, None, :]) * torch.finfo(self.bert.dtype).min
        embedded = self.bert.embeddings(input_ids=input_ids, token_type_ids=torch.zeros_like(input_ids))
        tokens = self.bert.encoder(embedded, attention_mask=additive).last_hidden_state
        weights = mask.unsqueeze(-1)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)
