"""Small but genuine PyTorch architectures, as people write them, with the manifests to package them.

Each is a source text for `project()` in tests/projects.py: a few thousand parameters, with the layers, names and idioms
of its kind. `write` gives it weights as if it had been trained: biases, norms, running statistics and tokens that a
constructor leaves at 0 or 1 would hide that they are left out or mixed up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from projects import project

EXAMPLE = (2, 9, 10, 11)
"""The sizes of the named dims, in order, that a careless tool would keep from its example."""


@dataclass(frozen=True)
class Architecture:
    """A model: `entry` is the class in `source`, or a function that returns the module.

    The other fields go into the manifest, `sections` as they are. The constructor of a `pretrained` model loads the
    weights; `write` gives others weights as if they had been trained.
    """

    name: str
    entry: str
    source: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    dims: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False

    def sizes(self, wanted: Sequence[int] = EXAMPLE) -> dict[str, int]:
        """Return sizes of the dims by name: those that are wanted, in order, clamped to the limits."""
        return {
            name: min(max(size, limits["min"]), limits["max"])
            for (name, limits), size in zip(self.dims.items(), wanted, strict=False)
        }

    @property
    def examples(self) -> tuple[dict[str, int], dict[str, int]]:
        """Two choices of sizes that differ in every dim whose limits allow it."""
        return self.sizes(), self.sizes([size + 1 for size in EXAMPLE])


def write(architecture: Architecture, folder: Path, **sections: Any) -> Path:
    """Write the architecture's project into `folder`; returns the path of its manifest. `sections` are added to it."""
    return project(
        folder,
        architecture.source,
        name=architecture.name,
        entry=f"model.py:{architecture.entry}",
        kwargs=dict(architecture.kwargs),
        state=_trained(architecture),
        inputs=dict(architecture.inputs),
        outputs=list(architecture.outputs),
        dims=dict(architecture.dims),
        **{**architecture.sections, **sections},
    )


def construct(architecture: Architecture) -> Any:
    """Return the module that the architecture's source constructs with seed 0."""
    import torch  # not for the tests that need no project

    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "model"}
    exec(architecture.source, namespace)
    return namespace[architecture.entry](**architecture.kwargs)


def _trained(architecture: Architecture) -> dict[str, Any]:
    """Return the state_dict of the module with seed 0, with noise on everything that training would have changed."""
    import torch

    module = construct(architecture)
    if architecture.pretrained:
        return dict(module.state_dict())
    statistics = {name for name, _ in module.named_buffers() if name.endswith(("running_mean", "running_var"))}
    moved = {name for name, value in module.named_parameters() if value.dim() < 2 or not value.any()}
    state = module.state_dict()
    for name in sorted(statistics | moved):
        noise = torch.rand(state[name].shape) - 0.5
        state[name] = state[name] + noise * (1.0 if name in statistics else 0.4)
    return dict(state)


def _floats(*shape: int | str, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    limits = {} if low is None else {"range": [low, high]}
    return {"dtype": "float32", "shape": list(shape), **limits}


def _integers(*shape: int | str, below: int, dtype: str = "int64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "range": [0, below]}


_BATCH = {"batch": {"min": 1, "max": 8}}
_SEQUENCES = {**_BATCH, "length": {"min": 1, "max": 12}}

# -- images ---------------------------------------------------------------------------------

CONVNET = Architecture(
    name="convnet",
    entry="ConvNet",
    inputs={"image": _floats("batch", 3, 16, 16, low=0, high=1)},
    outputs=("logits",),
    dims=_BATCH,
    kwargs={"num_classes": 10},
    source="""
import torch
from torch import nn
import torch.nn.functional as F


class ConvNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1, count_include_pad=False)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(12 * 4 * 4, 24)
        self.fc2 = nn.Linear(24, num_classes)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(F.leaky_relu(self.bn2(self.conv2(x)), 0.1))
        x = torch.flatten(x, 1)
        x = self.dropout(F.relu(self.fc1(x)))
        return self.fc2(x)
""",
)

RESNET = Architecture(
    name="resnet",
    entry="ResNet",
    inputs={"image": _floats("batch", 3, 16, 16)},
    outputs=("logits", "features"),
    dims=_BATCH,
    kwargs={"layers": [1, 2], "num_classes": 5},
    source="""
import torch
from torch import nn


def conv3x3(in_planes, out_planes, stride=1):
    return nn.Conv2d(in_planes, out_planes, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, layers, num_classes):
        super().__init__()
        self.inplanes = 8
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(8, layers[0])
        self.layer2 = self._make_layer(16, layers[1], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, num_classes)

    def _make_layer(self, planes, blocks, stride=1):
        downsample = None
        if stride != 1 or self.inplanes != planes:
            downsample = nn.Sequential(
                nn.Conv2d(self.inplanes, planes, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(planes),
            )
        layers = [BasicBlock(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes
        layers += [BasicBlock(planes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        features = torch.flatten(self.avgpool(x), 1)
        return self.fc(features), features
""",
)

VIT = Architecture(
    name="vit",
    entry="VisionTransformer",
    inputs={"pixel_values": _floats("batch", 3, 16, 16)},
    outputs=("logits",),
    dims=_BATCH,
    kwargs={"depth": 2, "num_heads": 4, "embed_dim": 16},
    source="""
import torch
from torch import nn


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch_size, in_chans, embed_dim):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio=2):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim * mlp_ratio), nn.GELU(), nn.Dropout(0.1), nn.Linear(dim * mlp_ratio, dim)
        )

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, img_size=16, patch_size=4, in_chans=3, num_classes=6, embed_dim=16, depth=2, num_heads=4):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.Sequential(*[Block(embed_dim, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x):
        x = self.patch_embed(x)
        cls_tokens = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((cls_tokens, x), dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])
""",
)

UNET = Architecture(
    name="unet",
    entry="UNet",
    inputs={"image": _floats("batch", 1, "height", "width", low=0, high=1)},
    outputs=("mask",),
    dims={"batch": {"min": 1, "max": 3}, "height": {"min": 8, "max": 20}, "width": {"min": 8, "max": 20}},
    kwargs={"base": 6},
    source="""
import torch
from torch import nn
import torch.nn.functional as F


class DoubleConv(nn.Sequential):
    def __init__(self, in_channels, out_channels):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    def __init__(self, in_channels, out_channels, bilinear):
        super().__init__()
        self.up = None if bilinear else nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_channels + out_channels if bilinear else 2 * out_channels, out_channels)

    def forward(self, x, skip):
        if self.up is not None:
            x = self.up(x)
            diff_y, diff_x = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [diff_x // 2, diff_x - diff_x // 2, diff_y // 2, diff_y - diff_y // 2])
        else:
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    def __init__(self, n_channels=1, n_classes=2, base=6):
        super().__init__()
        self.inc = DoubleConv(n_channels, base)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(base, 2 * base))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(2 * base, 4 * base))
        self.up1 = Up(4 * base, 2 * base, bilinear=False)
        self.up2 = Up(2 * base, base, bilinear=True)
        self.outc = nn.Conv2d(base, n_classes, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up2(self.up1(x3, x2), x1)
        return torch.softmax(self.outc(x), dim=1)
""",
)

DETECTOR = Architecture(
    name="detector",
    entry="SingleShotDetector",
    inputs={"image": _floats("batch", 3, 24, 24)},  # no range: a plain image has ties, which topk breaks as it likes
    outputs=("boxes", "scores", "labels"),
    dims={"batch": {"min": 1, "max": 4}},
    kwargs={"num_classes": 3, "detections_per_image": 10},
    source="""
import math

import torch
from torch import nn


def make_anchors(size, stride, scales):
    centers = (torch.arange(size) + 0.5) * stride
    cy, cx = torch.meshgrid(centers, centers, indexing="ij")
    anchors = [torch.stack([cx, cy, torch.full_like(cx, s), torch.full_like(cy, s)], -1) for s in scales]
    return torch.stack(anchors, 2).reshape(-1, 4)


class Head(nn.Module):
    def __init__(self, in_channels, num_anchors, num_outputs):
        super().__init__()
        self.num_outputs = num_outputs
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.predictor = nn.Conv2d(in_channels, num_anchors * num_outputs, 1)

    def forward(self, features):
        out = self.predictor(torch.relu(self.conv(features)))
        return out.permute(0, 2, 3, 1).reshape(out.shape[0], -1, self.num_outputs)


class SingleShotDetector(nn.Module):
    def __init__(self, num_classes, image_size=24, detections_per_image=10):
        super().__init__()
        scales = (6.0, 12.0)
        self.image_size = image_size
        self.detections_per_image = detections_per_image
        self.bbox_xform_clip = math.log(1000.0 / 16)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        )
        self.classification_head = Head(16, len(scales), num_classes)
        self.regression_head = Head(16, len(scales), 4)
        self.register_buffer("anchors", make_anchors(image_size // 4, 4, scales), persistent=False)

    def decode(self, deltas):
        centers = self.anchors[:, :2] + deltas[..., :2] * self.anchors[:, 2:]
        sizes = self.anchors[:, 2:] * torch.exp(deltas[..., 2:].clamp(max=self.bbox_xform_clip))
        boxes = torch.cat([centers - 0.5 * sizes, centers + 0.5 * sizes], dim=-1)
        return boxes.clamp(min=0, max=self.image_size)

    def forward(self, images):
        features = self.backbone(images)
        scores = torch.sigmoid(self.classification_head(features))
        boxes = self.decode(self.regression_head(features))
        best, labels = scores.max(dim=-1)
        top, keep = best.topk(self.detections_per_image, dim=1)
        return {
            "boxes": boxes.gather(1, keep.unsqueeze(-1).expand(-1, -1, 4)),
            "scores": top,
            "labels": labels.gather(1, keep),
        }
""",
)

MIXER = Architecture(
    name="mixer",
    entry="MlpMixer",
    inputs={"image": _floats("batch", 3, 12, 12)},
    outputs=("logits",),
    dims=_BATCH,
    kwargs={"hidden_dim": 12},
    source="""
from torch import nn
import torch.nn.functional as F


class MlpBlock(nn.Module):
    def __init__(self, dim, mlp_dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    def __init__(self, num_tokens, hidden_dim):
        super().__init__()
        self.norm_tokens = nn.LayerNorm(hidden_dim)
        self.token_mixing = MlpBlock(num_tokens, 2 * num_tokens)
        self.norm_channels = nn.LayerNorm(hidden_dim)
        self.channel_mixing = MlpBlock(hidden_dim, 2 * hidden_dim)

    def forward(self, x):
        x = x + self.token_mixing(self.norm_tokens(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixing(self.norm_channels(x))


class MlpMixer(nn.Module):
    def __init__(self, patch=4, num_tokens=9, hidden_dim=12, num_blocks=2, num_classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, hidden_dim, kernel_size=patch, stride=patch)
        self.blocks = nn.ModuleList([MixerBlock(num_tokens, hidden_dim) for _ in range(num_blocks)])
        self.pre_head_norm = nn.LayerNorm(hidden_dim)
        self.head = nn.Linear(hidden_dim, num_classes)

    def forward(self, x):
        x = self.stem(x)
        b, c, h, w = x.shape
        x = x.view(b, c, h * w).permute(0, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pre_head_norm(x).mean(dim=1))
""",
)

MOBILENET = Architecture(
    name="mobilenet",
    entry="MobileNet",
    inputs={"image": _floats("batch", 3, 16, 16)},
    outputs=("probabilities",),
    dims=_BATCH,
    source="""
from torch import nn
import torch.nn.functional as F


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeeze_channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, channels, 1)

    def forward(self, x):
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = F.hardsigmoid(self.fc2(F.relu(self.fc1(scale))))
        return scale * x


class InvertedResidual(nn.Module):
    def __init__(self, inp, oup, stride, expand_ratio):
        super().__init__()
        hidden = inp * expand_ratio
        self.use_res_connect = stride == 1 and inp == oup
        self.block = nn.Sequential(
            nn.Conv2d(inp, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden, eps=0.001, momentum=0.01),
            nn.Hardswish(inplace=True),
            nn.Conv2d(hidden, hidden, 5, stride, padding=2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden, eps=0.001, momentum=0.01),
            nn.ReLU6(inplace=True),
            SqueezeExcitation(hidden, 4),
            nn.Conv2d(hidden, oup, 1, bias=False),
            nn.BatchNorm2d(oup, eps=0.001, momentum=0.01),
        )

    def forward(self, x):
        result = self.block(x)
        return x + result if self.use_res_connect else result


class MobileNet(nn.Module):
    def __init__(self, num_classes=6):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8, eps=0.001, momentum=0.01),
            nn.Hardswish(),
            InvertedResidual(8, 8, 1, 2),
            InvertedResidual(8, 12, 2, 3),
        )
        self.classifier = nn.Sequential(
            nn.Linear(12, 16), nn.Hardswish(inplace=True), nn.Dropout(p=0.2), nn.Linear(16, num_classes)
        )

    def forward(self, x):
        x = self.features(x)
        x = x.mean([2, 3])
        return F.softmax(self.classifier(x), dim=-1)
""",
)

AUTOENCODER = Architecture(
    name="autoencoder",
    entry="AutoEncoder",
    inputs={"x": _floats("batch", 3, 16, 16, low=-1, high=1)},
    outputs=("reconstruction", "latent"),
    dims={"batch": {"min": 1, "max": 4}},
    source="""
import torch
from torch import nn


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.PReLU(channels),
        )

    def forward(self, x):
        return x + self.block(x)


class AutoEncoder(nn.Module):
    def __init__(self, dim=6, latent_dim=10):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, dim, 4, stride=2, padding=1),
            nn.InstanceNorm2d(dim, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim, 2 * dim, 4, stride=2, padding=1),
            nn.InstanceNorm2d(2 * dim, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.bottleneck = ResidualBlock(2 * dim)
        self.to_latent = nn.Linear(2 * dim * 4 * 4, latent_dim)
        self.from_latent = nn.Linear(latent_dim, 2 * dim * 4 * 4)
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (2 * dim, 4, 4)),
            nn.ConvTranspose2d(2 * dim, dim, 4, stride=2, padding=1),
            nn.InstanceNorm2d(dim, affine=True),
            nn.ELU(),
            nn.ConvTranspose2d(dim, 3, 3, stride=2, padding=1, output_padding=1),
        )

    def forward(self, x):
        h = self.bottleneck(self.encoder(x))
        z = self.to_latent(h.flatten(1))
        return torch.tanh(self.decoder(self.from_latent(z))), z
""",
)

# -- sequences ------------------------------------------------------------------------------

BERT = Architecture(
    name="bert",
    entry="BertModel",
    inputs={
        "input_ids": _integers("batch", "length", below=50),
        "attention_mask": _integers("batch", "length", below=2),
        "token_type_ids": _integers("batch", "length", below=2),
    },
    outputs=("last_hidden_state", "pooler_output"),
    dims=_SEQUENCES,
    kwargs={"num_hidden_layers": 2},
    source="""
import math

import torch
from torch import nn
import torch.nn.functional as F


class BertEmbeddings(nn.Module):
    def __init__(self, vocab_size, hidden_size, max_position_embeddings):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(max_position_embeddings, hidden_size)
        self.token_type_embeddings = nn.Embedding(2, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(max_position_embeddings).expand((1, -1)))

    def forward(self, input_ids, token_type_ids):
        position_ids = self.position_ids[:, : input_ids.size(1)]
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))


class BertSelfAttention(nn.Module):
    def __init__(self, hidden_size, num_attention_heads):
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.attention_head_size = hidden_size // num_attention_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def transpose_for_scores(self, x):
        x = x.view(x.size(0), x.size(1), self.num_attention_heads, self.attention_head_size)
        return x.permute(0, 2, 1, 3)

    def forward(self, hidden_states, attention_mask):
        query = self.transpose_for_scores(self.query(hidden_states))
        key = self.transpose_for_scores(self.key(hidden_states))
        value = self.transpose_for_scores(self.value(hidden_states))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        probs = F.softmax(scores + attention_mask, dim=-1)
        context = torch.matmul(probs, value).permute(0, 2, 1, 3).contiguous()
        return context.view(context.size(0), context.size(1), -1)


class BertLayer(nn.Module):
    def __init__(self, hidden_size, num_attention_heads, intermediate_size):
        super().__init__()
        self.attention = BertSelfAttention(hidden_size, num_attention_heads)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.intermediate = nn.Linear(hidden_size, intermediate_size)
        self.output = nn.Linear(intermediate_size, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, hidden_states, attention_mask):
        attended = self.attention_output(self.attention(hidden_states, attention_mask))
        hidden_states = self.attention_norm(attended + hidden_states)
        intermediate = F.gelu(self.intermediate(hidden_states), approximate="tanh")
        return self.output_norm(self.output(intermediate) + hidden_states)


class BertModel(nn.Module):
    def __init__(self, vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4):
        super().__init__()
        self.embeddings = BertEmbeddings(vocab_size, hidden_size, max_position_embeddings=16)
        self.encoder = nn.ModuleList(
            [BertLayer(hidden_size, num_attention_heads, 2 * hidden_size) for _ in range(num_hidden_layers)]
        )
        self.pooler = nn.Linear(hidden_size, hidden_size)

    def forward(self, input_ids, attention_mask, token_type_ids):
        extended = attention_mask[:, None, None, :].to(dtype=self.pooler.weight.dtype)
        extended = (1.0 - extended) * -10000.0
        hidden_states = self.embeddings(input_ids, token_type_ids)
        for layer in self.encoder:
            hidden_states = layer(hidden_states, extended)
        return hidden_states, torch.tanh(self.pooler(hidden_states[:, 0]))
""",
)

GPT = Architecture(
    name="gpt",
    entry="GPT",
    inputs={"idx": _integers("batch", "length", below=40)},
    outputs=("logits",),
    dims=_SEQUENCES,
    kwargs={"vocab_size": 40, "block_size": 16},
    source="""
import math

import torch
from torch import nn
import torch.nn.functional as F


class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(0.1)
        mask = torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size)
        self.register_buffer("bias", mask)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, block_size)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(n_embd, 4 * n_embd), "c_proj": nn.Linear(4 * n_embd, n_embd)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer=2, n_head=2, n_embd=12):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList([Block(n_embd, n_head, block_size) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx):
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))
""",
)

LLAMA = Architecture(
    name="llama",
    entry="Llama",
    inputs={"tokens": _integers("batch", "length", below=32)},
    outputs=("logits",),
    dims=_SEQUENCES,
    source="""
import torch
from torch import nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class Attention(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)

    def forward(self, x, cos, sin):
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim).transpose(1, 2)
        xk = self.wk(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim).transpose(1, 2)
        xv = self.wv(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim).transpose(1, 2)
        xq, xk = xq * cos + rotate_half(xq) * sin, xk * cos + rotate_half(xk) * sin
        xk = xk.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        xv = xv.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        output = F.scaled_dot_product_attention(xq, xk, xv, is_causal=True)
        return self.wo(output.transpose(1, 2).reshape(bsz, seqlen, -1))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads):
        super().__init__()
        self.attention = Attention(dim, n_heads, n_kv_heads)
        self.feed_forward = FeedForward(dim, 2 * dim)
        self.attention_norm = RMSNorm(dim)
        self.ffn_norm = RMSNorm(dim)

    def forward(self, x, cos, sin):
        h = x + self.attention(self.attention_norm(x), cos, sin)
        return h + self.feed_forward(self.ffn_norm(h))


class Llama(nn.Module):
    def __init__(self, vocab_size=32, dim=16, n_layers=1, n_heads=4, n_kv_heads=2, max_seq_len=16):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList([TransformerBlock(dim, n_heads, n_kv_heads) for _ in range(n_layers)])
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        head_dim = dim // n_heads
        inv_freq = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim))
        freqs = torch.outer(torch.arange(max_seq_len).float(), inv_freq)
        self.register_buffer("cos", torch.cat((freqs, freqs), dim=-1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((freqs, freqs), dim=-1).sin(), persistent=False)

    def forward(self, tokens):
        seqlen = tokens.shape[1]
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h, self.cos[:seqlen], self.sin[:seqlen])
        return self.output(self.norm(h)).float()
""",
)

LSTM = Architecture(
    name="lstm",
    entry="SentimentLSTM",
    inputs={"tokens": _integers("batch", "length", below=30)},
    outputs=("score", "hidden"),
    dims=_SEQUENCES,
    source="""
import torch
from torch import nn


class SentimentLSTM(nn.Module):
    def __init__(self, vocab_size=30, embedding_dim=8, hidden_dim=10, num_layers=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=0)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers=num_layers, dropout=0.3, batch_first=True)
        self.fc = nn.Linear(2 * hidden_dim, 1)

    def forward(self, text):
        output, (hidden, cell) = self.lstm(self.embedding(text))
        pooled = torch.cat((output.max(dim=1).values, hidden[-1]), dim=1)
        return torch.sigmoid(self.fc(pooled)).squeeze(1), hidden[-1]
""",
)

GRU = Architecture(
    name="gru",
    entry="SpeechTagger",
    inputs={"features": _floats("batch", "length", 6)},
    outputs=("log_probs",),
    dims=_SEQUENCES,
    source="""
import torch
from torch import nn
import torch.nn.functional as F


class AttentionPool(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, x):
        weights = F.softmax(self.score(torch.tanh(x)), dim=1)
        return (weights * x).sum(dim=1, keepdim=True)


class SpeechTagger(nn.Module):
    def __init__(self, input_size=6, hidden_size=8, num_tags=5):
        super().__init__()
        self.layer_norm = nn.LayerNorm(input_size)
        self.gru = nn.GRU(input_size, hidden_size, batch_first=True, bidirectional=True)
        self.context = AttentionPool(2 * hidden_size)
        self.classifier = nn.Sequential(nn.Linear(4 * hidden_size, 16), nn.GELU(), nn.Linear(16, num_tags))

    def forward(self, features):
        x, _ = self.gru(self.layer_norm(features))
        context = self.context(x).expand_as(x)
        return F.log_softmax(self.classifier(torch.cat([x, context], dim=-1)), dim=-1)
""",
)

TCN = Architecture(
    name="tcn",
    entry="TemporalConvNet",
    inputs={"series": _floats("batch", 3, "length")},
    outputs=("forecast",),
    dims=_SEQUENCES,
    kwargs={"num_channels": [6, 8]},
    source="""
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Chomp1d(nn.Module):
    def __init__(self, chomp_size):
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x):
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_inputs, n_outputs, kernel_size, dilation):
        super().__init__()
        padding = (kernel_size - 1) * dilation
        self.conv1 = weight_norm(nn.Conv1d(n_inputs, n_outputs, kernel_size, padding=padding, dilation=dilation))
        self.chomp1 = Chomp1d(padding)
        self.conv2 = weight_norm(nn.Conv1d(n_outputs, n_outputs, kernel_size, padding=padding, dilation=dilation))
        self.chomp2 = Chomp1d(padding)
        self.norm = nn.GroupNorm(2, n_outputs)
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None

    def forward(self, x):
        out = torch.relu(self.chomp1(self.conv1(x)))
        out = torch.relu(self.norm(self.chomp2(self.conv2(out))))
        res = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + res)


class TemporalConvNet(nn.Module):
    def __init__(self, num_channels, horizon=6, num_inputs=3, kernel_size=3):
        super().__init__()
        channels = [num_inputs, *num_channels]
        self.network = nn.Sequential(
            *[
                TemporalBlock(channels[i], channels[i + 1], kernel_size, dilation=2**i)
                for i in range(len(num_channels))
            ]
        )
        self.linear = nn.Linear(channels[-1], horizon)

    def forward(self, x):
        return self.linear(self.network(x)[:, :, -1])
""",
)

CAPTIONER = Architecture(
    name="captioner",
    entry="Captioner",
    inputs={"image": _floats("batch", 3, 8, 8)},
    outputs=("tokens", "score"),
    dims={"batch": {"min": 1, "max": 4}},
    kwargs={"max_steps": 5},
    sections={"torchscript": {"method": "script"}},  # a loop whose length depends on the data
    source="""
import torch
from torch import nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)])
        self.proj = nn.Linear(8 * 4 * 4, hidden_size)
        nn.init.orthogonal_(self.proj.weight, gain=4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return torch.tanh(self.proj(x.flatten(1)))


class Captioner(nn.Module):
    def __init__(self, vocab_size: int = 12, hidden_size: int = 10, max_steps: int = 5, eos: int = 2):
        super().__init__()
        self.max_steps, self.eos = max_steps, eos
        self.encoder = Encoder(hidden_size)
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.i2h = nn.Linear(hidden_size, 2 * hidden_size)
        self.h2h = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.out = nn.ModuleList([nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, vocab_size)])
        for layer in [self.i2h, self.h2h, *self.out]:
            nn.init.orthogonal_(layer.weight, gain=2.0)

    def step(self, token: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, candidate = (self.i2h(self.embedding(token)) + self.h2h(hidden)).chunk(2, dim=1)
        hidden = torch.lerp(hidden, torch.tanh(candidate), torch.sigmoid(gate))
        logits = hidden
        for layer in self.out:
            logits = layer(torch.tanh(logits))
        return F.log_softmax(logits, dim=-1), hidden

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.encoder(image)
        token = torch.zeros(image.size(0), dtype=torch.long, device=image.device)
        tokens = token.unsqueeze(1)
        score = torch.zeros_like(hidden[:, 0])
        for _ in range(self.max_steps):
            log_probs, hidden = self.step(token, hidden)
            best, token = log_probs.max(dim=-1)
            score = score + best
            tokens = torch.cat([tokens, token.unsqueeze(1)], dim=1)
            if bool((token == self.eos).all()):
                break
        return tokens, score
""",
)

# -- mixtures -------------------------------------------------------------------------------

RECOMMENDER = Architecture(
    name="recommender",
    entry="Recommender",
    inputs={
        "dense": _floats("batch", 4),
        "category": _integers("batch", below=9, dtype="int32"),
        "history": _integers("batch", "length", below=20),
        "history_mask": {"dtype": "bool", "shape": ["batch", "length"]},
        "price": {"dtype": "float64", "shape": ["batch"], "range": [1, 500]},
    },
    outputs=("click", "rank", "cold"),
    dims=_SEQUENCES,
    source="""
from typing import NamedTuple

import torch
from torch import nn
import torch.nn.functional as F


class Prediction(NamedTuple):
    click: torch.Tensor
    rank: torch.Tensor
    cold: torch.Tensor


class CrossLayer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Linear(dim, dim)

    def forward(self, x0, x):
        return x0 * self.weight(x) + x


class Recommender(nn.Module):
    def __init__(self, num_items=20, num_categories=9, dim=6):
        super().__init__()
        self.item_embedding = nn.Embedding(num_items, dim)
        self.category_embedding = nn.Embedding(num_categories, dim)
        self.query = nn.Parameter(torch.randn(dim))
        self.norm = nn.BatchNorm1d(2 * dim + 5)
        self.cross = nn.ModuleList([CrossLayer(2 * dim + 5) for _ in range(2)])
        self.click_head = nn.Linear(2 * dim + 5, 1)
        self.rank_head = nn.Linear(2 * dim + 5, 3)

    def forward(self, dense, category, history, history_mask, price):
        items = self.item_embedding(history)
        attention = (items @ self.query).masked_fill(~history_mask, -1e4)
        profile = torch.einsum("bl,bld->bd", attention.softmax(dim=-1), items)
        cold = ~history_mask.any(dim=1)
        profile = torch.where(cold[:, None], torch.zeros_like(profile), profile)
        log_price = torch.log1p(price).float().unsqueeze(-1)
        x0 = self.norm(torch.cat([dense, log_price, self.category_embedding(category.long()), profile], dim=-1))
        x = x0
        for layer in self.cross:
            x = F.elu(layer(x0, x))
        return Prediction(torch.sigmoid(self.click_head(x)).squeeze(-1), self.rank_head(x), cold)
""",
)

ARCHITECTURES = (
    CONVNET, RESNET, VIT, UNET, DETECTOR, MIXER, MOBILENET, AUTOENCODER,
    BERT, GPT, LLAMA, LSTM, GRU, TCN, CAPTIONER, RECOMMENDER,
)  # fmt: skip
"""All architectures, each once."""
