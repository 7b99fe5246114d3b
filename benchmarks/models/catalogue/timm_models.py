"""timm: one member of every family that has one of a usual size, at the input size of its configuration."""

from benchmarks.models.catalogue.entry import Dim, ZooModel, function, image

# The module of timm is beside each name. Every third is saved as safetensors, the others with torch.save; every third
# batch has a maximum.
_NAMES = (
    ("beitv2_base_patch16_224", 224),  # beit
    ("botnet26t_256", 256),  # byoanet
    ("lambda_resnet26t", 256),  # byoanet
    ("repvgg_a0", 224),  # byobnet
    ("cait_xxs24_224", 224),
    ("coat_lite_tiny", 224),
    ("convit_tiny", 224),
    ("convmixer_768_32", 224),
    ("convnext_atto", 224),
    ("convnextv2_atto", 224),
    ("cpubone_nano", 224),
    ("crossvit_9_240", 240),
    ("csatv2", 512),
    ("cspdarknet53", 256),  # cspnet
    ("cspnext_tiny", 224),
    ("davit_tiny", 224),
    ("deit_tiny_distilled_patch16_224", 224),
    ("densenet121", 224),
    ("dla34", 224),
    ("dpn68b", 224),
    ("edgenext_x_small", 256),
    ("efficientformer_l1", 224),
    ("efficientformerv2_s0", 224),
    ("efficientnet_b0", 224),
    ("tf_efficientnetv2_b0", 224),
    ("mixnet_s", 224),
    ("efficientvim_m1", 224),
    ("efficientvit_b0", 224),  # efficientvit_mit
    ("efficientvit_m0", 224),  # efficientvit_msra
    ("eva02_tiny_patch14_224", 224),
    ("fasternet_t0", 224),
    ("fastvit_t8", 256),
    ("focalnet_tiny_srf", 224),
    ("gcvit_xxtiny", 224),
    ("ghostnetv2_100", 224),
    ("hardcorenas_a", 224),
    ("hgnetv2_b0", 224),
    ("hiera_tiny_224", 224),
    ("sam2_hiera_tiny", 896),  # hieradet_sam2
    ("hrnet_w18_small", 224),
    ("iformer_t", 224),
    ("inception_next_atto", 224),
    ("inception_resnet_v2", 299),
    ("inception_v3", 299),
    ("inception_v4", 299),
    ("lcnetv2_small", 224),
    ("levit_128s", 224),
    ("lowformer_b0", 224),
    ("mambaout_femto", 224),
    ("maxvit_tiny_tf_224", 224),  # maxxvit
    ("coatnet_nano_rw_224", 224),  # maxxvit
    ("poolformer_s12", 224),  # metaformer
    ("caformer_s18", 224),  # metaformer
    ("mixer_b32_224", 224),  # mlp_mixer
    ("gmlp_s16_224", 224),  # mlp_mixer
    ("mobilenetv3_small_100", 224),
    ("mobilenetv4_conv_small", 224),
    ("mobilenetv5_base", 256),
    ("mobilevit_s", 256),
    ("mobilevitv2_050", 256),
    ("mvitv2_tiny", 224),
    ("naflexvit_base_patch16_gap", 224),
    ("nest_tiny_jx", 224),
    ("nextvit_small", 224),
    ("nfnet_l0", 224),
    ("nf_resnet50", 224),
    ("pit_xs_224", 224),
    ("pvt_v2_b0", 224),
    ("rdnet_tiny", 224),
    ("regnety_004", 224),
    ("repghostnet_100", 224),
    ("repvit_m0_9", 224),
    ("res2net50_26w_4s", 224),
    ("resnest14d", 224),
    ("resnet18d", 224),
    ("resnetv2_50x1_bit", 224),
    ("rexnet_100", 224),
    ("selecsls42b", 224),
    ("legacy_seresnet18", 224),  # senet
    ("sequencer2d_s", 224),
    ("shvit_s1", 224),
    ("skresnet18", 224),
    ("starnet_s1", 224),
    ("swiftformer_xs", 224),
    ("swin_tiny_patch4_window7_224", 224),
    ("swinv2_tiny_window8_256", 256),
    ("swinv2_cr_tiny_224", 224),
    ("tiny_vit_5m_224", 224),
    ("tnt_s_patch16_224", 224),
    ("tresnet_m", 224),
    ("twins_svt_small", 224),
    ("vgg11_bn", 224),
    ("visformer_tiny", 224),
    ("vit_small_patch32_224", 224),
    ("vit_tiny_r_s16_p8_224", 224),  # vision_transformer_hybrid
    ("vit_relpos_small_patch16_224", 224),
    ("samvit_base_patch16_224", 224),
    ("vitamin_small_224", 224),
    ("volo_d1_224", 224),
    ("ese_vovnet19b_dw", 224),
    ("legacy_xception", 299),
    ("xception41", 299),
    ("xcit_nano_12_p16_224", 224),
)


def _timm(number: int, name: str, size: int) -> ZooModel:
    return ZooModel(
        name=f"timm-{name.replace('_', '-')}",
        library="timm",
        source=function("import timm\n", f'timm.create_model("{name}", pretrained=False)'),
        entry="build",
        inputs={"image": image(3, size, size)},
        dims={"batch": Dim(max=16)} if number % 3 == 1 else {},
        outputs=("logits",),
        safetensors=number % 3 == 0,
    )


MODELS = tuple(_timm(number, *entry) for number, entry in enumerate(_NAMES))
