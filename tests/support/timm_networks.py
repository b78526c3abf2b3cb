"""timm's networks with random weights, cut to a size that trains in milliseconds on images [B, 3, 32, 32]."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fds_dist.common.vision import import_torchvision

CLASSES, SIDE = 5, 32

FOUR = {"depths": (1, 1, 1, 1)}
WIDTHS = (32, 32, 64, 64)
PATCHES = {"img_size": SIDE, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
STEM = {"channels": (64, 64, 128, 128), "stem_chs": 32}

BY_NAME: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {**PATCHES, "drop_path_rate": 0.1},
    "cait_xxs24_224": {**PATCHES, "depth": 1},
    "coatnet_nano_rw_224": {"img_size": SIDE, **FOUR, "embed_dim": WIDTHS},
    "convit_tiny": {**PATCHES, "local_up_to_layer": 1},
    "convnext_atto": {**FOUR, "dims": (8, 16, 16, 24)},
    "deit3_small_patch16_224": {**PATCHES, "drop_path_rate": 0.1},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "dm_nfnet_f0": {**FOUR, **STEM, "group_size": 32},
    "edgenext_xx_small": {**FOUR, "dims": (8, 16, 24, 32), "heads": (2, 2, 2, 2)},
    "eva02_tiny_patch14_224": PATCHES,
    "inception_next_atto": {**FOUR, "dims": (16, 32, 48, 64)},
    "levit_128s": {
        "img_size": SIDE,
        "embed_dim": (16, 32, 48),
        "key_dim": 8,
        "num_heads": (2, 2, 2),
        "depth": (1,) * 3,
    },
    "mambaout_femto": {**FOUR, "dims": (16, 32, 48, 64)},
    "maxvit_rmlp_pico_rw_256": {"img_size": SIDE, **FOUR, "embed_dim": WIDTHS},
    "nf_resnet50": {**FOUR, **STEM},
    "nfnet_l0": {**FOUR, **STEM, "group_size": 8},
    "regnetx_002": {},
    "sequencer2d_s": {"img_size": SIDE, "layers": (1,) * 4, "embed_dims": (16,) * 4, "hidden_sizes": (8,) * 4},
    "swin_tiny_patch4_window7_224": {"img_size": SIDE, "window_size": 4, "embed_dim": 24, "depths": (2, 2)},
    "twins_svt_small": {"img_size": SIDE, **FOUR, "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4)},
    "vit_tiny_patch16_224": {**PATCHES, "drop_rate": 0.1, "attn_drop_rate": 0.1},
    "xcit_nano_12_p16_224": {"img_size": SIDE, "depth": 2, "embed_dim": 32},
}
"""Options that cut the named network."""


def _created(name: str) -> nn.Module:
    return importlib.import_module("timm").create_model(name, pretrained=False, num_classes=CLASSES, **BY_NAME[name])


def _models(name: str) -> Any:
    return importlib.import_module(f"timm.models.{name}")


def _efficientnet() -> nn.Module:
    blocks = ["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e4_c12_se0.25"], ["ir_r2_k5_s2_e4_c16_se0.25"]
    decoded = _models("_efficientnet_builder").decode_arch_def(list(blocks))
    options = {"stem_size": 8, "num_features": 48, "act_layer": nn.SiLU, "drop_path_rate": 0.1, "drop_rate": 0.1}
    return _models("efficientnet").EfficientNet(decoded, num_classes=CLASSES, **options)


def _mobilenetv3() -> nn.Module:
    blocks = (
        ["ds_r1_k3_s2_e1_c8_se0.25_nre"],
        ["ir_r1_k3_s2_e4_c16_nre"],
        ["ir_r1_k5_s1_e4_c24_se0.25"],
        ["cn_r1_k1_s1_c48"],
    )
    decoded, family = _models("_efficientnet_builder").decode_arch_def(list(blocks)), _models("mobilenetv3")
    squeeze = partial(family.SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU)
    options = {"stem_size": 8, "num_features": 64, "act_layer": nn.Hardswish, "se_layer": squeeze}
    return family.MobileNetV3(decoded, num_classes=CLASSES, **options)


def _byobnet(kind: str, *blocks: tuple[int, int, int]) -> nn.Module:
    """`blocks` of one `kind`: (channels, stride, size of a convolution's groups; 0: no groups)."""
    family = _models("byobnet")
    options = {"block_kwargs": {"num_conv_branches": 2}} if kind == "one" else {}
    configs = (
        family.ByoBlockCfg(kind, d=1, c=width, s=stride, gs=size, br=1.0, **options) for width, stride, size in blocks
    )
    config = family.ByoModelCfg(blocks=tuple(configs), stem_type=kind, stem_chs=16)
    return family.ByobNet(config, num_classes=CLASSES)


def _mixer(block: str, norm: str = "", mlp: str = "", ratio: float | tuple[float, float] = (0.5, 4.0)) -> nn.Module:
    family = _models("mlp_mixer")
    options = {"norm_layer": getattr(family, norm)} if norm else {}
    options |= {"mlp_layer": getattr(family, mlp)} if mlp else {}
    options |= {"img_size": SIDE, "patch_size": 8, "num_blocks": 2, "embed_dim": 32, "mlp_ratio": ratio}
    return family.MlpMixer(CLASSES, block_layer=getattr(family, block), **options)


def _poolformer() -> nn.Module:
    family = _models("metaformer")
    options = {"dims": (8, 16, 24, 32), "layer_scale_init_values": 1e-5, "norm_layers": family.GroupNorm1}
    return family.MetaFormer(num_classes=CLASSES, mlp_act=nn.GELU, mlp_bias=True, use_mlp_head=False, **FOUR, **options)


def _resnetv2() -> nn.Module:
    family = _models("resnetv2")
    norm = partial(family.GroupNormAct, num_groups=8)  # of 4 channels: of one channel and pixel the norm is 0/0
    return family.ResNetV2([1, 1, 1, 1], (128,) * 4, CLASSES, stem_chs=32, norm_layer=norm)


BY_PARTS: dict[str, Callable[[], nn.Module]] = {
    "efficientnet": _efficientnet,
    "gmlp": partial(_mixer, "SpatialGatingBlock", mlp="GatedMlp", ratio=6.0),
    "mixer": partial(_mixer, "MixerBlock"),
    "mobilenetv3": _mobilenetv3,
    "mobileone": partial(_byobnet, "one", (16, 2, 1), (24, 1, 0), (24, 2, 1), (32, 1, 0)),
    "poolformer": _poolformer,
    "repvgg": partial(_byobnet, "rep", (16, 2, 0), (24, 2, 0), (24, 1, 0)),
    "resmlp": partial(_mixer, "ResBlock", norm="Affine", ratio=4.0),
    "resnetv2": _resnetv2,
}
"""Networks whose names fix their size, put together from the same blocks."""


def timm_network(name: str) -> nn.Module:
    """The network `name` of `BY_NAME` or `BY_PARTS`."""
    import_torchvision()  # timm imports it, and its compiled operators may not load
    return BY_PARTS[name]() if name in BY_PARTS else _created(name)


TIMM = {name: partial(timm_network, name) for name in sorted({**BY_NAME, **BY_PARTS})}
