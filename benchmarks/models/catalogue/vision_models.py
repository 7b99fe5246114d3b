"""Vision outside timm and transformers: torchvision, segmentation, kornia, detectors, medical images, generators."""

from benchmarks.models.catalogue.entry import Dim, ZooModel, floats, function, ids, image, module


def _image(name: str, library: str, imports: str, make: str, *, size: int = 224, channels: int = 3, call: str | None = None,
           outputs: tuple[str, ...] | None = None, maximum: int | None = None, **more) -> ZooModel:  # fmt: skip
    """A module of one image; `call` is what a wrapper returns, where the module's own output is unusual."""
    return ZooModel(
        name=name,
        library=library,
        source=module(imports, make, "image", call) if call else function(imports, make),
        entry="Model" if call else "build",
        inputs={"image": image(channels, size, size)},
        dims={"batch": Dim(max=maximum)} if maximum else {},
        outputs=outputs,
        **more,
    )


def _torchvision(
    name: str, *, size: int = 224, make: str | None = None, call: str | None = None, maximum: int | None = None
) -> ZooModel:
    return _image(
        f"torchvision-{name.replace('_', '-')}", "torchvision", "from torchvision import models\n",
        make or f"models.{name}(weights=None)", size=size, call=call, maximum=maximum,
    )  # fmt: skip


_TORCHVISION = (
    _torchvision("alexnet"),
    _torchvision("mnasnet1_0"),
    _torchvision("googlenet", make="models.googlenet(weights=None, aux_logits=False, init_weights=True)"),
    _torchvision("inception_v3", size=299, make="models.inception_v3(weights=None, aux_logits=False, init_weights=True)"),
    _torchvision("shufflenet_v2_x1_0", maximum=32),
    _torchvision("squeezenet1_1"),
    _torchvision("mobilenet_v2"),
    _torchvision("resnet50", maximum=32),
    _torchvision("wide_resnet50_2"),
    _torchvision("regnet_y_400mf"),
    _torchvision("efficientnet_v2_s"),
    _torchvision("convnext_tiny", maximum=32),
    _torchvision("vit_b_32"),
    _torchvision("swin_v2_t", size=256),
    _torchvision("maxvit_t"),
    _torchvision("fcn_resnet50", make="models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)", call='self.net(image)["out"]'),
    _torchvision("deeplabv3_mobilenet", make="models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)"),
    _torchvision("lraspp", make="models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)", size=256),
    *(
        ZooModel(
            name=f"torchvision-{name.replace('_', '-')}",
            library="torchvision",
            source=function("from torchvision.models import video\n", f"video.{name}(weights=None)"),
            entry="build",
            inputs={"clip": floats("batch", 3, frames, size, size, range=(0, 1))},
            dims={"batch": Dim(max=4)},
            outputs=("logits",),
        )
        for name, frames, size in (("r3d_18", 8, 112), ("mc3_18", 8, 112), ("s3d", 16, 224), ("mvit_v2_s", 16, 224), ("swin3d_t", 8, 112))
    ),
    ZooModel(
        name="torchvision-raft-small",
        library="torchvision",
        source=module("from torchvision.models import optical_flow\n", "optical_flow.raft_small(weights=None)", "before, after", "self.net(before, after, 4)[-1]"),
        inputs={"before": floats("batch", 3, 128, 128, range=(-1, 1)), "after": floats("batch", 3, 128, 128, range=(-1, 1))},
        outputs=("flow",),
    ),
    ZooModel(
        name="torchvision-resnet18-any-size",
        library="torchvision",
        source=function("from torchvision import models\n", "models.resnet18(weights=None)"),
        entry="build",
        inputs={"image": image(3, "height", "width")},
        dims={"height": Dim(min=64), "width": Dim(min=64)},
        outputs=("logits",),
    ),
)  # fmt: skip

_SMP = tuple(
    _image(
        f"smp-{architecture.lower()}", "segmentation-models-pytorch", "import segmentation_models_pytorch as smp\n",
        f'smp.{architecture}("{encoder}", encoder_weights=None{more}, classes=2)', size=size, outputs=("masks",), maximum=maximum,
    )
    for architecture, encoder, size, more, maximum in (
        ("Unet", "resnet34", 256, "", None),
        ("UnetPlusPlus", "resnet18", 256, "", 8),
        ("MAnet", "resnet18", 256, "", None),
        ("Linknet", "mobilenet_v2", 256, "", None),
        ("FPN", "efficientnet-b0", 256, "", 8),
        ("PSPNet", "resnet18", 256, "", None),
        ("PAN", "resnet18", 256, "", None),
        ("DeepLabV3", "resnet18", 256, "", 8),
        ("DeepLabV3Plus", "timm-regnety_002", 256, "", None),
        ("Segformer", "mit_b0", 256, "", None),
        ("UPerNet", "resnet18", 256, "", 8),
        ("DPT", "tu-vit_tiny_patch16_224", 224, "", None),
    )
)  # fmt: skip

_KORNIA_IMPORTS = "import kornia\nfrom kornia import feature\n"
_KORNIA = (
    *(
        ZooModel(
            name=f"kornia-{name.lower()}",
            library="kornia",
            source=function(_KORNIA_IMPORTS, f"feature.{name}({arguments})"),
            entry="build",
            inputs={"patches": floats("batch", 1, 32, 32, range=(0, 1))},
            dims={"batch": Dim(max=512)},
            outputs=("descriptors",),
        )
        for name, arguments in (("HardNet", "False"), ("SOSNet", "False"), ("HyNet", "False"), ("TFeat", "False"), ("SIFTDescriptor", "patch_size=32"))
    ),
    _image("kornia-disk", "kornia", _KORNIA_IMPORTS, "feature.DISK()", size=256, call="self.net.heatmap_and_dense_descriptors(image)", outputs=("heatmap", "descriptors")),
    _image("kornia-dedode", "kornia", _KORNIA_IMPORTS, "feature.DeDoDe(descriptor_model='B')", size=224, call="self.net.detector(image)", outputs=("keypoint_logits",)),
    _image("kornia-keynet", "kornia", _KORNIA_IMPORTS, "feature.KeyNet(False)", size=128, channels=1),
    _image("kornia-xfeat", "kornia", _KORNIA_IMPORTS, "feature.XFeatModel()", size=256, outputs=("features", "keypoints", "heatmap")),
    _image("kornia-lab", "kornia", _KORNIA_IMPORTS, "kornia.color.RgbToLab()", size=64),
    _image("kornia-hsv", "kornia", _KORNIA_IMPORTS, "kornia.color.RgbToHsv()", size=64),
    _image("kornia-blur", "kornia", _KORNIA_IMPORTS, "kornia.filters.GaussianBlur2d((5, 5), (1.5, 1.5))", size=64),
    _image("kornia-sobel", "kornia", _KORNIA_IMPORTS, "kornia.filters.Sobel()", size=64),
    ZooModel(
        name="kornia-warp",
        library="kornia",
        source=module(_KORNIA_IMPORTS, "nn.Conv2d(3, 3, 3, padding=1)", "image, homography",
                      "kornia.geometry.transform.warp_perspective(self.net(image), homography + torch.eye(3).to(homography), (96, 96))"),
        inputs={"image": image(3, 96, 96), "homography": floats("batch", 3, 3, range=(-0.001, 0.001))},
        outputs=("warped",),
    ),
    ZooModel(
        name="kornia-loftr",
        library="kornia",
        source=module(_KORNIA_IMPORTS, "feature.LoFTR(pretrained=None)", "first, second",
                      "(lambda data: (data['keypoints0'], data['keypoints1'], data['confidence']))(self.net({'image0': first, 'image1': second}))"),
        inputs={"first": floats(1, 1, 128, 128, range=(0, 1)), "second": floats(1, 1, 128, 128, range=(0, 1))},
        outputs=("keypoints0", "keypoints1", "confidence"),
    ),
)  # fmt: skip


def _yolo(
    name: str, size: int = 320, outputs: str = "self.net(image)[0]", names: tuple[str, ...] = ("predictions",)
) -> ZooModel:
    """Raw predictions of an ultralytics model, before non-maximum suppression."""
    return _image(
        f"ultralytics-{name}", "ultralytics", "from ultralytics import YOLO\n", f'YOLO("{name}.yaml", verbose=False).model.float().eval()',
        size=size, call=outputs, outputs=names,
    )  # fmt: skip


_DETECTORS = (
    _yolo("yolov8n"),
    _yolo("yolov5nu"),
    _yolo("yolo11n", 640),
    _yolo("yolo12n"),
    _yolo("yolov10n"),
    _yolo("yolo26n"),
    _yolo("yolov8n-pose"),
    _yolo("yolov8n-seg", outputs="(lambda output: (output[0], output[1][-1]) if not isinstance(output[0], tuple) else output[0])(self.net(image))", names=("predictions", "prototypes")),
    _yolo("yolov8n-cls", 224),
    _yolo("rtdetr-resnet50", 320),
    _image("facenet-pnet", "facenet-pytorch", "from facenet_pytorch import PNet\n", "PNet()", size=64, outputs=("boxes", "scores"), pretrained=True),
    _image("facenet-rnet", "facenet-pytorch", "from facenet_pytorch import RNet\n", "RNet()", size=24, outputs=("boxes", "scores"), pretrained=True),
    _image("facenet-onet", "facenet-pytorch", "from facenet_pytorch import ONet\n", "ONet()", size=48, outputs=("boxes", "landmarks", "scores"), pretrained=True),
    _image("facenet-resnet", "facenet-pytorch", "from facenet_pytorch import InceptionResnetV1\n", "InceptionResnetV1(pretrained=None)", size=160, outputs=("embedding",), maximum=32),
    _image("easyocr-crnn", "easyocr", "from easyocr.model.vgg_model import Model as Crnn\n", "Crnn(1, 256, 256, 97)", size=64, channels=1, call="self.net(image, None)", outputs=("logits",)),
    _image("easyocr-craft", "easyocr", "from easyocr.craft import CRAFT\n", "CRAFT(pretrained=False)", size=256, outputs=("scores", "features")),
)  # fmt: skip

_MONAI_IMPORTS = "from monai.networks import nets\n"


def _volume(name: str, make: str, size: int, channels: int = 1, call: str | None = None) -> ZooModel:
    return ZooModel(
        name=f"monai-{name}",
        library="monai",
        source=module(_MONAI_IMPORTS, make, "volume", call) if call else function(_MONAI_IMPORTS, make),
        entry="Model" if call else "build",
        inputs={"volume": floats("batch", channels, size, size, size)},
        dims={"batch": Dim(max=2)},
        outputs=("logits",),
    )


_MEDICAL = (
    _volume("unet-3d", "nets.UNet(3, 1, 2, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)", 64),
    _volume("segresnet-3d", "nets.SegResNet(3, 16, 1, 2)", 64),
    _volume("dynunet-3d", "nets.DynUNet(3, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[16, 32, 64, 128])", 64),
    _volume("unetr-3d", "nets.UNETR(1, 2, (64, 64, 64), feature_size=8, hidden_size=192, mlp_dim=384, num_heads=6)", 64),
    _volume("swin-unetr-3d", "nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12)", 64),
    _volume("attention-unet-3d", "nets.AttentionUnet(3, 1, 2, (16, 32, 64), (2, 2))", 48),
    _volume("vnet-3d", "nets.VNet(3, 1, 2)", 48),
    _volume("densenet121-3d", "nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=2)", 64),
    _volume("basic-unet-3d", "nets.BasicUNet(3, 1, 2, (16, 16, 32, 64, 128, 16))", 48),
    _image("monai-efficientnet", "monai", _MONAI_IMPORTS, 'nets.EfficientNetBN("efficientnet-b0", pretrained=False)'),
    _image("torchxrayvision-densenet", "torchxrayvision", "import torchxrayvision\n", "torchxrayvision.models.DenseNet(weights=None)", channels=1, outputs=("scores",)),
)  # fmt: skip

_DIFFUSERS = "import diffusers\n"
_GENERATORS = (
    ZooModel(
        name="diffusers-unet-2d",
        library="diffusers",
        source=module(_DIFFUSERS, "diffusers.UNet2DModel(sample_size=32, block_out_channels=(64, 128, 128), down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'))",
                      "sample, timestep", "self.net(sample, timestep).sample"),
        inputs={"sample": floats("batch", 3, 32, 32), "timestep": ids(1000, "batch")},
        outputs=("noise",),
        live_zeros=True,
    ),
    ZooModel(
        name="diffusers-unet-condition",
        library="diffusers",
        source=module(_DIFFUSERS, "diffusers.UNet2DConditionModel(sample_size=32, block_out_channels=(64, 128), layers_per_block=1, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), cross_attention_dim=256)",
                      "sample, timestep, text", "self.net(sample, timestep, text).sample"),
        inputs={"sample": floats("batch", 4, 32, 32), "timestep": ids(1000, "batch"), "text": floats("batch", 77, 256)},
        dims={"batch": Dim(max=8)},
        outputs=("noise",),
        live_zeros=True,
    ),
    _image("diffusers-vae-encoder", "diffusers", _DIFFUSERS, "diffusers.AutoencoderKL(block_out_channels=(32, 64), down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2)", size=64, call="self.net.encode(image).latent_dist.mean", outputs=("latents",)),
    ZooModel(
        name="diffusers-vae-decoder",
        library="diffusers",
        source=module(_DIFFUSERS, "diffusers.AutoencoderKL(block_out_channels=(32, 64), down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2)", "latents", "self.net.decode(latents).sample"),
        inputs={"latents": floats("batch", 4, "height", "width")},
        dims={"height": Dim(8, 64), "width": Dim(8, 64)},
        outputs=("image",),
    ),
    _image("diffusers-tiny-vae", "diffusers", _DIFFUSERS, "diffusers.AutoencoderTiny()", size=64, call="self.net(image).sample", outputs=("restored",)),
    ZooModel(
        name="diffusers-dit",
        library="diffusers",
        source=module(_DIFFUSERS, "diffusers.DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=48, num_layers=4, sample_size=32)",
                      "sample, timestep, label", "self.net(sample, timestep=timestep, class_labels=label).sample"),
        inputs={"sample": floats("batch", 4, 32, 32), "timestep": ids(1000, "batch"), "label": ids(1000, "batch")},
        outputs=("noise",),
        live_zeros=True,
    ),
    _image("lpips-squeeze", "lpips", "import lpips\n", "lpips.LPIPS(net='squeeze', pnet_rand=True, pretrained=False, verbose=False)", size=64, call="self.net(image, image.flip(-1))", outputs=("distance",)),
    ZooModel(
        name="segment-anything-image-encoder",
        library="segment-anything",
        source=function("from segment_anything.modeling import ImageEncoderViT\n", "ImageEncoderViT(img_size=256, embed_dim=192, depth=4, num_heads=3, use_rel_pos=True, window_size=7, global_attn_indexes=(1, 3))"),
        entry="build",
        inputs={"image": image(3, 256, 256)},
        outputs=("embeddings",),
    ),
    _image("spandrel-esrgan", "spandrel", "from spandrel.architectures.ESRGAN import RRDBNet\n", "RRDBNet(in_nc=3, out_nc=3, num_filters=32, num_blocks=4)", size=64, outputs=("upscaled",)),
    _image("spandrel-compact", "spandrel", "from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact\n", "SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=16, upscale=4)", size=64, outputs=("upscaled",)),
    _image("spandrel-swinir", "spandrel", "from spandrel.architectures.SwinIR import SwinIR\n", "SwinIR(img_size=64, embed_dim=60, depths=(2, 2), num_heads=(6, 6), window_size=8, upscale=2, upsampler='pixelshuffledirect')", size=64, outputs=("upscaled",)),
    _image("spandrel-span", "spandrel", "from spandrel.architectures.SPAN import SPAN\n", "SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=2)", size=64, outputs=("upscaled",)),
    _image("efficientnet-pytorch-b0", "efficientnet-pytorch", "from efficientnet_pytorch import EfficientNet\n", 'EfficientNet.from_name("efficientnet-b0")', outputs=("logits",)),
    _image("resnest50", "resnest", "from resnest.torch import resnest50\n", "resnest50(pretrained=False)", outputs=("logits",)),
    _image("pretrainedmodels-bninception", "pretrainedmodels", "import pretrainedmodels\n", "pretrainedmodels.bninception(pretrained=None)", outputs=("logits",)),
    _image("open-clip-image", "open-clip-torch", "import open_clip\n", 'open_clip.create_model("ViT-S-32")', call="self.net.encode_image(image, normalize=True)", outputs=("embedding",)),
    ZooModel(
        name="open-clip-text",
        library="open-clip-torch",
        source=module("import open_clip\n", 'open_clip.create_model("ViT-S-32")', "tokens", "self.net.encode_text(tokens)"),
        inputs={"tokens": ids(49408, "batch", 77)},
        outputs=("embedding",),
    ),
)  # fmt: skip

MODELS = (*_TORCHVISION, *_SMP, *_KORNIA, *_DETECTORS, *_MEDICAL, *_GENERATORS)
