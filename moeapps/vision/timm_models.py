"""WideNet and ViT-MoE under their names in timm; importing this module registers them.

There are no pretrained weights: ``pretrained=True`` is refused by timm, unless ``pretrained_cfg_overlay`` names a file
of one's own. Position embeddings in it are resized to the model's images.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from moeapps.vision.widenet import ViTMoE, WideNet

__all__ = ["SIZES"]

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Width, number of blocks and of heads; base, large and huge are those of the WideNet paper."""


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {f"{family}_{size}_patch16_224.untrained": _cfg() for family in ("widenet", "vit_moe") for size in SIZES}
)


def _build(cls: type[nn.Module], name: str, size: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    out_indices = arguments.pop("out_indices", 3)
    model: nn.Module = build_model_with_cfg(
        cls,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{"patch_size": 16, **SIZES[size], **arguments},
    )
    return model


@register_model
def widenet_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideNet, 12 blocks of width 192."""
    return _build(WideNet, "widenet_tiny_patch16_224", "tiny", pretrained, kwargs)


@register_model
def widenet_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideNet, 12 blocks of width 384."""
    return _build(WideNet, "widenet_small_patch16_224", "small", pretrained, kwargs)


@register_model
def widenet_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideNet-B: 12 blocks of width 768."""
    return _build(WideNet, "widenet_base_patch16_224", "base", pretrained, kwargs)


@register_model
def widenet_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideNet-L: 24 blocks of width 1024."""
    return _build(WideNet, "widenet_large_patch16_224", "large", pretrained, kwargs)


@register_model
def widenet_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideNet-H: 32 blocks of width 1280."""
    return _build(WideNet, "widenet_huge_patch16_224", "huge", pretrained, kwargs)


@register_model
def vit_moe_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-MoE, 12 blocks of width 192, experts in every other one."""
    return _build(ViTMoE, "vit_moe_tiny_patch16_224", "tiny", pretrained, kwargs)


@register_model
def vit_moe_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-MoE, 12 blocks of width 384, experts in every other one."""
    return _build(ViTMoE, "vit_moe_small_patch16_224", "small", pretrained, kwargs)


@register_model
def vit_moe_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-MoE, 12 blocks of width 768, experts in every other one."""
    return _build(ViTMoE, "vit_moe_base_patch16_224", "base", pretrained, kwargs)


@register_model
def vit_moe_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-MoE, 24 blocks of width 1024, experts in every other one."""
    return _build(ViTMoE, "vit_moe_large_patch16_224", "large", pretrained, kwargs)


@register_model
def vit_moe_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-MoE, 32 blocks of width 1280, experts in every other one."""
    return _build(ViTMoE, "vit_moe_huge_patch16_224", "huge", pretrained, kwargs)
