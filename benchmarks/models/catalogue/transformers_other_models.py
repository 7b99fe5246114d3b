"""transformers, audio, time series and several modalities."""

from benchmarks.models.catalogue.entry import Dim, ZooModel, floats, ids, image, mask, module, text

SMALL = "hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024"
WAVE = {"samples": Dim(3200, 160000)}
CLIP_SMALL = "text_config=dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024), vision_config=dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)"


def _waveform(name: str, cls: str, config: str, output: str) -> ZooModel:
    """A model of a waveform of 16 kHz."""
    return ZooModel(
        name=f"transformers-{name}",
        library="transformers",
        source=module(
            "import transformers\n", f"transformers.{cls}({config})", "waveform", f"self.net(waveform).{output}"
        ),
        inputs={"waveform": floats("batch", "samples", range=(-1, 1))},
        dims=WAVE,
        outputs=(output,),
    )


_WAVEFORMS = (
    _waveform("wav2vec2", "Wav2Vec2ForCTC", f"transformers.Wav2Vec2Config({SMALL})", "logits"),
    _waveform("hubert", "HubertModel", f"transformers.HubertConfig({SMALL})", "last_hidden_state"),
    _waveform("wavlm", "WavLMModel", f"transformers.WavLMConfig({SMALL})", "last_hidden_state"),
    _waveform("sew", "SEWModel", f"transformers.SEWConfig({SMALL})", "last_hidden_state"),
    _waveform("unispeech-sat", "UniSpeechSatModel", f"transformers.UniSpeechSatConfig({SMALL})", "last_hidden_state"),
    _waveform("data2vec-audio", "Data2VecAudioModel", f"transformers.Data2VecAudioConfig({SMALL})", "last_hidden_state"),
    _waveform("wav2vec2-layernorm", "Wav2Vec2ForSequenceClassification", f"transformers.Wav2Vec2Config({SMALL}, feat_extract_norm='layer', do_stable_layer_norm=True)", "logits"),
)  # fmt: skip


def _model(
    name: str, imports: str, make: str, signature: str, call: str, inputs, dims=None, outputs=None, **more
) -> ZooModel:
    return ZooModel(
        name=f"transformers-{name}",
        library="transformers",
        source=module("import transformers\n" + imports, make, signature, call),
        inputs=inputs,
        dims=dims or {},
        outputs=outputs,
        **more,
    )


_WHISPER = "transformers.WhisperConfig(d_model=256, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024)"

_AUDIO = (
    _model("whisper-encoder", "", f"transformers.WhisperModel({_WHISPER}).encoder", "input_features",
           "self.net(input_features).last_hidden_state", {"input_features": floats("batch", 80, 3000)}, outputs=("last_hidden_state",)),
    _model("whisper-decoder", "", f"transformers.WhisperForConditionalGeneration({_WHISPER})", "decoder_input_ids, encoder_hidden_states",
           "self.net(decoder_input_ids=decoder_input_ids, encoder_outputs=(encoder_hidden_states,), use_cache=False).logits",
           {"decoder_input_ids": ids(51865, "batch", "tokens"), "encoder_hidden_states": floats("batch", 1500, 256)}, {"tokens": Dim(max=224)}, ("logits",)),
    _model("ast", "", f"transformers.ASTForAudioClassification(transformers.ASTConfig({SMALL}, max_length=256))", "input_values",
           "self.net(input_values).logits", {"input_values": floats("batch", 256, 128)}, outputs=("logits",)),
    _model("speech2text-encoder", "", "transformers.Speech2TextModel(transformers.Speech2TextConfig(encoder_layers=4, decoder_layers=2)).encoder", "input_features",
           "self.net(input_features).last_hidden_state", {"input_features": floats("batch", "frames", 80)}, {"frames": Dim(16, 2000)}, ("last_hidden_state",)),
    _model("speecht5-hifigan", "", "transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig())", "spectrogram",
           "self.net(spectrogram)", {"spectrogram": floats("batch", "frames", 80)}, {"frames": Dim(8, 400)}, ("waveform",)),
    _model("univnet", "", "transformers.UnivNetModel(transformers.UnivNetConfig())", "input_features, noise_sequence",
           "self.net(input_features=input_features, noise_sequence=noise_sequence).waveforms",
           {"input_features": floats("batch", "frames", 100), "noise_sequence": floats("batch", "frames", 64)}, {"frames": Dim(8, 400)}, ("waveforms",)),
    _model("encodec-encoder", "", "transformers.EncodecModel(transformers.EncodecConfig())", "waveform",
           "self.net.encoder(waveform)", {"waveform": floats("batch", 1, "samples", range=(-1, 1))}, {"samples": Dim(3200, 48000)}, ("embeddings",)),
    _model("encodec-decoder", "", "transformers.EncodecModel(transformers.EncodecConfig())", "embeddings",
           "self.net.decoder(embeddings)", {"embeddings": floats("batch", 128, "frames")}, {"frames": Dim(4, 300)}, ("waveform",)),
    _model("dac-decoder", "", "transformers.DacModel(transformers.DacConfig())", "latents",
           "self.net.decoder(latents)", {"latents": floats("batch", 1024, "frames")}, {"frames": Dim(4, 100)}, ("waveform",)),
    _model("dac-encoder", "", "transformers.DacModel(transformers.DacConfig())", "waveform",
           "self.net.encoder(waveform)", {"waveform": floats("batch", 1, "samples", range=(-1, 1))}, {"samples": Dim(2048, 48000)}, ("latents",)),
    _model("mimi-decoder-transformer", "", "transformers.MimiModel(transformers.MimiConfig(num_hidden_layers=2))", "codes",
           "self.net.decode(codes).audio_values", {"codes": ids(2048, "batch", 8, "frames")}, {"frames": Dim(4, 100)}, ("waveform",)),
    _model("clap-audio", "", "transformers.ClapAudioModelWithProjection(transformers.ClapAudioConfig(depths=[2, 2, 2, 2]))", "input_features",
           "self.net(input_features=input_features).audio_embeds", {"input_features": floats("batch", 1, 1001, 64)}, outputs=("audio_embeds",)),
    _model("wav2vec2-bert", "", f"transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig({SMALL}))", "input_features, attention_mask",
           "self.net(input_features=input_features, attention_mask=attention_mask).last_hidden_state",
           {"input_features": floats("batch", "frames", 160), "attention_mask": mask("batch", "frames")}, {"frames": Dim(4, 1000)}, ("last_hidden_state",)),
    _model("moonshine-encoder", "", "transformers.MoonshineModel(transformers.MoonshineConfig()).encoder", "waveform",
           "self.net(waveform).last_hidden_state", {"waveform": floats("batch", "samples", range=(-1, 1))}, {"samples": Dim(3200, 160000)}, ("last_hidden_state",)),
    _model("parakeet-encoder", "", "transformers.ParakeetEncoder(transformers.ParakeetEncoderConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024))", "input_features",
           "self.net(input_features).last_hidden_state", {"input_features": floats("batch", "frames", 80)}, {"frames": Dim(32, 2000)}, ("last_hidden_state",)),
    _model("fastspeech2-conformer", "", "transformers.FastSpeech2ConformerModel(transformers.FastSpeech2ConformerConfig(encoder_layers=2, decoder_layers=2))", "input_ids",
           "self.net(input_ids, return_dict=True).spectrogram", {"input_ids": ids(78, 1, "phonemes", low=1)}, {"phonemes": Dim(4, 200)}, ("spectrogram",)),
    _model("vits-text-encoder", "", "transformers.VitsModel(transformers.VitsConfig(num_hidden_layers=4)).text_encoder", "input_ids, padding_mask",
           "self.net(input_ids=input_ids, padding_mask=padding_mask.unsqueeze(-1).float()).last_hidden_state",
           {"input_ids": ids(38, "batch", "phonemes"), "padding_mask": mask("batch", "phonemes")}, {"phonemes": Dim(4, 200)}, ("last_hidden_state",)),
)  # fmt: skip

_SERIES = (
    _model("patchtst", "", "transformers.PatchTSTForPrediction(transformers.PatchTSTConfig(num_input_channels=7, context_length=96, patch_length=12, patch_stride=12, prediction_length=24))",
           "past_values", "self.net(past_values=past_values).prediction_outputs", {"past_values": floats("batch", 96, 7)}, outputs=("prediction",)),
    _model("patchtsmixer", "", "transformers.PatchTSMixerForPrediction(transformers.PatchTSMixerConfig(num_input_channels=7, context_length=96, patch_length=12, patch_stride=12, prediction_length=24))",
           "past_values", "self.net(past_values=past_values).prediction_outputs", {"past_values": floats("batch", 96, 7)}, outputs=("prediction",)),
    _model("informer-encoder", "", "transformers.InformerModel(transformers.InformerConfig(prediction_length=24, context_length=48, lags_sequence=[1], num_time_features=2, d_model=64, encoder_layers=2, decoder_layers=2)).encoder",
           "values", "self.net(inputs_embeds=values).last_hidden_state", {"values": floats("batch", 48, 5)}, outputs=("last_hidden_state",)),
    _model("autoformer", "", "transformers.AutoformerModel(transformers.AutoformerConfig(prediction_length=24, context_length=48, lags_sequence=[1, 2, 3], num_time_features=2))",
           "past_values, past_time_features, past_observed_mask, future_values, future_time_features",
           "self.net(past_values=past_values, past_time_features=past_time_features, past_observed_mask=past_observed_mask, future_values=future_values, future_time_features=future_time_features).last_hidden_state",
           {"past_values": floats("batch", 51), "past_time_features": floats("batch", 51, 2), "past_observed_mask": mask("batch", 51), "future_values": floats("batch", 24), "future_time_features": floats("batch", 24, 2)},
           outputs=("last_hidden_state",)),
    _model("time-series-transformer", "", "transformers.TimeSeriesTransformerModel(transformers.TimeSeriesTransformerConfig(prediction_length=24, context_length=48, lags_sequence=[1, 2, 3], num_time_features=2))",
           "past_values, past_time_features, past_observed_mask, future_values, future_time_features",
           "self.net(past_values=past_values, past_time_features=past_time_features, past_observed_mask=past_observed_mask, future_values=future_values, future_time_features=future_time_features).last_hidden_state",
           {"past_values": floats("batch", 51), "past_time_features": floats("batch", 51, 2), "past_observed_mask": mask("batch", 51), "future_values": floats("batch", 24), "future_time_features": floats("batch", 24, 2)},
           outputs=("last_hidden_state",)),
    _model("decision-transformer", "", "transformers.DecisionTransformerModel(transformers.DecisionTransformerConfig(hidden_size=128, n_layer=3, n_head=4))",
           "states, actions, returns_to_go, timesteps", "self.net(states=states, actions=actions, returns_to_go=returns_to_go, timesteps=timesteps, attention_mask=torch.ones_like(timesteps)).action_preds",
           {"states": floats("batch", "steps", 17), "actions": floats("batch", "steps", 4), "returns_to_go": floats("batch", "steps", 1), "timesteps": ids(1000, "batch", "steps")}, {"steps": Dim(max=60)}, ("actions_predicted",)),
    _model("timesfm", "", "transformers.TimesFmModel(transformers.TimesFmConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, head_dim=64, intermediate_size=256))",
           "past_values, past_values_padding, freq", "self.net(past_values=past_values, past_values_padding=past_values_padding, freq=freq).last_hidden_state",
           {"past_values": floats("batch", 512), "past_values_padding": mask("batch", 512), "freq": ids(3, "batch", 1)}, outputs=("last_hidden_state",)),
)  # fmt: skip

_TEXT_AND_IMAGE = {
    "input_ids": ids(30000, "batch", "sequence", low=5),
    "attention_mask": mask("batch", "sequence"),
    "pixel_values": image(3, 224, 224),
}

_SEVERAL = (
    _model("clip", "", f"transformers.CLIPModel(transformers.CLIPConfig({CLIP_SMALL}))", "input_ids, attention_mask, pixel_values",
           "self.net(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values).logits_per_image",
           {"input_ids": ids(49408, "texts", "sequence"), "attention_mask": mask("texts", "sequence"), "pixel_values": image(3, 224, 224)}, {"sequence": Dim(max=77)}, ("logits_per_image",)),
    _model("siglip", "", f"transformers.SiglipModel(transformers.SiglipConfig({CLIP_SMALL}))", "input_ids, pixel_values",
           "self.net(input_ids=input_ids, pixel_values=pixel_values).logits_per_image",
           {"input_ids": ids(32000, "texts", "sequence"), "pixel_values": image(3, 224, 224)}, {"sequence": Dim(max=64)}, ("logits_per_image",)),
    _model("blip", "", f"transformers.BlipForImageTextRetrieval(transformers.BlipConfig({CLIP_SMALL.replace('vision_config=dict(', 'vision_config=dict(image_size=224, ')}, projection_dim=256))", "input_ids, attention_mask, pixel_values",
           "self.net(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values).itm_score", _TEXT_AND_IMAGE, {"sequence": Dim(max=64)}, ("itm_score",)),
    _model("vilt", "", f"transformers.ViltModel(transformers.ViltConfig({SMALL}, image_size=224))", "input_ids, attention_mask, pixel_values",
           "self.net(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values).last_hidden_state", _TEXT_AND_IMAGE, {"sequence": Dim(max=40)}, ("last_hidden_state",)),
    _model("layoutlm", "", f"transformers.LayoutLMModel(transformers.LayoutLMConfig({SMALL}))", "input_ids, bbox, attention_mask",
           "self.net(input_ids=input_ids, bbox=bbox.cumsum(-1).clamp(max=1023), attention_mask=attention_mask).last_hidden_state",
           {"input_ids": ids(30522, "batch", "sequence"), "bbox": ids(250, "batch", "sequence", 4), "attention_mask": mask("batch", "sequence")}, {"sequence": Dim(max=512)}, ("last_hidden_state",)),
    _model("layoutlmv3", "", f"transformers.LayoutLMv3Model(transformers.LayoutLMv3Config(vocab_size=50265, {SMALL}, max_position_embeddings=514, coordinate_size=43, shape_size=42))", "input_ids, bbox, attention_mask, pixel_values",
           "self.net(input_ids=input_ids, bbox=bbox.cumsum(-1).clamp(max=1023), attention_mask=attention_mask, pixel_values=pixel_values).last_hidden_state",
           {"input_ids": ids(50265, "batch", "sequence", low=2), "bbox": ids(250, "batch", "sequence", 4), "attention_mask": mask("batch", "sequence"), "pixel_values": image(3, 224, 224)}, {"sequence": Dim(max=500)}, ("last_hidden_state",)),
    _model("clipseg", "", f"transformers.CLIPSegForImageSegmentation(transformers.CLIPSegConfig({CLIP_SMALL}, extract_layers=[1, 2, 3]))", "input_ids, attention_mask, pixel_values",
           "self.net(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values).logits",
           {"input_ids": ids(49408, "batch", "sequence"), "attention_mask": mask("batch", "sequence"), "pixel_values": image(3, 224, 224)}, {"sequence": Dim(max=77)}, ("logits",)),
    _model("trocr", "", "transformers.VisionEncoderDecoderModel(transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.DeiTConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768), transformers.TrOCRConfig(d_model=192, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=768, cross_attention_hidden_size=192)))",
           "pixel_values, decoder_input_ids", "self.net(pixel_values=pixel_values, decoder_input_ids=decoder_input_ids, use_cache=False).logits",
           {"pixel_values": image(3, 224, 224), "decoder_input_ids": ids(50265, "batch", "tokens", low=2)}, {"tokens": Dim(max=128)}, ("logits",)),
    _model("git", "", f"transformers.GitForCausalLM(transformers.GitConfig(vocab_size=30522, {SMALL}, vision_config=dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)))", "input_ids, attention_mask, pixel_values",
           "self.net(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, use_cache=False).logits", _TEXT_AND_IMAGE, {"sequence": Dim(max=128)}, ("logits",)),
    _model("owlvit", "", f"transformers.OwlViTForObjectDetection(transformers.OwlViTConfig({CLIP_SMALL.replace('vision_config=dict(', 'vision_config=dict(image_size=224, ')}, projection_dim=256))", "input_ids, attention_mask, pixel_values",
           "(lambda output: (output.logits, output.pred_boxes))(self.net(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values))",
           {"input_ids": ids(49408, 4, 16), "attention_mask": mask(4, 16), "pixel_values": floats(1, 3, 224, 224, range=(0, 1))}, outputs=("logits", "pred_boxes")),
    ZooModel(
        name="transformers-sam-mask-decoder",
        library="transformers",
        source=text("""
            from transformers import SamConfig, SamModel


            class Model(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.net = SamModel(SamConfig(vision_config=dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=2)))

                def forward(self, image_embeddings, input_points, input_labels):
                    output = self.net(
                        image_embeddings=image_embeddings, input_points=input_points, input_labels=input_labels
                    )
                    return output.pred_masks, output.iou_scores
            """),
        inputs={
            "image_embeddings": floats("batch", 256, 64, 64),
            "input_points": floats("batch", 1, "points", 2, range=(0, 1024)),
            "input_labels": mask("batch", 1, "points"),
        },
        dims={"points": Dim(max=10)},
        outputs=("pred_masks", "iou_scores"),
    ),
)  # fmt: skip

MODELS = (*_WAVEFORMS, *_AUDIO, *_SERIES, *_SEVERAL)
