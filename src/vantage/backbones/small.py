"""Small variants for images of 32 to 64 px, registered with timm: `<family>_pico32` and `<family>_nano32`.

About 0.2M and 0.7M to 0.9M parameters, no pretrained weights. Swin, Twins and ResNet see maps of 16x16 and 8x8 at
32x32 input; MaxViT's, DaViT's and PVT v2's start at 8x8, which trains faster.
timm calls an entry point with keywords of its own choosing, hence the `**kwargs` here.
"""

from timm.models import (
    DaVit,
    MaxxVit,
    MaxxVitCfg,
    MaxxVitConvCfg,
    MaxxVitTransformerCfg,
    PyramidVisionTransformerV2,
    ResNet,
    SwinTransformer,
    Twins,
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn


def _cfg(first_conv: str, classifier: str, fixed_input_size: bool = False) -> dict:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "fixed_input_size": fixed_input_size,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first_conv,
        "classifier": classifier,
    }


_FAMILY_CFGS = {
    "maxvit": _cfg("stem.conv1", "head.fc", fixed_input_size=True),
    "vit": _cfg("patch_embed.proj", "head", fixed_input_size=True),
    "swin": _cfg("patch_embed.proj", "head.fc", fixed_input_size=True),
    "davit": _cfg("stem.conv", "head.fc"),
    "pvt_v2": _cfg("patch_embed.proj", "head"),
    "twins": _cfg("patch_embeds.0.proj", "head", fixed_input_size=True),
    "resnet": _cfg("conv1.0", "fc"),
}
default_cfgs = generate_default_cfgs(
    {f"{family}_{size}": cfg for family, cfg in _FAMILY_CFGS.items() for size in ("pico32", "nano32")}
)


def set_reductions(net: nn.Module, first: int) -> None:
    """Writes the strides of a stem that timm does not know into `feature_info`: first, then its doubles."""
    for index, info in enumerate(net.feature_info):
        info["reduction"] = first * 2**index


def _maxvit(name: str, cfg: MaxxVitCfg, pretrained: bool, stem_stride: int, **kwargs) -> MaxxVit:
    net = build_model_with_cfg(
        MaxxVit, name, pretrained, model_cfg=cfg, feature_cfg={"flatten_sequential": True}, **kwargs
    )
    if stem_stride == 1:
        net.stem.conv1.stride = (1, 1)
        net.stem.stride = 1
        set_reductions(net, 1)
    return net


def _maxvit_cfg(
    embed_dim: tuple[int, ...],
    depths: tuple[int, ...],
    stem_width: tuple[int, int],
    conv_cfg: MaxxVitConvCfg,
    act_layer: str = "gelu",
) -> MaxxVitCfg:
    return MaxxVitCfg(
        embed_dim=embed_dim,
        depths=depths,
        block_type=("M",) * len(embed_dim),
        stem_width=stem_width,
        conv_cfg=conv_cfg,
        transformer_cfg=MaxxVitTransformerCfg(head_first=False, dim_head=16, window_size=(4, 4), act_layer=act_layer),
    )


@register_model
def maxvit_pico32(pretrained: bool = False, **kwargs) -> MaxxVit:
    """Maps of 8x8 and 4x4 at 32x32 input: the fastest of all, for digits."""
    # expanding the input's channels rather than the output's makes the strided blocks cheap
    conv = MaxxVitConvCfg(expand_output=False, output_bias=False, attn_ratio=1 / 16, act_layer="silu")
    cfg = _maxvit_cfg(embed_dim=(32, 64), depths=(1, 1), stem_width=(24, 32), conv_cfg=conv)
    return _maxvit("maxvit_pico32", cfg, pretrained, stem_stride=2, **kwargs)


@register_model
def maxvit_nano32(pretrained: bool = False, **kwargs) -> MaxxVit:
    """Maps of 8x8 and 4x4 at 32x32 input; SiLU, which costs CPUs half of what GELU does."""
    conv = MaxxVitConvCfg(act_layer="silu")
    cfg = _maxvit_cfg(embed_dim=(64, 128), depths=(2, 1), stem_width=(32, 64), conv_cfg=conv, act_layer="silu")
    return _maxvit("maxvit_nano32", cfg, pretrained, stem_stride=2, **kwargs)


def _vit(name: str, pretrained: bool, embed_dim: int, num_heads: int, **kwargs) -> VisionTransformer:
    arguments = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": embed_dim,
        "depth": 4,
        "num_heads": num_heads,
        "class_token": False,
        "global_pool": "avg",
    }
    return build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        feature_cfg={"out_indices": 1, "feature_cls": "getter"},
        **{**arguments, **kwargs},
    )


@register_model
def vit_pico32(pretrained: bool = False, **kwargs) -> VisionTransformer:
    return _vit("vit_pico32", pretrained, embed_dim=64, num_heads=2, **kwargs)


@register_model
def vit_nano32(pretrained: bool = False, **kwargs) -> VisionTransformer:
    return _vit("vit_nano32", pretrained, embed_dim=128, num_heads=4, **kwargs)


def _swin(name: str, pretrained: bool, embed_dim: int, head_dim: int, **kwargs) -> SwinTransformer:
    arguments = {
        "img_size": 32,
        "patch_size": 2,
        "embed_dim": embed_dim,
        "depths": (2, 3),
        "num_heads": (embed_dim // head_dim, 2 * embed_dim // head_dim),
        "window_size": 4,
    }
    return build_model_with_cfg(
        SwinTransformer,
        name,
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1)},
        **{**arguments, **kwargs},
    )


@register_model
def swin_pico32(pretrained: bool = False, **kwargs) -> SwinTransformer:
    return _swin("swin_pico32", pretrained, embed_dim=32, head_dim=16, **kwargs)


@register_model
def swin_nano32(pretrained: bool = False, **kwargs) -> SwinTransformer:
    return _swin("swin_nano32", pretrained, embed_dim=64, head_dim=32, **kwargs)


def _davit(name: str, pretrained: bool, embed_dims: tuple[int, int], num_heads: tuple[int, int], **kwargs) -> DaVit:
    arguments = {"depths": (1, 1), "embed_dims": embed_dims, "num_heads": num_heads, "window_size": 4}
    return build_model_with_cfg(
        DaVit,
        name,
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1)},
        **{**arguments, **kwargs},
    )


@register_model
def davit_pico32(pretrained: bool = False, **kwargs) -> DaVit:
    return _davit("davit_pico32", pretrained, embed_dims=(48, 80), num_heads=(3, 5), **kwargs)


@register_model
def davit_nano32(pretrained: bool = False, **kwargs) -> DaVit:
    return _davit("davit_nano32", pretrained, embed_dims=(96, 160), num_heads=(3, 5), **kwargs)


def _pvt_v2(
    name: str, pretrained: bool, embed_dims: tuple[int, int], num_heads: tuple[int, int], **kwargs
) -> PyramidVisionTransformerV2:
    arguments = {
        "depths": (2, 2),
        "embed_dims": embed_dims,
        "num_heads": num_heads,
        "sr_ratios": (2, 1),
        "mlp_ratios": (4.0, 4.0),
    }
    return build_model_with_cfg(
        PyramidVisionTransformerV2,
        name,
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1)},
        **{**arguments, **kwargs},
    )


@register_model
def pvt_v2_pico32(pretrained: bool = False, **kwargs) -> PyramidVisionTransformerV2:
    return _pvt_v2("pvt_v2_pico32", pretrained, embed_dims=(32, 80), num_heads=(2, 5), **kwargs)


@register_model
def pvt_v2_nano32(pretrained: bool = False, **kwargs) -> PyramidVisionTransformerV2:
    return _pvt_v2("pvt_v2_nano32", pretrained, embed_dims=(64, 160), num_heads=(2, 5), **kwargs)


def _twins(name: str, pretrained: bool, embed_dims: tuple[int, int], num_heads: tuple[int, int], **kwargs) -> Twins:
    arguments = {
        "img_size": 32,
        "patch_size": 2,
        "depths": (2, 2),
        "embed_dims": embed_dims,
        "num_heads": num_heads,
        "mlp_ratios": (4, 4),
        "sr_ratios": (4, 2),
        "wss": (4, 4),
    }
    net = build_model_with_cfg(
        Twins, name, pretrained, feature_cfg={"out_indices": 2, "feature_cls": "getter"}, **{**arguments, **kwargs}
    )
    set_reductions(net, 2)
    return net


@register_model
def twins_pico32(pretrained: bool = False, **kwargs) -> Twins:
    return _twins("twins_pico32", pretrained, embed_dims=(32, 80), num_heads=(2, 5), **kwargs)


@register_model
def twins_nano32(pretrained: bool = False, **kwargs) -> Twins:
    return _twins("twins_nano32", pretrained, embed_dims=(64, 160), num_heads=(2, 5), **kwargs)


def _resnet(
    name: str, pretrained: bool, block: type[nn.Module], channels: tuple[int, int, int, int], stem_width: int, **kwargs
) -> ResNet:
    """Strides 1, 2, 4 and 8 instead of timm's 4 to 32: no stem stride and no pooling, as CIFAR ResNets have it."""
    arguments = {
        "block": block,
        "layers": (1, 1, 1, 1),
        "channels": channels,
        "stem_type": "deep",
        "stem_width": stem_width,
    }
    net = build_model_with_cfg(ResNet, name, pretrained, **{**arguments, **kwargs})
    net.conv1[0].stride = (1, 1)
    net.maxpool = nn.Identity()
    for info, reduction in zip(net.feature_info, (1, 1, 2, 4, 8), strict=True):
        info["reduction"] = reduction
    return net


@register_model
def resnet_pico32(pretrained: bool = False, **kwargs) -> ResNet:
    return _resnet("resnet_pico32", pretrained, BasicBlock, channels=(16, 32, 64, 96), stem_width=8, **kwargs)


@register_model
def resnet_nano32(pretrained: bool = False, **kwargs) -> ResNet:
    return _resnet("resnet_nano32", pretrained, Bottleneck, channels=(24, 48, 96, 136), stem_width=16, **kwargs)
