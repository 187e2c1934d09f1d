"""Diffusion transformer (DiT, Peebles and Xie, ICCV 2023): noisy images and timesteps to noise and its variance."""

# Shapes: N images, C channels, H = W side of an image, T tokens (patches) per image, d width, K classes

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from timm.layers import Mlp, PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.modes import values_are_hidden

__all__ = ["SIZES", "DiT", "DiTBlock", "DiTConfig", "TimestepEmbedding"]

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"dim": 64, "depth": 4, "num_heads": 4},
    "S": {"dim": 384, "depth": 12, "num_heads": 6},
    "B": {"dim": 768, "depth": 12, "num_heads": 12},
    "L": {"dim": 1024, "depth": 24, "num_heads": 16},
    "XL": {"dim": 1152, "depth": 28, "num_heads": 16},
}
"""Width, number of blocks and of heads; S to XL are those of the DiT paper."""

FREQUENCIES = 256


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of a timestep, followed by an MLP.

    Parameters
    ----------
    dim : int
        Width of the result.
    max_period : float, default=10000.0
        Longest period of the sines.
    """

    def __init__(self, dim: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(max_period) * torch.arange(half) / half)
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps ``(N,)`` to ``(N, dim)``."""
        angles = t[:, None].float() * self.get_buffer("rates")
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        out: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens ``(N, T, d)`` by one vector ``(N, 1, d)`` per image."""
    return torch.addcmul(shift, x, 1 + scale)


class DiTBlock(nn.Module):
    """Attention and MLP, shifted, scaled and gated by the condition; at initialisation the identity (adaLN-Zero).

    Parameters
    ----------
    dim : int
        Width d.
    num_heads : int
        Heads.
    mlp_ratio : float, default=4.0
        Hidden width of the MLP, as a multiple of the width.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=partial(nn.GELU, approximate="tanh"))  # type: ignore[arg-type]
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens ``(N, T, d)`` and condition ``(N, d)`` to tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, gate1, self.attn(modulate(self.norm1(x), shift1, scale1)))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a :class:`DiT`.

    Parameters
    ----------
    img_size : int, default=32
        Height and width of the images in pixels.
    patch_size : int, default=2
        Side of a patch in pixels; it divides ``img_size``.
    in_chans : int, default=3
        Channels C of the images.
    num_classes : int, default=0
        Number of classes K; 0 for images without labels.
    dim : int, default=384
        Width d of the tokens, a multiple of ``num_heads`` and of 4.
    depth : int, default=12
        Number of blocks.
    num_heads : int, default=6
        Number of attention heads.
    mlp_ratio : float, default=4.0
        Hidden width of the MLPs, as a multiple of ``dim``.
    learn_sigma : bool, default=True
        Whether the network also predicts the variance of the noise, as a second half of the output channels.
    class_dropout : float, default=0.1
        Probability with which training replaces a label by "no class", for classifier-free guidance; below 1.
    timesteps : int, default=1000
        Number of timesteps of the diffusion; they are 0 to ``timesteps - 1``.
    """

    img_size: int = 32
    patch_size: int = 2
    in_chans: int = 3
    num_classes: int = 0
    dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    learn_sigma: bool = True
    class_dropout: float = 0.1
    timesteps: int = 1000

    def check(self) -> None:
        """Refuse sizes that do not fit together.

        Raises
        ------
        ConfigError
            Naming the argument.
        """
        check_sizes(
            img_size=self.img_size, patch_size=self.patch_size, in_chans=self.in_chans, dim=self.dim, depth=self.depth,
            num_heads=self.num_heads, timesteps=self.timesteps,
        )  # fmt: skip
        if self.img_size % self.patch_size:
            raise ConfigError(f"img_size={self.img_size} is not a multiple of patch_size={self.patch_size}")
        if self.dim % self.num_heads or self.dim % 4:
            raise ConfigError(f"dim={self.dim} must be a multiple of num_heads={self.num_heads} and of 4")
        if not 0 <= self.class_dropout < 1 or self.num_classes < 0:
            raise ConfigError(
                "class_dropout must be at least 0 and below 1, num_classes at least 0, "
                f"got {self.class_dropout!r}, {self.num_classes!r}"
            )


class DiT(nn.Module, Configurable, PyTorchModelHubMixin, library_name="moeapps", tags=["diffusion"]):
    """Diffusion transformer on pixels or latents (Peebles and Xie, ICCV 2023).

    Takes the fields of :class:`DiTConfig` as arguments. At initialisation its output is zero (adaLN-Zero). The label
    ``num_classes`` is "no class", for classifier-free guidance. ``save_pretrained``, ``push_to_hub`` and
    ``from_pretrained`` are huggingface_hub's: safetensors and JSON.

    Raises
    ------
    ConfigError
        If sizes do not fit together.

    Examples
    --------
    >>> import torch
    >>> model = DiT(img_size=8, patch_size=2, in_chans=1, num_classes=10, dim=32, depth=2, num_heads=4)
    >>> model(torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([1, 2, 10])).shape
    torch.Size([3, 2, 8, 8])
    """

    @takes(DiTConfig)
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        config.check()
        dim = config.dim
        self.img_size, self.patch_size, self.in_chans = config.img_size, config.patch_size, config.in_chans
        self.num_classes, self.class_dropout = config.num_classes, config.class_dropout
        self.timesteps = config.timesteps
        self.out_chans = config.in_chans * (2 if config.learn_sigma else 1)
        self.patch_embed = PatchEmbed(config.img_size, config.patch_size, config.in_chans, dim)
        side = config.img_size // config.patch_size
        self.register_buffer("pos_embed", build_sincos2d_pos_embed([side, side], dim)[None], persistent=False)
        self.t_embed = TimestepEmbedding(dim)
        self.y_embed = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        self.blocks = nn.ModuleList(
            self.make_block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.head = nn.Linear(dim, config.patch_size**2 * self.out_chans)
        self.reset_parameters()

    def make_block(self, dim: int, num_heads: int, mlp_ratio: float) -> nn.Module:
        """Make one block; a subclass overrides it."""
        return DiTBlock(dim, num_heads, mlp_ratio)

    def reset_parameters(self) -> None:
        """Initialise as DiT does: Xavier-uniform, and zeros at the end of every residual path (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        for layer in self.t_embed.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.y_embed is not None:
            nn.init.normal_(self.y_embed.weight, std=0.02)
        blocks = [block for block in self.blocks if isinstance(block, DiTBlock)]
        ends: list[Any] = [block.modulation[-1] for block in blocks] + [self.modulation[-1], self.head]
        for end in ends:
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Prediction ``(N, C, H, W)``, with learned sigma ``(N, 2 C, H, W)``, for noisy images.

        1. Embed the patches, and add positions: ``(N, T, d)``.
        2. The condition ``(N, d)`` of a block is the embedded timestep plus the embedded label.
        3. Run the blocks; each shifts, scales and gates its tokens by the condition.
        4. Project the tokens to pixels and put the patches together.

        Parameters
        ----------
        x : Tensor
            Noisy images ``(N, C, H, W)``.
        t : Tensor
            Timesteps ``(N,)``, integers from 0 to ``timesteps - 1``.
        y : Tensor, optional
            Labels ``(N,)``, integers from 0 to K - 1, or K for "no class"; "no class" for all when None.

        Raises
        ------
        DataError
            If a shape, timestep or label is impossible.
        """
        self._check(x, t, y)
        temb = self.t_embed(t)
        condition = temb if self.y_embed is None else temb + self.y_embed(self._labels(y, x))
        tokens = self.patch_embed(x) + self.get_buffer("pos_embed")
        tokens = self.run_blocks(tokens, condition, temb, t)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        return self._unpatchify(self.head(modulate(self.norm(tokens), shift, scale)))

    def run_blocks(self, tokens: Tensor, condition: Tensor, temb: Tensor, t: Tensor) -> Tensor:
        """Run all blocks on tokens ``(N, T, d)``."""
        for block in self.blocks:
            tokens = block(tokens, condition)
        return tokens

    def _labels(self, y: Tensor | None, x: Tensor) -> Tensor:
        if y is None:
            return torch.full((x.shape[0],), self.num_classes, device=x.device)
        if self.training and self.class_dropout > 0:
            y = y.masked_fill(torch.rand(y.shape[0], device=y.device) < self.class_dropout, self.num_classes)
        return y

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        side, patch = self.img_size // self.patch_size, self.patch_size
        count = tokens.shape[0]  # not len, which torch.export would take for a constant
        grid = tokens.view(count, side, side, patch, patch, self.out_chans)  # (N, rows, columns, p, p, C)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(count, self.out_chans, self.img_size, self.img_size)

    def _check(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        wanted = (self.in_chans, self.img_size, self.img_size)
        if tuple(x.shape[1:]) != wanted:
            raise DataError(f"x must be (N, {', '.join(map(str, wanted))}), got {tuple(x.shape)}")
        for name, values, largest in (("t", t, self.timesteps - 1), ("y", y, self.num_classes)):
            if values is None:
                continue
            if values.shape != x.shape[:1] or values.is_floating_point():
                raise DataError(
                    f"{name} must be {x.shape[0]} whole numbers, got {values.dtype} of {tuple(values.shape)}"
                )
            if values_are_hidden() or values.is_cuda or values.shape[0] == 0:
                continue  # reading values would break the graph, or synchronise with the device
            if int(values.min()) < 0 or int(values.max()) > largest:
                raise DataError(f"{name} must be 0 to {largest}, got {int(values.min())} to {int(values.max())}")
        if y is not None and self.y_embed is None:
            raise DataError("the model was built for images without labels: num_classes=0, but y is given")
