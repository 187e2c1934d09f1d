"""What arguments of timm's vision transformer mean for the experts that stand in place of its MLPs."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import GELU, GluMlp, Mlp, SwiGLU, Swish, get_act_layer
from timm.models.vision_transformer import Attention, DiffAttention
from torch import nn

from moeapps.core.errors import ConfigError
from moeapps.core.experts import ExpertMLP, FeedForward, HeterogeneousExperts
from moeapps.core.layer import MoE

__all__ = ["ExpertOptions", "initialize_experts", "on_device", "scale_last_layers", "shared_attention"]

_NAMES: dict[Any, str] = {
    nn.GELU: "gelu",
    GELU: "gelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    Swish: "silu",
}
"""Activations of timm that experts have, too."""


@dataclass(frozen=True)
class ExpertOptions:
    """Networks of the experts, as arguments of timm's ``VisionTransformer`` describe MLPs.

    Parameters
    ----------
    hidden_dim : int
        Hidden width h.
    activation : str, default="gelu"
        Name of the activation.
    bias : bool, default=True
        Whether the layers have biases (``proj_bias``).
    dropout : float, default=0.0
        Dropout after the activation and after the second layer (``proj_drop_rate``).
    """

    hidden_dim: int
    activation: str = "gelu"
    bias: bool = True
    dropout: float = 0.0

    @classmethod
    def from_timm(cls, dim: int, vit: Mapping[str, Any]) -> "ExpertOptions":
        """Read the arguments of a ``VisionTransformer`` of width ``dim``.

        Raises
        ------
        ConfigError
            Naming an argument with a value that experts cannot have.
        """
        if vit.get("scale_mlp_norm"):
            raise ConfigError("scale_mlp_norm=True: experts have no norm between their layers; leave it False")
        hidden_dim = int(dim * vit.get("mlp_ratio", 4.0))
        name = _activation(vit.get("act_layer"))
        mlp_layer = vit.get("mlp_layer", Mlp)
        kind, given = (mlp_layer.func, mlp_layer.keywords) if isinstance(mlp_layer, partial) else (mlp_layer, {})
        if set(given) - {"act_layer", "gate_last"}:
            raise ConfigError(f"mlp_layer={mlp_layer!r}: experts have no {', '.join(sorted(given))}")
        if kind is SwiGLU or (kind is GluMlp and given.get("gate_last") is False):
            # timm's blocks override the activation of a gated MLP by act_layer, whose default is GELU
            if name != "silu":
                raise ConfigError(
                    f"mlp_layer={_shown(mlp_layer)}: the gates of experts are SiLU: set act_layer='silu' with it"
                )
            name, hidden_dim = "swiglu", hidden_dim if kind is SwiGLU else hidden_dim // 2
        elif kind is not Mlp:
            raise ConfigError(
                f"mlp_layer={_shown(mlp_layer)}: experts are timm.layers.Mlp, SwiGLU or SwiGLUPacked; for others use "
                "moeapps.core.MoE with experts of your own"
            )
        return cls(hidden_dim, name, bool(vit.get("proj_bias", True)), float(vit.get("proj_drop_rate", 0.0)))

    def experts(self, dim: int, num_experts: int) -> ExpertMLP:
        """Experts of width ``dim``."""
        return ExpertMLP(
            dim, self.hidden_dim, num_experts, activation=self.activation, bias=self.bias, dropout=self.dropout
        )

    def check_default(self, why: str) -> None:
        """Refuse all but the width, where experts are of a kind that has no such options.

        Raises
        ------
        ConfigError
            Naming the argument.
        """
        default = ExpertOptions(self.hidden_dim)
        arguments = {"activation": "act_layer and mlp_layer", "bias": "proj_bias", "dropout": "proj_drop_rate"}
        for name, argument in arguments.items():
            if getattr(self, name) != getattr(default, name):
                raise ConfigError(f"{argument} cannot be set with {why}: leave the default")


def _activation(act_layer: Any) -> str:
    if act_layer is None:
        return "gelu"
    try:
        found = _NAMES.get(get_act_layer(act_layer))
    except (AttributeError, KeyError, TypeError):  # timm's own words for a name that it does not know say less
        found = None
    if found is None:
        raise ConfigError(f"act_layer={_shown(act_layer)}: experts have 'gelu', 'relu' or 'silu'")
    return found


def _shown(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


def shared_attention(attn_layer: Any, scale_attn_norm: bool, *args: Any, **kwargs: Any) -> nn.Module:
    """The attention that all blocks share.

    Parameters
    ----------
    attn_layer : str or type
        ``"attn"``, or a class that is called as timm's ``Attention``.
    scale_attn_norm : bool
        Whether the attention has a norm before its projection.
    *args, **kwargs
        Further arguments of the class.

    Raises
    ------
    ConfigError
        For an attention that depends on the number of its block, or an unknown name.
    """
    if isinstance(attn_layer, str):
        if attn_layer != "attn":
            raise ConfigError(
                f"attn_layer={attn_layer!r}: blocks share one attention, which must not depend on the block: 'attn', "
                "or a class"
            )
        attn_layer = Attention
    if isinstance(attn_layer, type) and issubclass(attn_layer, DiffAttention):
        raise ConfigError("attn_layer=DiffAttention depends on the number of the block: blocks share one attention")
    module: nn.Module = attn_layer(*args, scale_norm=scale_attn_norm, **kwargs)
    return module


def on_device(make: Callable[[], MoE], device: Any, dtype: Any) -> MoE:
    """Make a layer on a device and in a dtype; torch's defaults where they are None."""
    with contextlib.nullcontext() if device is None else torch.device(device):
        moe = make()
    return moe if dtype is None else moe.to(dtype=dtype)


def initialize_experts(moe: MoE, mode: str = "") -> None:
    """Initialise experts as timm initialises the MLPs of its transformers.

    Parameters
    ----------
    moe : MoE
        The layer.
    mode : {"", "reset", "jax", "jax_nlhb", "moco"}, default=""
        timm's ``weight_init``: ``""`` is a truncated normal of standard deviation 0.02 with biases of zero; ``"jax"``
        and ``"moco"`` are Xavier-uniform, with biases of standard deviation 1e-6 and of zero; ``"reset"`` is torch's
        own for a linear layer.
    """
    if mode == "reset":
        for module in moe.experts.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        return
    for name, parameter in moe.experts.named_parameters():
        if name.rpartition(".")[2].startswith("bias"):
            if mode.startswith("jax"):
                nn.init.normal_(parameter, std=1e-6)
            else:
                nn.init.zeros_(parameter)
        elif mode:
            stacked = parameter.detach()
            for matrix in stacked if stacked.ndim == 3 else [stacked]:  # (E, in, out): each expert by itself
                nn.init.xavier_uniform_(matrix)
        else:
            nn.init.trunc_normal_(parameter, std=0.02)


def scale_last_layers(moe: MoE, factor: float) -> None:
    """Multiply the last weights of all experts.

    Raises
    ------
    ConfigError
        For experts of a kind whose last layer is not known.
    """
    experts = moe.experts
    if isinstance(experts, HeterogeneousExperts):
        weights = [expert.second.weight for expert in experts.experts if isinstance(expert, FeedForward)]
    elif isinstance(experts, ExpertMLP):
        weights = [experts.weight2]
    else:
        raise ConfigError(f"fix_init is not defined for {type(experts).__name__}: leave it False")
    for weight in weights:
        weight.detach().mul_(factor)
