"""WideNet (Xue et al., AAAI 2022) and ViT-MoE as timm models: the transformer of timm with experts of this package."""

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from timm.layers import DropPath
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.layer import MoE
from moeapps.core.routers import Router, TopKRouter
from moeapps.core.routing import Routing

__all__ = ["SharedMoE", "ViTMoE", "WideBlock", "WideNet"]


class SharedMoE(MoE):
    """An MoE layer that several blocks call one after the other, and that remembers the routing of each call.

    Auxiliary losses are the mean over the calls since :meth:`start`, so that their weight does not depend on the depth.

    Attributes
    ----------
    routings
        Routing of each call.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.routings: list[Routing] = []

    def start(self) -> None:
        """Forget the calls of the last forward pass."""
        self.routings = []

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """As :class:`~moeapps.core.MoE`."""
        out = super().forward(x, ids)
        assert self.last_routing is not None
        self.routings.append(self.last_routing)
        return out

    def auxiliary_losses(self, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted losses, mean over the calls."""
        every = []
        for routing in self.routings:
            self.last_routing = routing
            every.append(super().auxiliary_losses(token_weight))
        return {name: torch.stack([losses[name] for losses in every]).mean() for name in (every[0] if every else {})}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "routings": []}


class WideBlock(nn.Module):
    """A block whose attention and experts belong to the model; only its two norms are its own.

    Parameters
    ----------
    shared : nn.ModuleDict
        ``attn``, ``moe`` and, where norms are shared too, ``norm1`` and ``norm2``.
    norm1 : nn.Module or None
        Norm before the attention; the shared one when None.
    norm2 : nn.Module or None
        Norm before the experts; the shared one when None.
    drop_path : float, default 0.0
        Probability of skipping a residual branch in training.
    """

    def __init__(
        self, shared: nn.ModuleDict, norm1: nn.Module | None, norm2: nn.Module | None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self._shared = (shared,)  # in a tuple: the model registers it, once
        self.norm1, self.norm2 = norm1, norm2
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens ``(N, T, d)`` to tokens."""
        shared = self._shared[0]
        norm1 = shared["norm1"] if self.norm1 is None else self.norm1
        norm2 = shared["norm2"] if self.norm2 is None else self.norm2
        x = x + self.drop_path(shared["attn"](norm1(x), attn_mask=attn_mask, is_causal=is_causal))
        return x + self.drop_path(shared["moe"](norm2(x)))


def _make_router(router: Router | str, dim: int, num_experts: int, top_k: int) -> Router | str:
    """V-MoE's and WideNet's router by default: softmax with noise of 1 / E in training."""
    return TopKRouter(dim, num_experts, top_k, noise_std=1.0 / num_experts) if router == "topk" else router


def _init_experts(moe: MoE) -> None:
    """Initialise experts as timm initialises the MLPs of its transformers."""
    for name, parameter in moe.experts.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=0.02)


class WideNet(VisionTransformer, PyTorchModelHubMixin, library_name="moeapps", tags=["mixture-of-experts"]):
    """Vision transformer of L blocks that share one attention and one MoE; only the norms are each block's own.

    Wider instead of deeper: the parameters are those of one block with E experts (and L pairs of norms), the depth is
    L. Whatever timm's ``VisionTransformer`` can do (feature extraction, other image sizes, ``reset_classifier``), this
    model can. ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` are huggingface_hub's: safetensors and JSON.

    Parameters
    ----------
    num_experts : int, default 4
        Number of experts E.
    top_k : int, default 2
        Experts per token.
    router : Router or str, default "topk"
        Name of a router of this package (``"topk"`` has noise of standard deviation 1 / E in training), or a router.
        ``"soft"`` makes it a Soft MoE.
    capacity_factor : float, optional
        In training an expert takes at most this multiple of its fair share of tokens (1.2 in the paper); None is no
        limit.
    eval_capacity_factor : float, optional
        As in :class:`~moeapps.core.MoE`: a saving in evaluation, of the least certain patches (also
        ``model.moe.eval_capacity_factor``).
    balance_weight : float, default 0.01
        Factor of the balance loss, mean over the blocks.
    z_weight : float, default 0.0
        Factor of the router z-loss.
    individual_norms : bool, default True
        Whether every block has norms of its own; False shares them too (the paper's ablation).
    **vit
        Arguments of timm's ``VisionTransformer``.

    Raises
    ------
    ConfigError
        If sizes do not fit together.

    Examples
    --------
    >>> import torch
    >>> model = WideNet(img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=4, num_heads=4, num_classes=10)
    >>> model(torch.randn(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        num_experts: int = 4,
        top_k: int = 2,
        router: Router | str = "topk",
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        individual_norms: bool = True,
        **vit: Any,
    ) -> None:
        made: list[nn.ModuleDict] = []

        def block(
            dim: int,
            num_heads: int,
            mlp_ratio: float,
            norm_layer: Callable[[int], nn.Module],
            drop_path: float = 0.0,
            qkv_bias: bool = True,
            qk_norm: bool = False,
            attn_drop: float = 0.0,
            proj_drop: float = 0.0,
            **others: Any,
        ) -> WideBlock:
            if not made:
                attention = Attention(
                    dim,
                    num_heads=num_heads,
                    qkv_bias=qkv_bias,
                    qk_norm=qk_norm,
                    attn_drop=attn_drop,
                    proj_drop=proj_drop,
                    norm_layer=norm_layer,  # type: ignore[arg-type]
                )
                moe = SharedMoE(
                    dim,
                    num_experts,
                    top_k,
                    int(dim * mlp_ratio),
                    router=_make_router(router, dim, num_experts, top_k),
                    capacity_factor=capacity_factor,
                    eval_capacity_factor=eval_capacity_factor,
                    balance_weight=balance_weight,
                    z_weight=z_weight,
                )
                shared: dict[str, nn.Module] = {"attn": attention, "moe": moe}
                if not individual_norms:
                    shared |= {"norm1": norm_layer(dim), "norm2": norm_layer(dim)}
                made.append(nn.ModuleDict(shared))
            norms = [norm_layer(dim) if individual_norms else None for _ in range(2)]
            return WideBlock(made[0], norms[0], norms[1], drop_path)

        check_sizes(depth=vit.get("depth", 12))
        super().__init__(block_fn=block, **{**vit, "weight_init": "skip"})  # type: ignore[arg-type]
        self.shared = made[0]
        self.init_weights(vit.get("weight_init", ""))
        _init_experts(self.moe)

    @property
    def moe(self) -> SharedMoE:
        """The experts that all blocks share."""
        found = self.shared["moe"]
        assert isinstance(found, SharedMoE)
        return found

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens ``(N, T, d)`` after the last block and norm."""
        self.moe.start()
        found: Tensor = super().forward_features(x, attn_mask=attn_mask, is_causal=is_causal)
        return found

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Features of the blocks, as timm's transformer gives them."""
        self.moe.start()
        return super().forward_intermediates(*args, **kwargs)


class ViTMoE(VisionTransformer, PyTorchModelHubMixin, library_name="moeapps", tags=["mixture-of-experts"]):
    """Vision transformer with an MoE in place of the MLP in some of its blocks (V-MoE, Riquelme et al. 2021).

    Parameters
    ----------
    num_experts : int, default 4
        Number of experts E.
    top_k : int, default 2
        Experts per token.
    router : str, default "topk"
        As in :class:`WideNet`.
    moe_every : int, default 2
        Every so manieth block, the last one included, has experts.
    capacity_factor : float, optional
        As in :class:`WideNet`.
    eval_capacity_factor : float, optional
        As in :class:`WideNet`.
    balance_weight : float, default 0.01
        Factor of the balance loss, mean over those blocks.
    z_weight : float, default 0.0
        Factor of the router z-loss.
    **vit
        Arguments of timm's ``VisionTransformer``.
    """

    def __init__(
        self,
        *,
        num_experts: int = 4,
        top_k: int = 2,
        router: str = "topk",
        moe_every: int = 2,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        **vit: Any,
    ) -> None:
        check_sizes(moe_every=moe_every)
        super().__init__(**vit)
        depth, dim = len(self.blocks), self.embed_dim
        chosen = [i for i in range(depth) if (depth - 1 - i) % moe_every == 0]
        for i in chosen:
            moe = MoE(
                dim,
                num_experts,
                top_k,
                int(dim * vit.get("mlp_ratio", 4.0)),
                router=_make_router(router, dim, num_experts, top_k),
                capacity_factor=capacity_factor,
                eval_capacity_factor=eval_capacity_factor,
                balance_weight=balance_weight / len(chosen),
                z_weight=z_weight / len(chosen),
            )
            _init_experts(moe)
            self.blocks[i].mlp = moe
