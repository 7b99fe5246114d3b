"""transformers, text: encoders, heads, decoders, a decoder step with its cache, encoder-decoders."""

from benchmarks.models.catalogue.entry import Dim, Input, ZooModel, floats, ids, mask, module, text

SMALL = "hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536"
TINY = "hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024"
DECODER = f"vocab_size=32000, {TINY}, num_key_value_heads=4"
LENGTH = {"sequence": Dim(max=512)}


def _encoder(number: int, name: str, cls: str, config: str, vocabulary: int, lengths: Dim | None = None) -> ZooModel:
    """An encoder of tokens and their mask, with its last hidden state; the first word of `cls` names the config."""
    return ZooModel(
        name=f"transformers-{name}",
        library="transformers",
        source=module(
            "import transformers\n",
            f"transformers.{cls}({config})",
            "input_ids, attention_mask",
            "self.net(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state",
        ),
        inputs={"input_ids": ids(vocabulary, "batch", "sequence"), "attention_mask": mask("batch", "sequence")},
        dims={"sequence": lengths or Dim(max=512), **({"batch": Dim(max=32)} if number % 3 == 1 else {})},
        outputs=("last_hidden_state",),
        safetensors=number % 4 == 3,
    )


_ENCODERS = (
    ("bert", "BertModel", f"transformers.BertConfig({SMALL})", 30522),
    ("roberta", "RobertaModel", f"transformers.RobertaConfig({SMALL}, max_position_embeddings=514)", 50265, Dim(max=500)),
    ("distilbert", "DistilBertModel", "transformers.DistilBertConfig(dim=384, n_layers=6, n_heads=12, hidden_dim=1536)", 30522),
    ("albert", "AlbertModel", f"transformers.AlbertConfig({SMALL})", 30000),
    ("electra", "ElectraModel", "transformers.ElectraConfig()", 30522),
    ("deberta-v2", "DebertaV2Model", f"transformers.DebertaV2Config(vocab_size=32000, {SMALL}, relative_attention=True, "
     "position_buckets=256, norm_rel_ebd='layer_norm', share_att_key=True, pos_att_type='p2c|c2p')", 32000),
    ("deberta", "DebertaModel", f"transformers.DebertaConfig({SMALL}, relative_attention=True, pos_att_type=['c2p', 'p2c'])", 50265),
    ("mpnet", "MPNetModel", f"transformers.MPNetConfig({SMALL})", 30527, Dim(max=500)),
    ("modernbert", "ModernBertModel", f"transformers.ModernBertConfig(vocab_size=50368, {SMALL})", 50368, Dim(max=1024)),
    ("xlm-roberta", "XLMRobertaModel", f"transformers.XLMRobertaConfig(vocab_size=50000, {SMALL}, max_position_embeddings=514)", 50000, Dim(max=500)),
    ("roformer", "RoFormerModel", f"transformers.RoFormerConfig({SMALL})", 50000),
    ("squeezebert", "SqueezeBertModel", f"transformers.SqueezeBertConfig({SMALL}, embedding_size=384)", 30522),
    ("convbert", "ConvBertModel", f"transformers.ConvBertConfig({SMALL})", 30522),
    ("nystromformer", "NystromformerModel", f"transformers.NystromformerConfig({SMALL})", 30000, Dim(max=510)),
    ("mobilebert", "MobileBertModel", "transformers.MobileBertConfig(num_hidden_layers=12)", 30522),
    ("esm", "EsmModel", "transformers.EsmConfig(vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=320, "
     "num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280, position_embedding_type='rotary')", 33),
    ("funnel", "FunnelBaseModel", "transformers.FunnelConfig(block_sizes=[2, 2, 2], d_model=384, n_head=6, d_head=64, d_inner=1536)", 30522, Dim(8, 512)),
    ("longformer", "LongformerModel", f"transformers.LongformerConfig({SMALL}, attention_window=64, max_position_embeddings=1026)", 30522, Dim(max=1000)),
    ("big-bird", "BigBirdModel", f"transformers.BigBirdConfig({SMALL}, attention_type='original_full')", 50358),
    ("canine", "CanineModel", f"transformers.CanineConfig({SMALL})", 1000, Dim(16, 512)),
    ("ernie", "ErnieModel", f"transformers.ErnieConfig({SMALL})", 30522),
    ("rembert", "RemBertModel", f"transformers.RemBertConfig(vocab_size=50000, {SMALL}, input_embedding_size=128)", 50000),
    ("ibert", "IBertModel", f"transformers.IBertConfig({SMALL}, max_position_embeddings=514)", 30522, Dim(max=500)),
    ("xlnet", "XLNetModel", "transformers.XLNetConfig(d_model=384, n_layer=6, n_head=12, d_inner=1536)", 32000),
    ("megatron-bert", "MegatronBertModel", f"transformers.MegatronBertConfig({SMALL})", 29056),
    ("roberta-prelayernorm", "RobertaPreLayerNormModel", f"transformers.RobertaPreLayerNormConfig({SMALL}, max_position_embeddings=514)", 50265, Dim(max=500)),
    ("t5-encoder", "T5EncoderModel", "transformers.T5Config()", 32128),
    ("mt5-encoder", "MT5EncoderModel", "transformers.MT5Config(vocab_size=32000)", 32000),
    ("longt5-encoder", "LongT5EncoderModel", "transformers.LongT5Config(num_layers=4)", 32128),
    ("clip-text", "CLIPTextModel", "transformers.CLIPTextConfig(num_hidden_layers=6)", 49408, Dim(max=77)),
    ("siglip-text", "SiglipTextModel", "transformers.SiglipTextConfig(num_hidden_layers=6)", 32000, Dim(max=64)),
    ("eurobert", "EuroBertModel", f"transformers.EuroBertConfig(vocab_size=32000, pad_token_id=0, {SMALL}, num_key_value_heads=12)", 32000),
    ("nomic-bert", "NomicBertModel", f"transformers.NomicBertConfig({SMALL})", 30522),
)  # fmt: skip


def _causal(number: int, name: str, cls: str, config: str, vocabulary: int = 32000) -> ZooModel:
    """A language model without a cache: logits of all positions."""
    return ZooModel(
        name=f"transformers-{name}",
        library="transformers",
        source=module(
            "import transformers\n",
            f"transformers.{cls}({config})",
            "input_ids, attention_mask",
            "self.net(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits",
        ),
        inputs={"input_ids": ids(vocabulary, "batch", "sequence"), "attention_mask": mask("batch", "sequence")},
        dims={"batch": Dim(max=8), "sequence": Dim(max=256)} if number % 3 == 1 else {"sequence": Dim(max=1024)},
        outputs=("logits",),
    )


_CAUSAL = (
    ("gpt2", "GPT2LMHeadModel", "transformers.GPT2Config(n_embd=384, n_layer=6, n_head=12)", 50257),
    ("opt", "OPTForCausalLM", "transformers.OPTConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, ffn_dim=1024)", 50272),
    ("gpt-neo", "GPTNeoForCausalLM", "transformers.GPTNeoConfig(hidden_size=256, num_layers=4, num_heads=8, attention_types=[[['global', 'local'], 2]])", 50257),
    ("gpt-neox", "GPTNeoXForCausalLM", f"transformers.GPTNeoXConfig({TINY})", 50432),
    ("gptj", "GPTJForCausalLM", "transformers.GPTJConfig(n_embd=256, n_layer=4, n_head=4, rotary_dim=32)", 50400),
    ("codegen", "CodeGenForCausalLM", "transformers.CodeGenConfig(n_embd=256, n_layer=4, n_head=4, rotary_dim=32)", 50400),
    ("bloom", "BloomForCausalLM", "transformers.BloomConfig(vocab_size=32000, hidden_size=256, n_layer=4, n_head=8)"),
    ("falcon", "FalconForCausalLM", "transformers.FalconConfig(vocab_size=32000, hidden_size=256, num_hidden_layers=4, num_attention_heads=8)"),
    ("mpt", "MptForCausalLM", "transformers.MptConfig(vocab_size=32000, d_model=256, n_layers=4, n_heads=8)"),
    ("llama", "LlamaForCausalLM", f"transformers.LlamaConfig({DECODER})"),
    ("mistral", "MistralForCausalLM", f"transformers.MistralConfig({DECODER}, sliding_window=64)"),
    ("qwen2", "Qwen2ForCausalLM", f"transformers.Qwen2Config({DECODER})"),
    ("qwen3", "Qwen3ForCausalLM", f"transformers.Qwen3Config({DECODER}, head_dim=32)"),
    ("gemma2", "Gemma2ForCausalLM", f"transformers.Gemma2Config({DECODER}, head_dim=32)"),
    ("gemma3", "Gemma3ForCausalLM", f"transformers.Gemma3TextConfig({DECODER}, head_dim=32, sliding_window=64)"),
    ("phi", "PhiForCausalLM", f"transformers.PhiConfig({DECODER})"),
    ("phi3", "Phi3ForCausalLM", f"transformers.Phi3Config({DECODER}, pad_token_id=0)"),
    ("stablelm", "StableLmForCausalLM", f"transformers.StableLmConfig({DECODER})"),
    ("olmo2", "Olmo2ForCausalLM", f"transformers.Olmo2Config({DECODER})"),
    ("smollm3", "SmolLM3ForCausalLM", f"transformers.SmolLM3Config({DECODER}, pad_token_id=0)"),
    ("granite", "GraniteForCausalLM", f"transformers.GraniteConfig({DECODER})"),
    ("cohere", "CohereForCausalLM", f"transformers.CohereConfig({DECODER})"),
    ("starcoder2", "Starcoder2ForCausalLM", f"transformers.Starcoder2Config({DECODER})"),
    ("xglm", "XGLMForCausalLM", "transformers.XGLMConfig(vocab_size=32000, d_model=256, num_layers=4, attention_heads=8, ffn_dim=1024)"),
    ("biogpt", "BioGptForCausalLM", f"transformers.BioGptConfig({TINY})", 42384),
    ("mixtral", "MixtralForCausalLM", f"transformers.MixtralConfig({DECODER}, num_local_experts=4)"),
    ("qwen3-moe", "Qwen3MoeForCausalLM", f"transformers.Qwen3MoeConfig({DECODER}, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=256, head_dim=32)"),
    ("gpt-oss", "GptOssForCausalLM", f"transformers.GptOssConfig({DECODER}, num_local_experts=4, num_experts_per_tok=2, head_dim=32, sliding_window=64)"),
    ("mamba", "MambaForCausalLM", "transformers.MambaConfig(vocab_size=32000, hidden_size=256, num_hidden_layers=4)"),
    ("mamba2", "Mamba2ForCausalLM", "transformers.Mamba2Config(vocab_size=32000, hidden_size=256, num_hidden_layers=2, num_heads=8, head_dim=64, chunk_size=64)"),
    ("recurrent-gemma", "RecurrentGemmaForCausalLM", f"transformers.RecurrentGemmaConfig(vocab_size=32000, {TINY}, num_key_value_heads=4)"),
    ("lfm2", "Lfm2ForCausalLM", f"transformers.Lfm2Config({DECODER})"),
)  # fmt: skip


def _mask_free(model: ZooModel) -> ZooModel:
    """The same without a mask, for modules that take none."""
    source = model.source.replace("input_ids, attention_mask)", "input_ids)").replace(
        ", attention_mask=attention_mask", ""
    )
    inputs = {name: spec for name, spec in model.inputs.items() if name != "attention_mask"}
    return ZooModel(model.name, model.library, source, inputs, model.dims, model.outputs)


def _bert_head(name: str, head: str, outputs: tuple[str, ...]) -> ZooModel:
    call = "self.net(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)"
    return ZooModel(
        name=f"transformers-bert-{name}",
        library="transformers",
        source=module(
            "import transformers\n",
            f"transformers.{head}(transformers.BertConfig({SMALL}))",
            "input_ids, attention_mask, token_type_ids",
            call,
        ),
        inputs={
            "input_ids": ids(30522, "batch", "sequence"),
            "attention_mask": mask("batch", "sequence"),
            "token_type_ids": mask("batch", "sequence"),
        },
        dims=LENGTH,
        outputs=outputs,
    )


_HEADS = (
    _bert_head("classifier", "BertForSequenceClassification", ("logits",)),
    _bert_head("tokens", "BertForTokenClassification", ("logits",)),
    _bert_head("answers", "BertForQuestionAnswering", ("start_logits", "end_logits")),
    _bert_head("masked-words", "BertForMaskedLM", ("logits",)),
)

_GPT2_STEP = text("""
    from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel


    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = GPT2LMHeadModel(GPT2Config(n_embd=256, n_layer=2, n_head=8))

        def forward(self, input_ids, attention_mask, key_0, value_0, key_1, value_1):
            cache = DynamicCache()
            cache.update(key_0, value_0, 0)
            cache.update(key_1, value_1, 1)
            output = self.net(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
            new = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
            return output.logits, *new
    """)

_LLAMA_STEP = text(f"""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    LAYERS = 4


    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = LlamaForCausalLM(LlamaConfig({DECODER}))

        def forward(self, input_ids, past):
            cache = DynamicCache()
            for layer in range(LAYERS):
                cache.update(past[layer, 0], past[layer, 1], layer)
            output = self.net(input_ids=input_ids, past_key_values=cache, use_cache=True)
            layers = output.past_key_values.layers
            return output.logits, torch.stack([torch.stack((layer.keys, layer.values)) for layer in layers])
    """)


def _past(*, heads: int) -> Input:
    return floats("batch", heads, "past", 32)


_STEPS = (
    ZooModel(
        name="transformers-gpt2-step",
        library="transformers",
        source=_GPT2_STEP,
        inputs={
            "input_ids": ids(50257, "batch", 1),
            "attention_mask": mask("batch", "total"),
            "key_0": _past(heads=8), "value_0": _past(heads=8), "key_1": _past(heads=8), "value_1": _past(heads=8),
        },
        dims={"past": Dim(7, 7), "total": Dim(8, 8)},
        outputs=("logits", "new_key_0", "new_value_0", "new_key_1", "new_value_1"),
    ),
    ZooModel(
        name="transformers-llama-step",
        library="transformers",
        source=_LLAMA_STEP,
        inputs={"input_ids": ids(32000, "batch", 1), "past": floats(4, 2, "batch", 4, "past", 32)},
        dims={"past": Dim(max=500)},
        outputs=("logits", "new_past"),
    ),
    ZooModel(
        name="transformers-qwen2-step",
        library="transformers",
        source=_LLAMA_STEP.replace("LlamaConfig", "Qwen2Config").replace("LlamaForCausalLM", "Qwen2ForCausalLM"),
        inputs={"input_ids": ids(32000, "batch", "new"), "past": floats(4, 2, "batch", 4, "past", 32)},
        dims={"past": Dim(max=500), "new": Dim(max=16)},
        outputs=("logits", "new_past"),
    ),
)  # fmt: skip


def _seq2seq(name: str, cls: str, config: str, vocabulary: int) -> ZooModel:
    """An encoder-decoder as a whole: logits of the target's positions."""
    return ZooModel(
        name=f"transformers-{name}",
        library="transformers",
        source=module(
            "import transformers\n",
            f"transformers.{cls}({config})",
            "input_ids, attention_mask, decoder_input_ids",
            "self.net(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, "
            "use_cache=False).logits",
        ),
        inputs={
            "input_ids": ids(vocabulary, "batch", "source", low=2),
            "attention_mask": mask("batch", "source"),
            "decoder_input_ids": ids(vocabulary, "batch", "target", low=2),
        },
        dims={"source": Dim(2, 512), "target": Dim(max=128)},
        outputs=("logits",),
    )


_BART = "d_model=256, encoder_layers=3, decoder_layers=3, encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=1024, decoder_ffn_dim=1024"

_SEQ2SEQ = (
    _seq2seq("t5", "T5ForConditionalGeneration", "transformers.T5Config(num_layers=4)", 32128),
    _seq2seq("bart", "BartForConditionalGeneration", f"transformers.BartConfig({_BART})", 50265),
    _seq2seq("marian", "MarianMTModel", f"transformers.MarianConfig(vocab_size=32000, pad_token_id=1, {_BART})", 32000),
    _seq2seq("pegasus", "PegasusForConditionalGeneration", f"transformers.PegasusConfig(vocab_size=32000, {_BART})", 32000),
    _seq2seq("mbart", "MBartForConditionalGeneration", f"transformers.MBartConfig(vocab_size=32000, {_BART})", 32000),
    _seq2seq("m2m100", "M2M100ForConditionalGeneration", f"transformers.M2M100Config(vocab_size=32000, {_BART})", 32000),
    _seq2seq("blenderbot-small", "BlenderbotSmallForConditionalGeneration", f"transformers.BlenderbotSmallConfig(vocab_size=32000, {_BART})", 32000),
    _seq2seq("plbart", "PLBartForConditionalGeneration", f"transformers.PLBartConfig(vocab_size=32000, {_BART})", 32000),
    _seq2seq("switch", "SwitchTransformersForConditionalGeneration", "transformers.SwitchTransformersConfig(num_layers=2, num_sparse_encoder_layers=1, num_decoder_layers=2, num_sparse_decoder_layers=1, d_model=256, d_ff=512)", 32128),
    ZooModel(
        name="transformers-t5-decoder-step",
        library="transformers",
        source=module(
            "import transformers\n", "transformers.T5ForConditionalGeneration(transformers.T5Config(num_layers=4))",
            "decoder_input_ids, encoder_hidden_states, encoder_attention_mask",
            "self.net(decoder_input_ids=decoder_input_ids, encoder_outputs=(encoder_hidden_states,), "
            "attention_mask=encoder_attention_mask, use_cache=False).logits",
        ),
        inputs={
            "decoder_input_ids": ids(32128, "batch", "target"),
            "encoder_hidden_states": floats("batch", "source", 512),
            "encoder_attention_mask": mask("batch", "source"),
        },
        dims={"target": Dim(max=128), "source": Dim(max=512)},
        outputs=("logits",),
    ),
)  # fmt: skip

_MASK_FREE = ("mamba", "mamba2")

MODELS = (
    *(_encoder(number, *entry) for number, entry in enumerate(_ENCODERS)),
    *_HEADS,
    *(
        _mask_free(_causal(number, *entry)) if entry[0] in _MASK_FREE else _causal(number, *entry)
        for number, entry in enumerate(_CAUSAL)
    ),
    *_STEPS,
    *_SEQ2SEQ,
)
