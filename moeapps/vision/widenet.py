"""WideNet (Xue et al., AAAI 2022) and ViT-MoE as timm models: the transformer of timm with experts of this package."""

# Shapes: N images, T tokens (patches, and the class token) per image, d width, E experts, L blocks

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from timm.layers import DropPath, LayerScale
from timm.models import register_notrace_module
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.config import Configurable, as_arguments, takes
from moeapps.core.errors import ConfigError
from moeapps.core.expert_sizes import ExpertSizes
from moeapps.core.layer import BalanceLoss, MoE
from moeapps.core.modes import notes_are_kept
from moeapps.core.older import arguments_of_0_1
from moeapps.core.routers import Router, make_router
from moeapps.core.routing import Routing
from moeapps.vision.scripting import as_plain_transformer
from moeapps.vision.stem import patch_embedding
from moeapps.vision.vit_options import ExpertOptions, initialize_experts, on_device, scale_last_layers, shared_attention

__all__ = ["SharedMoE", "ViTMoE", "VisionMoEConfig", "WideBlock", "WideNet"]


class SharedMoE(MoE):
    """An MoE layer that several blocks share, with the routing of each call.

    One forward pass of the model goes like this:

    1. The model calls :meth:`start`, which drops the routings of the pass before.
    2. Each of the L blocks calls :meth:`enter` and :meth:`forward`; router and experts are the same, the tokens are
       not, so every call has a routing of its own, which is kept.
    3. ``auxiliary_losses`` computes the losses of every call and returns their mean, so that their weight does not
       depend on the depth.

    In a loop of one's own over the blocks nobody calls :meth:`start`: there a block that does not come after the one
    before begins another pass.

    Attributes
    ----------
    routings : sequence of Routing
        Routing of each call of the last forward pass.
    most_calls : int, default=1024
        Largest number of calls in a pass: no more are kept. A model sets it to its depth.
    """

    routings: Sequence[Routing] = ()
    most_calls: int = 1024
    _block: int = -1  # the block that called last

    def start(self) -> None:
        """Drop the routings of the last forward pass."""
        self.routings, self._block = (), -1

    def enter(self, block: int) -> None:
        """Say which block calls next, by its number in the model."""
        if not notes_are_kept():
            return
        if block <= self._block:
            self.start()
        self._block = block

    def remember(self, routing: Routing) -> None:
        """Keep the routing of a call beside those of the pass's calls before."""
        if notes_are_kept():
            self.routings = (*self.routings, routing)[-self.most_calls * self.iterations :]
        super().remember(routing)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "routings": (), "_block": -1}


class WideBlock(nn.Module):
    """A transformer block that shares attention and experts with the other blocks, and has two norms of its own.

    Parameters
    ----------
    shared : nn.ModuleDict
        ``attn``, ``moe`` and, where norms are shared too, ``norm1`` and ``norm2``.
    norm1 : nn.Module or None
        Norm before the attention; the shared one when None.
    norm2 : nn.Module or None
        Norm before the experts; the shared one when None.
    drop_path : float, default=0.0
        Probability of skipping a residual branch in training.
    index : int, default=0
        Number of the block in its model.
    scales : sequence of nn.Module, default=()
        Layer scales of the two branches, the block's own; none when empty.
    """

    def __init__(
        self,
        shared: nn.ModuleDict,
        norm1: nn.Module | None,
        norm2: nn.Module | None,
        drop_path: float = 0.0,
        index: int = 0,
        scales: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.index = index
        self._shared = (shared,)  # in a tuple, so that torch does not register it here too: the model does, once
        self.norm1, self.norm2 = norm1, norm2
        self.ls1, self.ls2 = scales or (nn.Identity(), nn.Identity())
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    @property
    def shared(self) -> nn.ModuleDict:
        """What all blocks share."""
        return self._shared[0]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens ``(N, T, d)`` to tokens."""
        shared = self.shared
        norm1 = shared["norm1"] if self.norm1 is None else self.norm1
        norm2 = shared["norm2"] if self.norm2 is None else self.norm2
        x = x + self.drop_path(self.ls1(shared["attn"](norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        moe = shared["moe"]
        if isinstance(moe, SharedMoE):  # surgery may have made it a dense layer
            moe.enter(self.index)
        return x + self.drop_path(self.ls2(moe(norm2(x))))


@dataclass(frozen=True)
class VisionMoEConfig:
    """Experts of a vision transformer.

    Parameters
    ----------
    num_experts : int, default=4
        Number of experts E.
    top_k : int, default=2
        Experts per token, for routers with such an argument.
    router : str or Router, default="topk"
        Name of a router, as in ``moeapps list routers``, or a router. ``"topk"`` has noise of standard deviation 1 / E
        in training, ``"soft"`` makes the model a Soft MoE.
    router_args : mapping, optional
        Further arguments of a router that is given by name: ``{"slots": 4}`` for ``"soft"``.
    capacity_factor : float, optional
        Training only: an expert takes at most this multiple of its fair share of tokens (1.2 in the paper). None is no
        limit.
    eval_capacity_factor : float, optional
        Evaluation only: caps tokens per expert, as in :class:`~moeapps.core.MoE`. None is no limit.
    balance_weight : float, default=0.01
        Factor of the balance loss, the mean over the blocks with experts.
    z_weight : float, default=0.0
        Factor of the router z-loss, the mean over the blocks with experts.
    balance_loss : {"load", "mutual_information"}, default="load"
        The router's own balance loss, or ModuleFormer's in its place; see :class:`~moeapps.core.MoE`.
    iterations : int, default=1
        How often a layer applies its experts in turn (chain of experts).
    expert_sizes : {"arithmetic", "geometric"} or sequence of int, optional
        Experts of different hidden widths (HMoE): a name, by which they share the units of experts of one size, or the
        widths; all alike when None.
    penalty_weight : float, default=0.1
        Factor of the parameter penalty of experts of different widths, the mean over the blocks with experts.
    """

    num_experts: int = 4
    top_k: int = 2
    router: Router | str = "topk"
    router_args: Mapping[str, Any] | None = None
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None
    balance_weight: float = 0.01
    z_weight: float = 0.0
    balance_loss: BalanceLoss = "load"
    iterations: int = 1
    expert_sizes: ExpertSizes = None
    penalty_weight: float = 0.1


L = TypeVar("L", bound=MoE)


def _make_moe(layer: type[L], dim: int, options: ExpertOptions, config: VisionMoEConfig) -> L:
    """A layer of the given class, with the router's default noise."""
    router, given = config.router, dict(config.router_args or {})
    if isinstance(router, str):
        noise = {"noise_std": 1.0 / config.num_experts} if router == "topk" else {}  # that of V-MoE and WideNet
        router = make_router(router, dim, config.num_experts, **{"top_k": config.top_k, **noise, **given})
    elif given:
        raise ConfigError("router_args are for a router that is given by name: this one has its arguments")
    arguments = as_arguments(replace(config, router=router))
    del arguments["router_args"]
    if options == ExpertOptions(options.hidden_dim):
        return layer(dim, hidden_dim=options.hidden_dim, **arguments)
    if config.expert_sizes is not None:
        options.check_default("expert_sizes")
    if (needed := router.default_experts(options.hidden_dim)) is not None:
        options.check_default(f"{type(router).__name__}, which needs {type(needed).__name__}")
    return layer(dim, experts=options.experts(dim, config.num_experts), **arguments)


def _as_saved(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a folder or repository says, as it was meant: one that 0.1 saved names no ``iterations``."""
    return arguments if "iterations" in arguments else arguments_of_0_1(arguments)


def _init_all_experts(model: VisionTransformer, mode: str) -> None:
    """Initialise the experts of all layers."""
    for module in model.modules():
        if isinstance(module, MoE):
            initialize_experts(module, mode)


def _stacked_biases(model: nn.Module) -> set[str]:
    """Names of the biases in MoE layers: stacked over experts, they are matrices to an optimiser."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    return {
        f"{prefix}.{name}"
        for prefix, layer in layers.items()
        for name, _ in layer.named_parameters()
        if name.rpartition(".")[2].startswith("bias")
    }


class WideNet(
    VisionTransformer, Configurable, PyTorchModelHubMixin, library_name="moeapps", tags=["mixture-of-experts"]
):
    """Vision transformer of L blocks that share one attention and one MoE; only the norms are each block's own.

    Wider instead of deeper (Xue et al., AAAI 2022): the parameters are those of one block with E experts, and L pairs
    of norms; the depth is L. Whatever timm's ``VisionTransformer`` can do (feature extraction, other image sizes,
    ``reset_classifier``), this model can. ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` are
    huggingface_hub's: safetensors and JSON.

    Parameters
    ----------
    num_experts, top_k, router, ...
        Fields of :class:`VisionMoEConfig`, as keyword arguments.
    individual_norms : bool, default=True
        Whether every block has norms of its own; False shares them too (the paper's ablation).
    stem : {"patch", "conv"}, default="patch"
        How images become tokens: by one convolution as wide as a patch, or by several small ones
        (:class:`~moeapps.vision.ConvPatchEmbed`).
    **vit
        Arguments of timm's ``VisionTransformer``: ``img_size``, ``patch_size``, ``embed_dim``, ``depth``, ... Those of
        MLPs (``act_layer``, ``mlp_layer``, ``proj_bias``, ``proj_drop_rate``) are those of the experts;
        ``init_values`` gives each block layer scales of its own.

    Raises
    ------
    ConfigError
        If ``depth`` is not a positive integer, router, experts and capacity do not fit together, or an argument of timm
        has no meaning here: ``fix_init``, ``block_fn``, ``scale_mlp_norm``, an attention that depends on the block, an
        activation or MLP that experts do not have.

    Examples
    --------
    >>> import torch
    >>> model = WideNet(img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=4, num_heads=4, num_classes=10)
    >>> model(torch.randn(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    @takes(VisionMoEConfig)
    def __init__(
        self, *, config: VisionMoEConfig, individual_norms: bool = True, stem: str = "patch", **vit: Any
    ) -> None:
        check_sizes(depth=vit.get("depth", 12))
        if "block_fn" in vit:
            raise ConfigError("block_fn cannot be set: WideNet has blocks of its own")
        if vit.get("fix_init"):
            raise ConfigError("fix_init=True scales the weights of a block by its number: these blocks share theirs")
        made: list[nn.ModuleDict] = []
        numbers = itertools.count()

        # timm calls this once per block; the first call makes what all blocks share.
        def block(
            dim: int,
            num_heads: int,
            norm_layer: Callable[..., nn.Module],
            drop_path: float = 0.0,
            qkv_bias: bool = True,
            qk_norm: bool = False,
            scale_attn_norm: bool = False,
            proj_bias: bool = True,
            attn_drop: float = 0.0,
            proj_drop: float = 0.0,
            init_values: float | None = None,
            attn_layer: Any = "attn",
            device: Any = None,
            dtype: Any = None,
            **_of_mlps: Any,  # ExpertOptions reads them
        ) -> WideBlock:
            place = {"device": device, "dtype": dtype}
            if not made:
                shared: dict[str, nn.Module] = {
                    "attn": shared_attention(
                        attn_layer,
                        scale_attn_norm,
                        dim,
                        num_heads=num_heads,
                        qkv_bias=qkv_bias,
                        qk_norm=qk_norm,
                        proj_bias=proj_bias,
                        attn_drop=attn_drop,
                        proj_drop=proj_drop,
                        norm_layer=norm_layer,
                        **place,
                    ),
                    "moe": on_device(lambda: _make_moe(SharedMoE, dim, options, config), device, dtype),
                }
                if not individual_norms:
                    shared |= {"norm1": norm_layer(dim, **place), "norm2": norm_layer(dim, **place)}
                made.append(nn.ModuleDict(shared))
            norms = [norm_layer(dim, **place) if individual_norms else None for _ in range(2)]
            scales = [LayerScale(dim, init_values=init_values, **place) for _ in range(2)] if init_values else []
            return WideBlock(made[0], norms[0], norms[1], drop_path, next(numbers), scales)

        options = ExpertOptions.from_timm(vit.get("embed_dim", 768), vit)
        # Weights are initialised once the shared modules are registered: timm would not find them before.
        arguments = {**vit, **patch_embedding(stem), "weight_init": "skip"}
        super().__init__(block_fn=block, **arguments)  # type: ignore[arg-type]
        self.shared = made[0]
        self.moe.most_calls = len(self.blocks)
        self._init_mode = vit.get("weight_init", "")
        if self._init_mode != "skip":
            self.init_weights()

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights by one of timm's modes, or by that of the constructor.

        By default experts are initialised as timm's MLPs, the other layers as torch does it.
        """
        mode = mode or self._init_mode
        super().init_weights("reset" if mode == "skip" else mode, needs_reset)
        _init_all_experts(self, "reset" if mode == "skip" else mode)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: timm's, and biases of experts, which are stacked to matrices."""
        return super().no_weight_decay() | _stacked_biases(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay of the learning rate.

        What all blocks share is in the layer of the middle block, whose factor is the geometric mean of the factors of
        the blocks that use it.
        """
        groups: dict[str, Any] = super().group_matcher(coarse)
        middle = (len(self.blocks) - 1) // 2
        return {**groups, "blocks": [*groups["blocks"], (r"^shared", (middle,))]}

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script makes a program of: a copy for evaluation in plain torch."""
        return as_plain_transformer(self)

    @classmethod
    def _from_pretrained(cls, **arguments: Any) -> Self:
        """Load a folder or repository; the router of one that 0.1 saved has the defaults of then."""
        return cast(Self, super()._from_pretrained(**_as_saved(arguments)))

    @property
    def moe(self) -> SharedMoE:
        """The MoE layer that all blocks share."""
        moe = self.shared["moe"]
        if not isinstance(moe, SharedMoE):
            raise ConfigError(
                f"surgery has replaced the experts of this WideNet: its blocks share a {type(moe).__name__}"
            )
        return moe

    def _start(self) -> None:
        if isinstance(self.shared["moe"], SharedMoE):  # surgery may have made it a dense layer
            self.moe.start()

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images ``(N, C, H, W)`` to tokens ``(N, T, d)`` after the last block and norm."""
        self._start()
        features: Tensor = super().forward_features(x, attn_mask=attn_mask, is_causal=is_causal)
        return features

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Features of the blocks, as timm's transformer gives them."""
        self._start()
        return super().forward_intermediates(*args, **kwargs)


class ViTMoE(
    VisionTransformer, Configurable, PyTorchModelHubMixin, library_name="moeapps", tags=["mixture-of-experts"]
):
    """Vision transformer with an MoE in place of the MLP in some of its blocks (V-MoE, Riquelme et al. 2021).

    Parameters
    ----------
    num_experts, top_k, router, ...
        Fields of :class:`VisionMoEConfig`, as keyword arguments. A router is given by name, since each of those blocks
        has its own.
    moe_every : int, default=2
        Every ``moe_every``-th block, the last one included, has experts.
    stem : {"patch", "conv"}, default="patch"
        As of :class:`WideNet`.
    **vit
        Arguments of timm's ``VisionTransformer``.

    Raises
    ------
    ConfigError
        If sizes do not fit together.
    """

    @takes(VisionMoEConfig)
    def __init__(self, *, config: VisionMoEConfig, moe_every: int = 2, stem: str = "patch", **vit: Any) -> None:
        check_sizes(moe_every=moe_every)
        options = ExpertOptions.from_timm(vit.get("embed_dim", 768), vit)
        super().__init__(**vit, **patch_embedding(stem))
        if not all(isinstance(getattr(block, "mlp", None), nn.Module) for block in self.blocks):
            name = getattr(vit.get("block_fn"), "__name__", vit.get("block_fn"))
            raise ConfigError(f"block_fn={name}: its blocks have no MLP of their own, in whose place experts could be")
        depth, dim = len(self.blocks), self.embed_dim
        chosen = [i for i in range(depth) if (depth - 1 - i) % moe_every == 0]
        # Losses of all layers are added up, those of one layer count 1 / (number of layers).
        each = replace(
            config,
            balance_weight=config.balance_weight / len(chosen),
            z_weight=config.z_weight / len(chosen),
            penalty_weight=config.penalty_weight / len(chosen),
        )
        initialized = vit.get("weight_init") != "skip"
        for i in chosen:
            moe = on_device(lambda: _make_moe(MoE, dim, options, each), vit.get("device"), vit.get("dtype"))
            if initialized:
                initialize_experts(moe, self.weight_init_mode)
            self.blocks[i].mlp = moe
        if initialized and self.fix_init:
            self._fix_experts()

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights, those of the experts as timm initialises MLPs; see timm's ``weight_init``."""
        fix, self.fix_init = self.fix_init, False
        super().init_weights(mode, needs_reset)
        _init_all_experts(self, mode or self.weight_init_mode)
        self.fix_init = fix
        if fix:
            self.fix_init_weight()

    def fix_init_weight(self) -> None:
        """Divide the last weights of attention and MLP, or experts, of block l by sqrt(2 l), as timm does."""
        block: Any
        for depth, block in enumerate(self.blocks, 1):
            block.attn.proj.weight.detach().div_(math.sqrt(2 * depth))
            if not isinstance(block.mlp, MoE):
                block.mlp.fc2.weight.detach().div_(math.sqrt(2 * depth))
        self._fix_experts()

    def _fix_experts(self) -> None:
        for depth, block in enumerate(self.blocks, 1):
            if isinstance(block.mlp, MoE):
                scale_last_layers(block.mlp, 1 / math.sqrt(2 * depth))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: timm's, and biases of experts, which are stacked to matrices."""
        return super().no_weight_decay() | _stacked_biases(self)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script makes a program of: a copy for evaluation in plain torch."""
        return as_plain_transformer(self)

    @classmethod
    def _from_pretrained(cls, **arguments: Any) -> Self:
        """Load a folder or repository; the router of one that 0.1 saved has the defaults of then."""
        return cast(Self, super()._from_pretrained(**_as_saved(arguments)))


register_notrace_module(MoE)  # torch.fx takes a layer as a whole: which rows an expert gets depends on values
