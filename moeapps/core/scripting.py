"""A mixture for torch.jit.script: the evaluation of an MoE layer, in torch that TorchScript can read."""

# Shapes: N tokens, d width, h hidden width, E experts, k experts per token

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.errors import ConfigError
from moeapps.core.experts import ExpertMLP
from moeapps.core.routers import TopKRouter

__all__ = ["ScriptedMoE"]


class ScriptedMoE(nn.Module):
    """What an MoE layer computes in evaluation, as a plain loop over its experts; it shares the layer's parameters.

    ``torch.jit.script`` puts it in the layer's place. The layer itself cannot be a script: routers, experts and kernels
    are chosen by Python, and a routing is kept for losses. The script keeps none, so it cannot train.

    Parameters
    ----------
    layer : MoE
        A layer with a :class:`~moeapps.core.routers.TopKRouter` and :class:`~moeapps.core.experts.ExpertMLP`.

    Raises
    ------
    ConfigError
        At construction, for another kind of layer, naming what it has.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        router, experts = layer.router, layer.experts
        found = {
            f"router={type(router).__name__}": type(router) is TopKRouter,
            f"gradient={getattr(router, 'gradient', None)!r}": getattr(router, "gradient", None) == "softmax",
            f"experts={type(experts).__name__}": type(experts) is ExpertMLP,
            f"iterations={layer.iterations}": layer.iterations == 1,
            f"eval_capacity_factor={layer.eval_capacity_factor}": layer.eval_capacity_factor is None,
        }
        wrong = [name for name, possible in found.items() if not possible]
        if wrong:
            raise ConfigError(
                f"torch.jit.script takes MoE layers with a TopKRouter, ExpertMLP, one iteration and no capacity; this "
                f"one has {', '.join(wrong)}. torch.export takes every layer"
            )
        self.top_k: int = router.top_k
        self.renormalize: bool = router.renormalize
        self.activation: str = experts.activation
        self.router_weight = router.weight
        self.weight1, self.weight2 = experts.weight1, experts.weight2
        self.bias1, self.bias2 = experts.bias1, experts.bias2
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(..., d)`` to tokens ``(..., d_out)``."""
        if self.training:
            raise RuntimeError("a scripted mixture is for evaluation: call eval(), or train the layer before scripting")
        tokens = x.reshape(-1, x.shape[-1])
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        probabilities = F.linear(tokens.to(wide), self.router_weight.to(wide)).softmax(dim=-1)
        weight, expert = probabilities.topk(self.top_k, dim=-1)  # (N, k)
        if self.renormalize:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        out = torch.zeros(tokens.shape[0], self.weight2.shape[2], dtype=tokens.dtype, device=tokens.device)
        for e in range(self.weight1.shape[0]):
            mine = expert == e
            row = mine.any(dim=-1).nonzero().squeeze(1)
            pre = tokens.index_select(0, row) @ self.weight1[e]
            if self.bias1 is not None:
                pre = pre + self.bias1[e]
            hidden = self._activated(pre) @ self.weight2[e]
            if self.bias2 is not None:
                hidden = hidden + self.bias2[e]
            mine_weight = (weight * mine.to(weight.dtype)).sum(dim=-1).index_select(0, row)
            out = out.index_add(0, row, hidden * mine_weight.to(hidden.dtype)[:, None])
        return out.reshape(x.shape[:-1] + out.shape[-1:])

    def _activated(self, pre: Tensor) -> Tensor:
        if self.activation == "relu":
            return F.relu(pre)
        if self.activation == "silu":
            return F.silu(pre)
        if self.activation == "swiglu":
            gate, value = pre.chunk(2, dim=-1)
            return F.silu(gate) * value
        return F.gelu(pre)
