"""Patches by a few small convolutions in place of one large one, for transformers of timm."""

# Shapes: N images, C channels, H height, W width, T patches, d width

import math
from typing import Any

import torch
from timm.layers import ConvNormAct, PatchEmbed
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError

__all__ = ["STEMS", "ConvPatchEmbed", "patch_embedding"]

STEMS = ("patch", "conv")
"""How images become tokens: one convolution as wide as a patch, or several of 3 x 3."""

NARROWEST = 32
"""Channels before the first stride of the stem; twice as many before the second, and so on up to the tokens' width."""

LARGE = 8
"""Above a patch of this side only the last two strides have two convolutions: images are large, and time would grow."""


class ConvPatchEmbed(PatchEmbed):
    r"""Convolutional stem: two convolutions of 3 x 3 for every factor of the patch's side, and a projection.

    Early convolutions help transformers see better (Xiao et al., NeurIPS 2021). For every factor 2 of the side there is
    a convolution of stride 1 and one of stride 2, each with batch norm and GELU; of patches of more than 8 pixels, only
    the last two factors have the first one. Widths double from 32 channels up to the tokens', and none is less than
    half of the next. A convolution of 1 x 1 makes the tokens. So neighbouring patches overlap, and the network needs
    fewer images than with the one large convolution of a plain ViT. The number of tokens is the same.

    Other factors of the patch's side are strides of their own: a side of 6 is strides 2 and 3. A convolution of stride
    s covers :math:`2 \lceil s / 2 \rceil + 1` pixels.

    Parameters
    ----------
    img_size, patch_size, in_chans, embed_dim, bias, **others
        As of timm's ``PatchEmbed``, whose ``proj`` is replaced.

    Raises
    ------
    ConfigError
        If the patch is one pixel, or not a square.
    """

    def __init__(
        self,
        img_size: Any = 224,
        patch_size: Any = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **others: Any,
    ) -> None:
        super().__init__(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, bias=bias,
            device=device, dtype=dtype, **others,
        )  # fmt: skip
        side, other = self.patch_size
        if side != other or side < 2:
            raise ConfigError(
                f"stem='conv' needs square patches of at least 2 pixels, got patch_size={patch_size!r}: take "
                "stem='patch', or another patch_size"
            )
        strides = _prime_factors(side)
        doubled = len(strides) if side <= LARGE else 2
        layers: list[nn.Module] = []
        channels = in_chans
        made: dict[str, Any] = {"act_layer": nn.GELU, "device": device, "dtype": dtype}
        for later, stride in zip(reversed(range(len(strides))), strides, strict=True):
            wide = min(embed_dim, max(NARROWEST * 2 ** (len(strides) - 1 - later), embed_dim // 2**later))
            if later < doubled:
                layers.append(ConvNormAct(channels, wide, kernel_size=3, **made))
                channels = wide
            kernel = 2 * math.ceil(stride / 2) + 1
            layers.append(ConvNormAct(channels, wide, kernel_size=kernel, stride=stride, padding=kernel // 2, **made))
            channels = wide
        layers.append(nn.Conv2d(channels, embed_dim, 1, bias=bias, device=device, dtype=dtype))
        self.proj = nn.Sequential(*layers)  # type: ignore[assignment]

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Take another size of images; the patch stays.

        Raises
        ------
        ConfigError
            If ``patch_size`` is another one: it is the product of the strides.
        """
        sides = patch_size if isinstance(patch_size, tuple | list) else (patch_size, patch_size)
        if patch_size is not None and tuple(sides) != tuple(self.patch_size):
            raise ConfigError(
                f"patch_size of a convolutional stem is fixed ({self.patch_size[0]}), got {patch_size!r}: build a new "
                "network"
            )
        super().set_input_size(img_size=img_size)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to tokens ``(N, T, d)``."""
        # channels last: then the transpose to tokens copies nothing
        tokens: Tensor = super().forward(x.contiguous(memory_format=torch.channels_last))
        return tokens


def _prime_factors(side: int) -> list[int]:
    """The strides whose product is a side, small ones first."""
    factors, divisor = [], 2
    while side > 1:
        while side % divisor == 0:
            factors.append(divisor)
            side //= divisor
        divisor += 1
    return factors


def patch_embedding(stem: str) -> dict[str, Any]:
    """The argument of timm's ``VisionTransformer`` that a stem is.

    Raises
    ------
    ConfigError
        If there is no such stem.
    """
    check_one_of("stem", stem, STEMS)
    return {"embed_layer": ConvPatchEmbed} if stem == "conv" else {}
