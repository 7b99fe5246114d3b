"""transformers, vision and video: classifiers, backbones, detectors, segmentation, depth, key points."""

from benchmarks.models.catalogue.entry import Dim, ZooModel, floats, image, module

SMALL = "hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536"


def _image(
    number: int, name: str, cls: str, config: str, outputs: tuple[str, ...] = ("logits",), size: int = 224
) -> ZooModel:
    """A model of an image, whose `outputs` are fields of what the library returns."""
    fields = ", ".join(f"output.{field}" for field in outputs)
    return ZooModel(
        name=f"transformers-{name}",
        library="transformers",
        source=module(
            "import transformers\n", f"transformers.{cls}({config})", "pixel_values", "self.net(pixel_values=pixel_values)"
        ).replace("return self.net", "output = self.net") + f"        return {fields}\n",
        inputs={"pixel_values": image(3, size, size)},
        dims={"batch": Dim(max=8)} if number % 3 == 1 else {},
        outputs=outputs,
        safetensors=number % 4 == 3,
    )  # fmt: skip


_HIDDEN = ("last_hidden_state",)
_BOXES = ("logits", "pred_boxes")
_RESNET = "backbone_config=transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type='basic', embedding_size=64, out_features=['stage4'])"
_DETR = f"{_RESNET}, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, encoder_layers=2, decoder_layers=2, num_queries=50"

_IMAGES = (
    ("vit", "ViTForImageClassification", f"transformers.ViTConfig({SMALL})"),
    ("deit", "DeiTForImageClassification", f"transformers.DeiTConfig({SMALL})"),
    ("beit", "BeitForImageClassification", f"transformers.BeitConfig({SMALL}, use_relative_position_bias=True)"),
    ("swin", "SwinForImageClassification", "transformers.SwinConfig()"),
    ("swinv2", "Swinv2ForImageClassification", "transformers.Swinv2Config(window_size=7)"),
    ("convnext", "ConvNextForImageClassification", "transformers.ConvNextConfig()"),
    ("convnextv2", "ConvNextV2ForImageClassification", "transformers.ConvNextV2Config(depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320])"),
    ("resnet50", "ResNetForImageClassification", "transformers.ResNetConfig()"),
    ("regnet", "RegNetForImageClassification", "transformers.RegNetConfig()"),
    ("mobilenet-v1", "MobileNetV1ForImageClassification", "transformers.MobileNetV1Config()"),
    ("mobilenet-v2", "MobileNetV2ForImageClassification", "transformers.MobileNetV2Config()"),
    ("mobilevit", "MobileViTForImageClassification", "transformers.MobileViTConfig()", ("logits",), 256),
    ("mobilevitv2", "MobileViTV2ForImageClassification", "transformers.MobileViTV2Config()", ("logits",), 256),
    ("efficientnet", "EfficientNetForImageClassification", "transformers.EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=224)"),
    ("dinov2", "Dinov2Model", "transformers.Dinov2Config(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, image_size=224)", ("last_hidden_state", "pooler_output")),
    ("dinov3-vit", "DINOv3ViTModel", f"transformers.DINOv3ViTConfig({SMALL})", _HIDDEN),
    ("poolformer", "PoolFormerForImageClassification", "transformers.PoolFormerConfig()"),
    ("pvt-v2", "PvtV2ForImageClassification", "transformers.PvtV2Config()"),
    ("cvt", "CvtForImageClassification", "transformers.CvtConfig()"),
    ("focalnet", "FocalNetForImageClassification", "transformers.FocalNetConfig()"),
    ("hiera", "HieraForImageClassification", "transformers.HieraConfig(embed_dim=48)"),
    ("levit", "LevitForImageClassification", "transformers.LevitConfig()"),
    ("swiftformer", "SwiftFormerForImageClassification", "transformers.SwiftFormerConfig()"),
    ("clip-vision", "CLIPVisionModel", "transformers.CLIPVisionConfig(num_hidden_layers=6)", ("last_hidden_state", "pooler_output")),
    ("siglip-vision", "SiglipVisionModel", "transformers.SiglipVisionConfig(num_hidden_layers=6)", ("last_hidden_state", "pooler_output")),
    ("segformer", "SegformerForSemanticSegmentation", "transformers.SegformerConfig()", ("logits",), 512),
    ("upernet", "UperNetForSemanticSegmentation", "transformers.UperNetConfig(backbone_config=transformers.ConvNextConfig(hidden_sizes=[96, 192, 384, 768], out_features=['stage1', 'stage2', 'stage3', 'stage4']))", ("logits",), 256),
    ("beit-segmentation", "BeitForSemanticSegmentation", f"transformers.BeitConfig({SMALL}, out_indices=[2, 3, 4, 5])"),
    ("mask2former", "Mask2FormerForUniversalSegmentation", "transformers.Mask2FormerConfig(backbone_config=transformers.SwinConfig(out_features=['stage1', 'stage2', 'stage3', 'stage4']), encoder_layers=2, decoder_layers=3, num_queries=20)", ("class_queries_logits", "masks_queries_logits"), 256),
    ("maskformer", "MaskFormerForInstanceSegmentation", "transformers.MaskFormerConfig()", ("class_queries_logits", "masks_queries_logits"), 224),
    ("detr", "DetrForObjectDetection", f"transformers.DetrConfig({_DETR})", _BOXES, 320),
    ("conditional-detr", "ConditionalDetrForObjectDetection", f"transformers.ConditionalDetrConfig({_DETR})", _BOXES, 320),
    ("deformable-detr", "DeformableDetrForObjectDetection", "transformers.DeformableDetrConfig(backbone_config=transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type='basic', embedding_size=64, out_features=['stage2', 'stage3', 'stage4']), use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, encoder_layers=2, decoder_layers=2, num_queries=50)", _BOXES, 320),
    ("rt-detr", "RTDetrForObjectDetection", "transformers.RTDetrConfig(decoder_layers=2, num_queries=100)", _BOXES, 640),
    ("d-fine", "DFineForObjectDetection", "transformers.DFineConfig(decoder_layers=3, num_queries=100)", _BOXES, 640),
    ("yolos", "YolosForObjectDetection", f"transformers.YolosConfig({SMALL}, image_size=[256, 256])", _BOXES, 256),
    ("dpt", "DPTForDepthEstimation", f"transformers.DPTConfig({SMALL}, image_size=224, is_hybrid=False, backbone_out_indices=[2, 3, 4, 5], neck_hidden_sizes=[48, 96, 192, 384])", ("predicted_depth",)),
    ("depth-anything", "DepthAnythingForDepthEstimation", "transformers.DepthAnythingConfig()", ("predicted_depth",)),
    ("glpn", "GLPNForDepthEstimation", "transformers.GLPNConfig()", ("predicted_depth",)),
    ("vit-mae", "ViTMAEModel", f"transformers.ViTMAEConfig({SMALL}, mask_ratio=0.0)", _HIDDEN),
    ("swin2sr", "Swin2SRForImageSuperResolution", "transformers.Swin2SRConfig(embed_dim=60, depths=[2, 2], num_heads=[6, 6], upsampler='pixelshuffledirect')", ("reconstruction",), 64),
    ("superpoint", "SuperPointForKeypointDetection", "transformers.SuperPointConfig()", ("keypoints", "scores"), 240),
    ("sam-vision", "SamVisionModel", "transformers.SamVisionConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, image_size=512, global_attn_indexes=[1, 3])", _HIDDEN, 512),
    ("bit", "BitForImageClassification", "transformers.BitConfig(depths=[2, 2, 2, 2])"),
    ("data2vec-vision", "Data2VecVisionModel", f"transformers.Data2VecVisionConfig({SMALL})", _HIDDEN),
    ("vit-msn", "ViTMSNModel", f"transformers.ViTMSNConfig({SMALL})", _HIDDEN),
    ("hgnet-v2", "HGNetV2ForImageClassification", "transformers.HGNetV2Config()"),
    ("textnet", "TextNetForImageClassification", "transformers.TextNetConfig()"),
)  # fmt: skip


def _video(name: str, cls: str, config: str, frames: int, size: int = 224) -> ZooModel:
    return ZooModel(
        name=f"transformers-{name}",
        library="transformers",
        source=module("import transformers\n", f"transformers.{cls}({config})", "pixel_values", "self.net(pixel_values).logits"),
        inputs={"pixel_values": floats("batch", frames, 3, size, size, range=(0, 1))},
        dims={"batch": Dim(max=4)},
        outputs=("logits",),
    )  # fmt: skip


_VIDEOS = (
    _video("videomae", "VideoMAEForVideoClassification", f"transformers.VideoMAEConfig({SMALL}, image_size=112, num_frames=8)", 8, 112),
    _video("timesformer", "TimesformerForVideoClassification", f"transformers.TimesformerConfig({SMALL}, image_size=112, num_frames=4)", 4, 112),
    _video("vivit", "VivitForVideoClassification", f"transformers.VivitConfig({SMALL}, image_size=112, num_frames=8)", 8, 112),
)  # fmt: skip

MODELS = (*(_image(number, *entry) for number, entry in enumerate(_IMAGES)), *_VIDEOS)
